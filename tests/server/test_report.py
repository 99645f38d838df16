"""report.html says what the result says, shows nothing that it does not, and needs nothing but itself."""

import copy
import html
import json
import re
from html.parser import HTMLParser

import pytest
from report_samples import answer, make_result, metrics, plain, with_counts

from dpfpl_common.errors import StateError
from dpfpl_server.report import render_report, write_report
from dpfpl_server.report.charts import Frame, Line, line_chart, mean_curve, site_curve
from dpfpl_server.runs.words import bytes_text, epsilon_text, seconds_text

HOSTILE = "<script src=//evil.example/x.js>alert('\"')</script>"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects the tables, checks that elements nest, and keeps every attribute."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.attributes, self.tags, self._open, self._cell = {}, [], [], [], None
        self._rows, self._caption, self._in_caption = [], "", False
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        self._in_caption = ("class", "caption") in attrs
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        self._in_caption = False
        if tag == "table":
            self.tables[self._caption] = self._rows[1:]

    def handle_data(self, data):
        if "td" in self._open or "th" in self._open:
            self._rows[-1][-1] += data.replace("\u00a0", " ")
        elif self._in_caption:
            self._caption = data

    def table(self, start):
        return next(rows for caption, rows in self.tables.items() if caption.startswith(start))


def test_every_number_of_the_site_table_is_the_results():
    result = make_result()
    rows = Page(render_report(result)).table("Before")
    assert [row[0] for row in rows] == ["east (weakest)", "north", "south", "west"]
    for row, site in zip(rows, result["sites"], strict=True):
        assert row[1] == f"{100 * site['before']:.1f} → {100 * site['local']:.1f}"
        assert row[2] == f"{100 * (site['local'] - site['before']):+.1f}"
        assert row[3] == f"{100 * site['global']:.1f} %"
        assert row[4] == f"{100 * site['before_neighbour']:.1f} → {100 * site['neighbour']:.1f}"
        assert row[5] == "2"


def test_floors_and_how_far_the_federation_is_ahead():
    result = make_result(extra_floors={"local_only": {"local": 0.8, "neighbour": None, "worst_site": 0.7}})
    rows = {row[0]: row[1:] for row in Page(render_report(result)).table("Means over")}
    ours = result["accuracy"]["local"]
    assert rows["this federation"][0] == f"{100 * ours:.1f} %"
    assert rows["plain text prompt"][0] == f"{100 * result['floors']['zero_shot']['local']:.1f} %"
    assert rows["every site alone"] == ["80.0 %", f"{100 * (ours - 0.8):+.1f}", "70.0 %", "–", "–"]


def test_the_answer_has_gain_over_each_rival_worst_site_privacy_and_cost():
    result = with_counts(make_result(extra_floors={"local_only": {"local": 0.8, "neighbour": 0.3}}))
    page = render_report(result)
    text = answer(page)
    assert page[page.index("<ol>") : page.index("</ol>")].count("<li>") == 3
    assert "It is not proven that federating paid: 4 sites trained together for 3 rounds." in text
    assert "Over “every site alone”: -7.1 points on own classes (95 % interval -11.2 to -2.9), +20.8 on" in text
    assert "Over “plain text prompt”: +21.0 points on own classes (95 % interval +16.4 to +25.6), +3.9 on" in text
    assert "On a site's own classes 72.9 % of the answers are right;" in text
    assert "the weakest site, east, has 71.3 %" in text
    assert "moved 12.0 kB from the sites and 51.0 kB to them; no answer of a site was missing or rejected" in text
    assert "no roi.toml was given" in text


@pytest.mark.privacy
def test_epsilons_are_the_accountants_rounded_up():
    result = make_result()
    rows = Page(render_report(result)).table("The accountant's")
    assert len(rows) == 3
    for row, entry_ in zip(rows, result["privacy"]["epsilons"], strict=True):
        assert row[0].lower().startswith(entry_["who"][:20].lower())
        assert entry_["epsilon"] <= float(row[1]) <= entry_["epsilon"] * 1.01
        assert row[2:] == ["1e-05", entry_["adversary"]]
        assert html.escape(entry_["unit"]) in render_report(result)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2.0, "2.0"), (1.1, "1.1"), (1.9991, "2.00"), (0.0012341, "0.00124"), (0.0, "0.0"), (1234.5, "1240")],
)
def test_an_epsilon_is_never_rounded_down(value, shown):
    assert epsilon_text(value) == shown
    assert epsilon_text("infinite") == "infinite"


@pytest.mark.privacy
@pytest.mark.parametrize("privacy", [{}, {"noise_multiplier": 0.0}, {"trust": "central"}])
@pytest.mark.parametrize("real_noise", [True, False])
def test_the_words_differentially_private_never_appear(privacy, real_noise):
    page = render_report(make_result(privacy=privacy, real_noise=real_noise))
    assert "differential" not in page.lower()


@pytest.mark.privacy
def test_an_infinite_epsilon_promises_nothing():
    page = render_report(make_result(privacy={"trust": "central"}))
    assert [row[1] for row in Page(page).table("The accountant's")][2] == "∞"
    assert "∞ for the operator of the server" in answer(page)
    assert "an infinite epsilon promises nothing against that party" in answer(page)
    assert "the operator sees sums of gradients as they are" in plain(page)


@pytest.mark.privacy
def test_what_left_is_said_as_the_mechanism_has_it():
    once = plain(render_report(make_result(privacy={"mechanism": "one_shot", "trust": "local"})))
    steps = plain(render_report(make_result(privacy={"trust": "local"})))
    assert "to which it added noise once, before the first round" in once
    assert "clipped and noised at the site" not in once
    assert "clipped and noised at the site" in steps
    assert "added noise once" not in steps


@pytest.mark.privacy
def test_without_noise_no_privacy_is_claimed():
    page = render_report(make_result(privacy={"noise_multiplier": 0.0}))
    assert "no privacy is claimed" in answer(page)
    assert "accounting" not in answer(page)
    assert plain(page).count("nothing is promised against this party") == 3


@pytest.mark.privacy
def test_seeded_noise_is_named_before_the_epsilons():
    page = render_report(make_result(real_noise=False))
    text = answer(page)
    assert text.index("simulation") < text.index("an epsilon of")
    assert "protects no real data" in text
    assert "seeded: a simulation, no protection of real data" in page
    assert "simulation" not in answer(render_report(make_result()))


def test_the_page_refers_to_nothing_outside_itself():
    page = render_report(make_result(dropped={2: {"west": "see http://evil.example/ url(http://x)"}}))
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "image", "use", "base"} & set(parsed.tags)
    assert not [a for a in parsed.attributes if a[1] in ("src", "href", "xlink:href", "srcset", "action", "style")]
    assert not [a for a in parsed.attributes if a[1].startswith("on")]
    style = page[page.index("<style>") : page.index("</style>")]
    assert not re.search(r"url\(|@import|https?:|//", style)
    assert "default-src 'none'" in page


def test_hostile_names_are_text():
    result = copy.deepcopy(make_result(dropped={2: {"west": HOSTILE}}))
    result["sites"][0]["name"] = HOSTILE
    result["config"]["name"] = HOSTILE
    result["config"]["classes"] = [HOSTILE, "\x1b[2J\u202e"]
    result["method"] = result["transport"] = result["privacy"]["noise"] = HOSTILE
    result["privacy"]["epsilons"][0]["who"] = result["privacy"]["epsilons"][1]["unit"] = HOSTILE
    result["floors"][HOSTILE] = {"local": 0.5}
    result["versions"][HOSTILE] = HOSTILE
    page = render_report(result)
    assert "script" not in Page(page).tags
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert html.escape(HOSTILE) in page
    assert Page(page).table("Before")[0][0] == f"{HOSTILE} (weakest)"


def test_metrics_that_no_site_releases_are_dashes_and_explained():
    page = render_report(make_result(released=()))
    assert all(row[1:5] == ["– → –", "–", "–", "– → –"] for row in Page(page).table("Before"))
    assert "policy does not let it out" in plain(page)
    assert "so what it brought is not known" in answer(page)
    assert "<svg" not in page


def test_zero_rounds():
    page = render_report(make_result(completed=0, final={}))
    assert "No round was completed" in answer(page)
    assert "accountant" not in answer(page)
    assert "<svg" not in page
    Page(page)


def test_rounds_and_who_was_left_out_why():
    result = make_result(dropped={2: {"west": "NO_REPLY: nothing came within 300 s"}})
    page = Page(render_report(result))
    rows = page.table("Contents of the messages")
    assert [row[:5] for row in rows][1] == ["2", "3.2 s", "4.0 kB", "17.0 kB", "3"]
    assert rows[2][5] == f"{100 * result['accuracy']['local']:.1f} %"
    assert page.table("Sites left out") == [["2", "west", "NO_REPLY: nothing came within 300 s"]]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_U9_a_site_that_sent_nothing_but_noise_is_named(language):
    result = make_result()
    assert "zero_signal" not in render_report(result, language=language)
    result["sites"][1]["flag"] = "zero_signal"
    result["sites"][0]["flag"] = "too_little_noise"
    page = render_report(result, language=language)
    assert page.count("zero_signal") >= 1
    assert page.count("too_little_noise") >= 1


def test_everything_needed_to_repeat_the_run_is_there():
    result = make_result()
    page = Page(render_report(result))
    settings = dict(page.table("experiment.toml"))
    assert settings["privacy.noise_multiplier"] == "2.0"
    assert settings["classes"] == '["a cat", "a dog"]'
    assert [row[4] for row in page.table("From these")] == ["12"] * 3
    assert dict(page.table("Installed"))["dpfpl-server"] == result["versions"]["dpfpl-server"]
    assert dict(page.table("This run"))["experiment_digest"] == result["experiment_digest"]


def test_a_rounds_metrics_belong_to_the_prompt_before_it():
    result = make_result()
    assert site_curve(result, "north", "personal_local") == pytest.approx(
        {k: metrics("north", k)["personal_local"] for k in range(4)}
    )
    assert mean_curve(result, "personal_local")[3] == pytest.approx(result["accuracy"]["local"])


def test_a_mean_is_over_the_sites_that_reported():
    result = make_result(released=("north", "south"), dropped={2: {"south": "NO_REPLY"}})
    assert mean_curve(result, "personal_local")[1] == metrics("north", 1)["personal_local"]


@pytest.mark.parametrize("points", [{}, {0: 0.5}, {0: 0.0, 1: 1.0}, dict.fromkeys(range(400), 1.0)])
def test_a_chart_stays_inside_its_frame(points):
    line = Line("<b>", points)
    frame = Frame.around([line], max(points, default=0))
    drawing = line_chart("a & b", [line], frame)
    Page(drawing)
    assert "a &amp; b" in drawing
    assert "<b>" not in drawing
    for pair in re.findall(r'class="line style0" d="M([^"]*)"', drawing):
        for x, y in (place.split() for place in pair.split("L")):
            assert 0 <= float(x) <= frame.width
            assert 0 <= float(y) <= frame.height
    assert 2 <= drawing.count('text-anchor="middle"') <= 9


def test_durations_and_sizes():
    assert [seconds_text(s) for s in (0.04, 59.9, 61, 3600, None)] == [
        "0.0 s",
        "59.9 s",
        "1 min 01 s",
        "1 h 00 min",
        "–",
    ]
    assert [bytes_text(b) for b in (999, 1000, 12_345_678, None)] == ["999 B", "1.0 kB", "12.3 MB", "–"]


def test_write_report_reads_the_result_of_the_folder(tmp_path):
    result = make_result()
    (tmp_path / "result.json").write_text(json.dumps(result))
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == render_report(result)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "NO_RESULT"),
        ("{", "RESULT_DAMAGED"),
        ("[]", "RESULT_DAMAGED"),
        ("{}", "RESULT_DAMAGED"),
        (json.dumps(make_result() | {"floors": {"zero_shot": "high"}}), "RESULT_DAMAGED"),
        (json.dumps(make_result() | {"privacy": {}}), "RESULT_DAMAGED"),
    ],
)
def test_write_report_without_a_result_says_what_to_do(tmp_path, content, code):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(StateError) as caught:
        write_report(tmp_path)
    assert caught.value.code == code
    assert caught.value.advice
