"""The live page in a real browser: it follows a run by server-sent events, and changes nothing."""

import pytest
from chromium import served
from console_samples import Run

from dpfpl_common.ops.http import HttpGuard
from dpfpl_server.watch.console.app import STATIC, Watcher, console_app

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "runs" / "xrays-1")
    yield made
    made.close()


@pytest.fixture
def address(run):
    with console(run) as url:
        yield url


def console(run, token=None):
    """The console of a run, on a free port of this machine."""
    watcher = Watcher(run.path.parent, lambda: run.connections, run.path.parent / "server.log")
    return served(HttpGuard(console_app(watcher), token, STATIC))


def text(tab, selector):
    return tab.value(f"document.querySelector({selector!r}).textContent")


def test_the_page_follows_a_run(browser, run, address, picture):
    run.train(1, waiting=["clinic-b", "hospital-a"])
    tab = browser.tab(1100, 1500)
    tab.media("screen", "light")
    tab.open(address)
    tab.wait("document.querySelector('#link').textContent === 'live'")
    assert text(tab, "#name") == "xrays-1"
    assert text(tab, "#round") == "Round 0 of 8 done."
    assert text(tab, "#waiting") == "No reply yet: clinic-b, hospital-a"
    assert tab.value("document.querySelector('#waiting').className") == "quiet"  # nothing is wrong while sites train
    for number in range(1, 5):
        run.complete(
            number, dropped={"clinic-b": "REFUSED BUDGET_EXHAUSTED: max_epsilon_lifetime"} if number == 3 else {}
        )
    run.train(5, waiting=["hospital-a"])
    tab.wait("document.querySelector('#round').textContent === 'Round 4 of 8 done.'")  # without a reload
    assert tab.value("document.querySelectorAll('#sites tbody tr').length") == 3
    tab.wait("document.querySelector('#chart svg path.line') !== null")
    assert "clinic-b" in text(tab, "#drops tbody")
    assert "BUDGET_EXHAUSTED" in text(tab, "#drops tbody")
    assert "number 59" in text(tab, "#log")
    assert tab.value("document.documentElement.scrollWidth") <= 1100
    picture(tab, "console-desktop")
    assert tab.problems == []
    assert {request.split("/")[2] for request in tab.requests} == {address.split("/")[2]}


def test_the_page_fits_a_phone(browser, run, address, picture):
    run.train(1, waiting=["hospital-a"])
    run.complete(1)
    run.complete(2)
    run.train(3, waiting=["hospital-a"])
    tab = browser.tab(390, 1400, mobile=True)
    tab.media("screen", "dark")
    tab.open(address)
    tab.wait("document.querySelector('#chart svg path.line') !== null")
    assert tab.value("document.documentElement.scrollWidth") <= 390
    picture(tab, "console-phone")
    assert tab.problems == []


def test_hostile_text_is_text(browser, run, address):
    hostile = "<img src=x onerror=\"document.title='hit'\"><script>document.title='hit'</script>"
    run.complete(1, dropped={"clinic-b": hostile})
    run.log(hostile)
    tab = browser.tab()
    tab.open(address)
    tab.wait("document.querySelector('#drops tbody tr') !== null")
    assert "onerror" in text(tab, "#drops tbody")
    assert tab.value("document.querySelectorAll('main img, main script').length") == 0
    assert "hit" not in tab.value("document.title")


def test_a_server_that_goes_away_is_said(browser, run):
    with console(run) as url:
        run.complete(1)
        tab = browser.tab()
        tab.open(url)
        tab.wait("document.querySelector('#link').textContent === 'live'")
    tab.wait("document.querySelector('#link').textContent.startsWith('not connected')")
    assert text(tab, "#round") == "Round 1 of 8 done."


def test_with_a_token_the_page_needs_it(browser, run):
    run.complete(1)
    with console(run, "a-token-of-good-length") as url:
        tab = browser.tab()
        tab.open(url)
        tab.wait("document.querySelector('#link').textContent.startsWith('not connected')")
        assert "token" in text(tab, "#link")
        tab = browser.tab()
        tab.open(url + "#a-token-of-good-length")
        tab.wait("document.querySelector('#link').textContent === 'live'")
