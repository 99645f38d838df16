"""The pilot report in a real browser: readable on a desktop, on a phone and on paper, in both languages."""

import re
import shutil
import subprocess
import tomllib
from importlib import resources

import pytest

from dpfpl_common.config import build
from dpfpl_server.report import render_report
from dpfpl_server.report.roi import RoiInputs

pytestmark = pytest.mark.slow

OVERFLOWING = """
[...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('.scroll') || e.closest('svg')) return false;
  const box = e.getBoundingClientRect();
  return box.width > 0 && (box.right > innerWidth + 1 || box.left < -1);
}).map(e => e.tagName + ' ' + e.textContent.slice(0, 40))
"""
CUT_OFF_TEXT = """
[...document.querySelectorAll('svg text')].filter(e => {
  const box = e.getBoundingClientRect(), frame = e.closest('svg.chart, figure').getBoundingClientRect();
  return box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1;
}).map(e => e.textContent)
"""


@pytest.fixture(scope="module", params=["en", "ja"])
def page(request, tmp_path_factory, demo_result):
    text = resources.files("dpfpl_server.report").joinpath("roi_template.toml").read_text(encoding="utf-8")
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_report(demo_result, request.param, build(RoiInputs, tomllib.loads(text), "roi.toml")))
    return request.param, path


@pytest.mark.parametrize(("device", "width", "height"), [("desktop", 1000, 1500), ("phone", 390, 1500)])
def test_the_report_fits_a_screen(browser, page, picture, device, width, height):
    language, path = page
    tab = browser.tab(width, height, mobile=device == "phone")
    tab.media("screen", "light")
    tab.open(path.as_uri())
    picture(tab, f"report-{language}-{device}")
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value(OVERFLOWING) == []
    assert tab.value(CUT_OFF_TEXT) == []
    assert tab.problems == []
    assert [address for address in tab.requests if not address.startswith("file:")] == []
    if device == "desktop":
        start = tab.value(
            "[...document.querySelectorAll('h2')].find(e => /Return|投資対効果/.test(e.textContent)).offsetTop"
        )
        tab.value(f"scrollTo(0, {start - 20})")
        picture(tab, f"report-{language}-roi")


def test_the_report_is_readable_in_the_dark(browser, page):
    _, path = page
    tab = browser.tab(1000, 1000)
    tab.media("screen", "dark")
    tab.open(path.as_uri())
    ground = tab.value("getComputedStyle(document.body).backgroundColor")
    ink = tab.value("getComputedStyle(document.querySelector('td')).color")
    assert (sum(map(int, re.findall(r"\d+", ground))), sum(map(int, re.findall(r"\d+", ink)))) < (200, 1000)
    assert sum(map(int, re.findall(r"\d+", ink))) > 500


def test_the_report_prints_with_everything_unfolded(browser, page, picture, tmp_path):
    language, path = page
    tab = browser.tab(794, 1123)  # A4 at 96 dots an inch
    tab.media("print")
    tab.open(path.as_uri())
    picture(tab, f"report-{language}-print")
    content = tab.pdf()
    assert content.startswith(b"%PDF-")
    (tmp_path / "report.pdf").write_bytes(content)
    if shutil.which("pdftotext"):
        command = ["pdftotext", "-layout", str(tmp_path / "report.pdf"), "-"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        assert "privacy.noise_multiplier" in text  # from a folded part
        assert text.count("\f") < 20
