"""report.html says what the result says, shows nothing that it does not, and needs nothing but itself."""

import copy
import html
import itertools
import json
import math
import re
import statistics
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
from markupsafe import escape
from report_samples import (
    BY_HAND,
    SITES,
    answer,
    catalogue,
    everything,
    fields,
    make_experiment,
    make_result,
    metrics,
    plain,
    with_counts,
)

from dpfpl_common.config import build
from dpfpl_common.errors import ConfigError, StateError
from dpfpl_common.experiment import parse_experiment
from dpfpl_common.ops.text import printable
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy.counts import gain
from dpfpl_common.privacy_plan import planned_events
from dpfpl_server.report import read_roi, render_report, write_report
from dpfpl_server.report.charts import Line, line_chart, mean_curve, site_curve, ticks
from dpfpl_server.report.facts import facts, wilson
from dpfpl_server.report.roi import RoiInputs
from dpfpl_server.report.texts import Texts
from dpfpl_server.runs.result import privacy_statement
from dpfpl_server.runs.words import bytes_text, epsilon_text, seconds_text

HOSTILE = "<script src=//evil.example/x.js>alert('\"')</script>\x1b[2J\u202e"
VOID = {"meta", "br", "img", "link", "input", "hr"}
NUMBER = re.compile(r'<data value="([^"]*)">(.*?)</data>', re.DOTALL)


def roi_inputs(**changes):
    return build(RoiInputs, BY_HAND | changes, "roi.toml")


def roi_for(result):
    known = {} if result["verdict"]["before"] is not None else {"error_rate_before": 0.2, "error_rate_after": 0.1}
    return roi_inputs(hourly_cost={"low": 20, "expected": 40, "high": 60}, **known)


def one_shot(**changes):
    """A deployed run of class sums whose sites released scores and nothing exact."""
    result = make_result(released=(), privacy={"mechanism": "one_shot", "trust": "local"}, **changes)
    lead = {"before": 0.8, "value": 0.05, "interval": [-0.05, 0.15]}
    result["verdict"] = {
        "measured": "counts", "says": "not_proven", "before": 0.8, "after": 0.85, "interval": [-0.05, 0.15],
        "rivals": [{"name": "local_only_evidence", "local": lead, "neighbour": None}],
    }  # fmt: skip
    result["scores"] = [
        {"candidate": "both", "sites": 4, "right": 85.0, "of": 100.0, "value": 0.85, "interval": [0.8, 0.9]}
    ]
    result["gains"] = [{"candidate": "both", "over": "alone", "used": True, "value": 0.05, "interval": [-0.05, 0.15]}]
    return result


CASES = {
    "everything": everything,
    "counts known": lambda: with_counts(everything()),
    "one shot": one_shot,
    "no metrics": lambda: make_result(released=()),
    "some metrics": lambda: make_result(released=("north",)),
    "central": lambda: make_result(privacy={"trust": "central"}),
    "sampled": lambda: make_result(privacy={"unit": "site", "trust": "central", "site_sample_rate": 0.5}),
    "no noise": lambda: make_result(privacy={"noise_multiplier": 0.0}),
    "simulation": lambda: make_result(real_noise=False, transport="in_process"),
    "no round": lambda: make_result(completed=0, final={}),
}


class Page(HTMLParser):
    """Checks that elements nest, and keeps tags, attributes and tables."""

    def __init__(self, page):
        super().__init__()
        self.page, self.attributes, self.tags, self._open = page, [], [], []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def table(self, start):
        """The cells, as text, of the body of the table whose caption begins so."""
        body = self.page[self.page.index(f'<p class="caption">{escape(start)}') :]
        rows = re.findall(r"<tr>(.*?)</tr>", body[body.index("<tbody>") : body.index("</tbody>")], re.DOTALL)
        return [[plain(cell) for cell in re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


# Numbers


def leaves(value):
    """Every number of the facts, and how many entries each of their lists and tables has."""
    if isinstance(value, dict | list | tuple):
        yield len(value)
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


@pytest.mark.privacy
@pytest.mark.parametrize("case", CASES)
def test_every_number_is_one_of_the_facts_and_shown_as_it_is_in_both_languages(case):
    result = CASES[case]()
    english, japanese = (render_report(result, language, roi_for(result)) for language in ("en", "ja"))
    known = set(leaves(facts(result, roi_for(result))))
    for page in (english, japanese):
        found = NUMBER.findall(page)
        assert len(found) > 30
        for value, shown in found:
            value = json.loads(html.unescape(value))
            assert value in known
            check_shown(plain(shown), value)
    assert sorted(value for value, _ in NUMBER.findall(english)) == sorted(value for value, _ in found)
    assert "differential" not in english.lower(), "no number here is called a guarantee"
    assert '<html lang="ja">' in japanese
    text = plain(japanese[japanese.index("<main>") : japanese.rindex("<section>")])
    assert re.findall(r"(?:[A-Za-z]{2,} ){3,}[A-Za-z]+", text) == []


def check_shown(shown, value):
    """The digits on the page are the value's."""
    if value == "infinite":
        assert shown == "∞"
    elif not (re.search("分|日|min|1 in", shown) or isinstance(value, str)):
        digits = float(re.sub(r"[^0-9.e+-]", "", shown.replace(",", "")))
        scales = (1, 100, 1e-3, 1e-6, 1e-9)
        assert any(digits == pytest.approx(value * scale, rel=0.06, abs=0.051) for scale in scales), (shown, value)


def test_facts_are_computed_from_the_result_alone():
    result = with_counts(everything())
    found, rounds = facts(result), result["rounds"]
    assert found["cost"]["up"] == sum(4000 + k for k in range(1, 6))
    assert found["cost"]["round"] == statistics.median(1.25 + k for k in range(1, 6))
    assert found["cost"]["computing"] == sum(r["seconds"] * len(r["sites"]) for r in rounds)
    assert found["cost"]["energy"] == pytest.approx(found["cost"]["computing"] / 36)  # 100 W
    assert (found["cost"]["messages"], found["cost"]["dropped"]) == (19, 1)
    assert [row["rejected"] for row in found["received"]] == [0, 0, 0, 1]
    assert [row["values"] for row in found["received"]] == [30, 30, 30, 24]
    for number, row in enumerate(found["rounds"], 1):
        reported = [site for site in SITES if not (number + 1 == 2 and site == "west")]
        expected = statistics.fmean(metrics(site, number)["personal_local"] for site in reported)
        assert row["after"] == pytest.approx(expected)
    assert found["best"] == "local_only"
    assert [ticks([0.52, 0.93]), ticks([1.0])] == [
        pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        pytest.approx([0.95, 0.96, 0.97, 0.98, 0.99, 1.0]),
    ]


def test_no_number_stands_on_the_page_unmarked():
    """Outside the marked numbers there is no digit but in fixed words, names, drawings and the folded settings."""
    for language in ("en", "ja"):
        result = everything()
        page = render_report(result, language, roi_for(result))
        body = page[page.index("<main>") : page.rindex("<section>")]  # without the folded settings at the end
        body = re.sub(r"<svg.*?</svg>", "", body, flags=re.DOTALL)
        words = plain(NUMBER.sub("", body))
        fixed = "95 %|95%|100 %|100%|÷ 60|about 3|0.1 秒|[（ ]?1 [件回枚台時から]|1 ラウンド|5 ポイント|3 程度"
        assert re.findall(r"[^\n]*[0-9][^\n]*", re.sub(fixed, "", words)) == []


def test_every_number_of_the_site_table_is_the_results():
    result = make_result()
    rows = Page(render_report(result)).table("Before")
    assert [row[0] for row in rows] == ["east (weakest)", "north", "south", "west"]
    for row, site in zip(rows, result["sites"], strict=True):
        assert row[1:] == [
            f"{100 * site['before']:.1f} → {100 * site['local']:.1f}",
            f"{100 * (site['local'] - site['before']):+.1f}",
            f"{100 * site['global']:.1f}",
            f"{100 * site['before_neighbour']:.1f} → {100 * site['neighbour']:.1f}",
            "2",
        ]


def test_baselines_and_how_far_the_federation_is_ahead():
    result = make_result(extra_floors={"local_only": {"local": 0.8, "neighbour": None, "worst_site": 0.7}})
    rows = {row[0]: row[1:] for row in Page(render_report(result)).table("Means over")}
    ours = result["accuracy"]["local"]
    assert rows["this federation"][0] == f"{100 * ours:.1f} %"
    assert rows["plain text prompt"][0] == f"{100 * result['baselines']['zero_shot']['local']:.1f} %"
    assert rows["every site alone"] == ["80.0 %", f"{100 * (ours - 0.8):+.1f}", "70.0 %", "–", "–"]


def test_wilson_against_published_values():
    """Newcombe, Statistics in Medicine 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    for hits, count, *ends in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(hits / count, count) == pytest.approx(ends, abs=1e-4)


def test_intervals_only_where_counts_are_known():
    unknown = render_report(everything())
    assert "95 % interval after" not in unknown
    assert "is private, so no interval can be stated" in unknown
    known = render_report(with_counts(everything(), 40))
    assert "is private, so no interval" not in known
    low, high = wilson(everything()["sites"][0]["local"], 40)
    assert f"{100 * low:.1f} to {100 * high:.1f}" in plain(known)


def test_rounded_accuracies_are_called_rounded():
    result = everything()
    assert "may be rounding" not in render_report(result)
    for site in result["sites"]:
        site |= {"before": 0.55, "local": 0.9, "global": 0.6}
    assert "may be rounding" in render_report(result)


# The answer


def test_the_title_names_experiment_day_and_sites():
    result = make_result() | {"date": "2026-03-09"}
    english, japanese = (plain(render_report(result, language)) for language in ("en", "ja"))
    assert "Pilot report: pilot, 2026-03-09" in english
    assert "4 sites: east, north, south and west." in english
    assert "試験導入報告書：pilot" in japanese
    assert "2026年3月9日、3 ラウンド" in japanese


def test_the_answer_has_verdict_gain_privacy_and_cost():
    text = answer(
        render_report(with_counts(make_result(extra_floors={"local_only": {"local": 0.8, "neighbour": 0.3}})))
    )
    assert "It is not proven that federating paid." in text
    assert "4 sites trained together for 3 rounds. On a site's own classes 72.9 % of the answers are right" in text
    assert (
        "(the weakest site, east: 71.3 %). The best without a federation (“every site alone”) reaches 80.0 %." in text
    )
    gains = re.sub(r"\s+", " ", text[text.index("Points gained") :])
    assert "over “every site alone”, own classes -7.1 (-11.2 to -2.9)" in gains
    assert "over “every site alone”, other sites' classes +20.8 (" in gains
    assert "over “plain text prompt”, own classes +21.0 (+16.4 to +25.6)" in gains
    assert "moved 12.0 kB from the sites and 51.0 kB to them; no reply of a site was missing or rejected" in text
    assert "no roi.toml was given" in text


def alone(local, neighbour, images=200):
    """A simulation in which each site alone had these accuracies."""
    result = make_result(extra_floors={"local_only": {"local": local, "neighbour": neighbour}})
    return with_counts(result, images) if images else result


@pytest.mark.parametrize(
    ("case", "says", "change"),
    [
        (lambda: alone(0.6, 0.3), "Federating paid.", "would not be proven with less than"),
        (lambda: alone(0.9, 0.9), "Federating did not pay", "a single site has too little of what the others have"),
        (lambda: alone(0.72, 0.47, 20), "It is not proven", "times as much test data"),
        (lambda: alone(0.74, 0.51, 20), "It is not proven", "was not ahead of “every site alone”"),
        (lambda: alone(0.6, 0.3, None), "It is not proven", "How much test data there is is not known"),
        (make_result, "Whether federating paid is not known", "a run that measures each site alone"),
        (lambda: make_result(released=()), "no site released an accuracy", "scores, which are counted with noise"),
        (lambda: make_result(completed=0, final={}), "No round was completed", ""),
        (one_shot, "It is not proven", "2.0 times as many images at each site, or 4.0 times as many sites, or an eps"),
        (lambda: one_shot() | {"evidence": {"warning": "x"}}, "Nothing was found", "a larger epsilon, more images at"),
    ],
)
def test_the_answer_says_what_would_change_it(case, says, change):
    text = answer(render_report(case()))
    assert says in text
    assert change in text
    assert ("What would change this" in text) == bool(change)


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_so_much_more_test_data_would_just_prove_the_gain(factor):
    result = make_result(extra_floors={"local_only": {"local": 0.7, "neighbour": 0.47}})
    images = 100_000 // 4  # large, so that they are whole numbers of images after the factor
    more = facts(with_counts(copy.deepcopy(result), images))["change"]["images"]
    assert more < 1
    found = with_counts(result, round(images * more * factor))["verdict"]
    assert found["says"] == ("pays" if factor > 1 else "not_proven")


@pytest.mark.parametrize("stddev", [5.0, 20.0, 40.0])
def test_so_many_more_images_or_sites_would_just_lift_noised_counts_above_zero(stddev):
    counts = np.array([0.60, 0.66, 1.0]) * 400
    value, low, high = gain(counts, stddev, 1, 0)
    result = one_shot()
    result["verdict"]["rivals"][0]["local"] = {"before": 0.8, "value": value, "interval": [low, high]}
    more = facts(result)["change"]
    for factor, sign in ((0.95, -1), (1.05, 1)):
        images, sites = more["images"] * factor, more["sites"] * factor
        assert gain(counts * images, stddev, 1, 0)[1] * sign > 0
        assert gain(counts * sites, stddev * math.sqrt(sites), 1, 0)[1] * sign > 0  # every site adds its noise


@pytest.mark.privacy
def test_the_epsilon_that_would_change_it_is_the_accountants():
    change = facts(one_shot())["change"]
    experiment = make_experiment(mechanism="one_shot", trust="local", noise_multiplier=1.0)  # 2.0 over a factor of 2
    assert change == {
        "images": pytest.approx(2), "sites": pytest.approx(4), "behind": [],
        "epsilon": pytest.approx(epsilon([planned_events(experiment)[0]], experiment.privacy.target_delta)),
    }  # fmt: skip


def test_what_it_takes_is_what_plan_says():
    page = Page(render_report(one_shot()))
    rows = [[int(cell.replace(",", "")) for cell in row] for row in page.table("Images of a class")]
    assert [row[0] for row in rows] == [1, 2, 4, 8]
    assert all(
        more > less for one, two in itertools.pairwise(rows) for more, less in zip(one[1:], two[1:], strict=True)
    )
    pays = one_shot()
    pays["verdict"]["says"] = "pays"
    assert "Images of a class" not in render_report(pays)


def test_what_says_nothing_is_left_out():
    def titles(result):
        return [plain(title) for title in re.findall("<h2>(.*?)</h2>", render_report(result))]

    exact = ["Accuracy at each site", "How sure are these numbers?", "Compared with", "Accuracy over the rounds"]
    always = ["What left each site, and what it cost", "What running it took", "Return on investment"]
    end = ["What these data cannot tell", "Rounds", "Details"]
    deployed = ["The answer", "What it takes", "Scores that are covered by epsilon", *always, *end]
    assert titles(one_shot()) == deployed
    assert titles(everything()) == [
        "The answer",
        *exact,
        "If it had stopped earlier",
        always[0],
        "Audit",
        *always[1:],
        *end,
    ]
    assert "this experiment was not attacked" in render_report(one_shot())


# Privacy


@pytest.mark.privacy
def test_epsilons_are_the_accountants_rounded_up():
    result = make_result()
    page = render_report(result)
    rows = Page(page).table("The accountant's")
    assert len(rows) == 3
    for row, entry in zip(rows, result["privacy"]["epsilons"], strict=True):
        assert row[1] == entry["adversary"]
        assert entry["epsilon"] <= float(row[2]) <= entry["epsilon"] * 1.01
        assert row[3] == "1e-05"
        assert html.escape(entry["unit"]) in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2.0, "2.0"), (1.1, "1.1"), (1.9991, "2.00"), (0.0012341, "0.00124"), (0.0, "0.0"), (1234.5, "1240")],
)
def test_an_epsilon_is_never_rounded_down(value, shown):
    assert epsilon_text(value) == shown
    assert epsilon_text("infinite") == "infinite"


@pytest.mark.privacy
def test_an_infinite_epsilon_promises_nothing():
    page = render_report(make_result(privacy={"trust": "central"}))
    assert [row[2] for row in Page(page).table("The accountant's")][2] == "∞"
    assert "∞ for the operator of the server" in answer(page)
    assert "an infinite epsilon promises nothing against that party" in answer(page)
    assert "Against the operator of the server (who sees every message of the site): Epsilon is infinite" in plain(page)
    assert "the operator sees sums of gradients as they are" in plain(page)


@pytest.mark.privacy
def test_what_left_is_said_as_the_mechanism_has_it():
    once = plain(render_report(one_shot() | {"evidence": {"warning": ""}}))
    steps = plain(render_report(make_result(privacy={"trust": "local"})))
    assert "to which it added noise once, before the first round" in once
    assert "with its next one a vote on what to use with a second moment of its images, all with noise" in once
    assert "clipped and noised at the site" not in once
    assert "clipped and noised at the site" in steps
    assert "added noise once" not in steps
    assert "a vote" not in steps


@pytest.mark.privacy
def test_without_noise_no_privacy_is_claimed():
    page = render_report(make_result(privacy={"noise_multiplier": 0.0}))
    assert "no privacy is claimed" in answer(page)
    assert "accounting" not in answer(page)
    assert plain(page).count("nothing is promised against this party") == 1  # all three together


@pytest.mark.privacy
def test_seeded_noise_is_named_before_the_epsilons():
    page = render_report(make_result(real_noise=False))
    text = answer(page)
    assert text.index("simulation") < text.index("an epsilon of")
    assert "protects no real data" in text
    assert "noise came from a seed: a simulation, no protection of real data" in page
    assert "was a simulation" not in answer(render_report(make_result()))


@pytest.mark.privacy
def test_what_fewer_rounds_would_have_cost_is_the_accountants():
    result = make_result(rounds=2)
    experiment = parse_experiment(json.dumps(result["config"]))
    stops = facts(result)["stops"]
    assert [stop["rounds"] for stop in stops] == [1, 2]
    for stop in stops:
        for entry in privacy_statement(experiment, stop["rounds"])["epsilons"]:
            assert stop[entry["adversary"]] == entry["epsilon"]


@pytest.mark.privacy
@pytest.mark.parametrize("noise", [2.0, 40.0])
def test_epsilon_in_words_is_never_less_than_what_it_allows(noise):
    """At even odds before, e^epsilon / (1 + e^epsilon) after, rounded up."""
    result = make_result(privacy={"noise_multiplier": noise})
    page = render_report(result)
    sure = [float(s) for s in re.findall(r"at most ([0-9.]+) % sure", plain(page))]
    epsilons = list(dict.fromkeys(entry["epsilon"] for entry in result["privacy"]["epsilons"]))
    for shown, value in zip(sure, epsilons, strict=True):
        exact = 100 / (1 + math.exp(-value))
        assert exact <= shown <= min(100, exact + 0.11)
    assert ("comes near 100 %" in page) == any(s > 95 for s in sure)
    assert "1 in 100,000" in plain(page)


def test_an_attack_that_beats_the_claim_is_not_a_plain_row():
    result = everything()
    assert "canary" in render_report(result)
    assert "above the claim. The claim is wrong" not in plain(render_report(result))
    result["audit"][0] |= {"epsilon_lower_bound": 30.0, "epsilon_claimed": 8.0}
    assert "30.00: above the claim. The claim is wrong" in plain(render_report(result))


# What the page is made of


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
    result["config"]["classes"] = [HOSTILE]
    result["method"] = result["transport"] = result["privacy"]["noise"] = HOSTILE
    result["privacy"]["epsilons"][0]["who"] = result["privacy"]["epsilons"][1]["unit"] = HOSTILE
    result["baselines"][HOSTILE] = {"local": 0.5}
    result["versions"][HOSTILE] = HOSTILE
    page = render_report(result)
    assert "script" not in Page(page).tags
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "&lt;script src=//evil.example" in page
    assert Page(page).table("Before")[0][0] == f"{printable(HOSTILE)} (weakest)"


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
    drawing = line_chart("a & b", [Line("<b>", points)])
    Page(drawing)
    assert "a &amp; b" in drawing
    assert "<b>" not in drawing
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', drawing).groups())
    for pair in re.findall(r'class="line style0" d="M([^"]*)"', drawing):
        for x, y in (place.split() for place in pair.split("L")):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height
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


def test_rendering_leaves_the_result_as_it_is():
    result = everything()
    before = copy.deepcopy(result)
    render_report(result, "ja", roi_for(result))
    assert result == before


def test_the_japanese_report_lies_beside_the_english_one(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(everything()))
    assert [write_report(tmp_path, language).name for language in ("en", "ja")] == ["report.html", "report.ja.html"]
    assert write_report(tmp_path, "ja", out=tmp_path / "x.html").name == "x.html"
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_report(everything())
    with pytest.raises(ConfigError, match="FILE_MISSING"):
        read_roi(tmp_path / "roi.toml")


@pytest.mark.parametrize(
    ("content", "code", "named"),
    [
        (None, "NO_RESULT", ""),
        ("{", "RESULT_DAMAGED", "JSON"),
        ("[]", "RESULT_DAMAGED", ""),
        ("{}", "RESULT_DAMAGED", "date"),
        (json.dumps(make_result() | {"baselines": {"zero_shot": "high"}}), "RESULT_DAMAGED", "baselines.zero_shot"),
        (json.dumps(make_result() | {"privacy": {}}), "RESULT_DAMAGED", "epsilons"),
        (json.dumps(make_result() | {"verdict": {"rivals": [], "interval": None}}), "RESULT_DAMAGED", "measured"),
    ],
)
def test_write_report_without_a_result_says_what_to_do(tmp_path, content, code, named):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(StateError) as caught:
        write_report(tmp_path)
    assert caught.value.code == code
    assert named in caught.value.message
    assert caught.value.advice


# Return on investment on the page


def test_the_answer_says_when_it_has_paid_for_itself():
    result = everything()
    inputs = roi_inputs(error_rate_before=0.15, error_rate_after=0.1)
    assert "it pays for itself by month 5 in the expected case" in answer(render_report(result, "en", inputs))
    assert "5 か月目までに投資を回収" in answer(render_report(result, "ja", inputs))
    poor = roi_inputs(running_cost_per_month=10**6)
    assert "does not pay for itself" in answer(render_report(result, "en", poor))
    assert "never" in plain(render_report(result, "en", poor))
    assert "costs nothing up front" in answer(render_report(result, "en", roi_inputs(one_off_cost=0)))
    slow = roi_inputs(months=3, error_rate_before=0.15, error_rate_after=0.1)
    page = render_report(result, "en", slow)
    assert "does not pay for itself within the 3 months considered, but only by month 5" in answer(page)
    assert "5, after the months considered" in plain(page)
    assert "3 か月以内には投資を回収できず、回収は 5 か月目" in answer(render_report(result, "ja", slow))


def used_text(votes=0.0, found=0, trust="local"):
    """A simulation in which the plain text with each site's usual mix is used."""
    result = with_counts(make_result(privacy={"mechanism": "one_shot", "trust": trust, "tolerated_dropouts": 0}))
    evidence = {"classes_found": found, "votes": votes, "warning": "" if found else "No class stands out."}
    return with_counts(result | {"chosen": "text", "evidence": evidence})


@pytest.mark.parametrize("found", [0, 1])
@pytest.mark.parametrize("rates", [{}, {"error_rate_before": 0.15, "error_rate_after": 0.1}])
def test_no_money_is_credited_to_a_federation_that_added_nothing(found, rates):
    """Time that the model's proposals save is saved without a federation as well."""
    inputs = roi_inputs(**rates)
    english, japanese = (render_report(used_text(found=found), language, inputs) for language in ("en", "ja"))
    said = answer(english)
    assert "pays for itself" not in said
    assert "by itself federating costs money and brings none" in said
    assert re.search(r"own classes\s+\+0\.0 \(\+0\.0 to \+0\.0\)", said)
    assert "“plain text, each site's usual mix”" in said
    assert "Federating added nothing in this run, so nothing in this table is due to it." in plain(english)
    assert "投資を回収" not in answer(japanese)
    assert "連合学習そのものは費用がかかるだけ" in answer(japanese)
    assert "この表に連合学習による効果は含まれません" in plain(japanese)
    other = plain(render_report(everything(), "en", inputs))
    assert "Federating added nothing" not in other
    assert "costs money and brings none" not in other


def test_why_the_plain_text_is_used_is_said():
    """Votes may pass their threshold and nothing be found: then it was not the votes."""
    nothing, voted = (plain(render_report(used_text(99.0, found))) for found in (0, 1))
    assert "No class stands out of the noise, so the plain text is used" in nothing
    assert "did not vote for class vectors" not in nothing
    assert "did not vote for class vectors, so the plain text is used" in voted


def test_when_class_sums_and_votes_left_a_site_is_said():
    """Under local trust with its replies; only secure sums come before the first round."""
    local, secure = (plain(render_report(used_text(trust=trust))) for trust in ("local", "secure"))
    assert "With its first reply each site also sent class sums, and with its next one a vote" in local
    assert "Before the first round" not in local
    assert "Before the first round each site also sent class sums, and then one vote" in secure


def test_a_calculation_of_nothing_but_zeros_is_drawn():
    nothing = dict.fromkeys((k for k, v in BY_HAND.items() if isinstance(v, int | float) and k != "months"), 0)
    assert "costs nothing up front" in answer(render_report(everything(), "en", roi_inputs(**nothing)))


def test_the_origin_of_error_rates_is_said():
    def words(**changes):
        return plain(render_report(everything(), "en", roi_inputs(**changes)))

    assert "this run's own" in words()
    company = words(error_rate_before=0.2, error_rate_after=0.1)
    assert "this run's own" not in company
    assert "come from roi.toml, not from this run" in company
    one = words(error_rate_before=0.2)
    assert "this run's own" in one
    assert "The other error rate comes from roi.toml" in one


# Languages


def test_both_languages_say_the_same_things_with_the_same_numbers():
    english, japanese = catalogue("en"), catalogue("ja")
    assert set(english) == set(japanese)
    assert {key: fields(text) for key, text in english.items()} == {key: fields(text) for key, text in japanese.items()}
    assert {k for k, v in japanese.items() if v == english[k]} == {"format.energy"}


def test_every_text_is_used():
    folder = resources.files("dpfpl_server.report")
    sources = "".join(path.read_text(encoding="utf-8") for path in folder.joinpath("templates").iterdir())
    sources += "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in ("texts.py", "page.py"))
    looked_up = r"(format|transport|roi|baselines|scores|answer)\..*|.*\.(unit_|short_|brief_|trust_|flag_).*"
    unused = {key for key in catalogue("en") if key.split(".")[1] not in sources and not re.fullmatch(looked_up, key)}
    assert unused == {"left.prompt_recipient_short", "left.other_site_short", "left.operator_short"}


def test_an_unknown_language_is_named():
    with pytest.raises(ConfigError, match="UNKNOWN_LANGUAGE"):
        Texts("fr")


# Colours


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def schemes():
    style = resources.files("dpfpl_server.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    assert len(blocks) == 2
    return [dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", block)) for block in blocks]


def test_colours_have_the_contrast_that_wcag_asks_for():
    """At least 4.5 for text and 3 for what a drawing says (WCAG 2.2, 1.4.3 and 1.4.11), light and dark."""
    for colours in schemes():
        for ground in ("page", "soft"):
            for ink in ("ink", "quiet"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        assert contrast(colours["ink"], colours["warn"]) >= 4.5
        for line in ("line0", "line1", "line2", "bar"):
            assert contrast(colours[line], colours["page"]) >= 3, line


def test_lines_differ_without_any_colour():
    style = resources.files("dpfpl_server.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    dashes = re.findall(r"\.style[12] \{ stroke: var\(--line[12]\); (stroke-dasharray: [0-9 ]+);", style)
    assert len(set(dashes)) == 2


def test_every_drawing_has_words():
    page = render_report(everything(), "en", roi_for(everything()))
    drawings = re.findall(r"<svg[^>]*>", page.replace('<div class="row" aria-hidden="true">', ""))
    assert len(drawings) >= 15
    bare = [drawing for drawing in drawings if 'aria-label="' not in drawing and 'aria-hidden="true"' not in drawing]
    assert bare == ["<svg>"] * 3  # the axes of the dot plots, in rows that are hidden as a whole
    assert page.count('<div class="row" aria-hidden="true">') == 3
    spoken = html.unescape(" ".join(re.findall(r'aria-label="([^"]*)"', page)))
    assert all(f"at {site} " in spoken for site in SITES)
