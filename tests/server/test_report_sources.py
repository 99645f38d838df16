"""Every number of the report is followed back to result.json, in both languages, by an evaluator of its own."""

import copy
import html
import json
import math
import re
import statistics
import string
import tomllib
from importlib import resources

import pytest
from report_samples import BY_HAND, SITES, answer, make_result, plain

from dpfpl_common.config import build
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import parse_experiment
from dpfpl_server.report import read_roi, render_report, write_report
from dpfpl_server.report.facts import stopped_after
from dpfpl_server.report.formulas import wilson
from dpfpl_server.report.roi import STEPS, RoiInputs
from dpfpl_server.report.texts import Texts
from dpfpl_server.runs.result import privacy_statement
from dpfpl_server.runs.verdict import verdict
from dpfpl_server.runs.words import FLOORS

NUMBER = re.compile(r'<data value="([^"]*)" data-from="([^"]*)">(.*?)</data>', re.DOTALL)


class Missing:
    """What is not there; whatever is computed with it is not there either."""

    def __getattr__(self, name):
        return self

    def _same(self, *others):
        return self

    __getitem__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _same


MISSING = Missing()


class Row(dict):
    """A dictionary whose keys are attributes, for Python's own evaluator."""

    def __getattr__(self, name):
        return self[name]

    def __missing__(self, key):
        return MISSING


class Rows(list):
    """A list that holds nothing behind its end."""

    def __getitem__(self, index):
        return super().__getitem__(index) if index < len(self) else MISSING


def rows(value):
    if isinstance(value, dict):
        return Row({key: rows(inner) for key, inner in value.items()})
    if isinstance(value, list):
        return Rows(map(rows, value))
    return MISSING if value is None else value


def present(function, empty=MISSING):
    def applied(*values):
        there = [value for value in values if value is not MISSING]
        return function(there) if there else empty

    return applied


BY_PYTHON = {
    "mean": present(statistics.fmean),
    "median": present(statistics.median),
    "sum": present(sum, 0),
    "min": present(min),
    "max": present(max),
    "count": present(len, 0),
    "size": lambda value: value if value is MISSING else len(value),
    "ceiling": math.ceil,
    "posterior": lambda e: math.exp(e) / (1 + math.exp(e)) if e < 600 else 1.0,
    "wilson_low": lambda p, n: MISSING if MISSING in (p, n) else wilson(p, n)[0],
    "wilson_high": lambda p, n: MISSING if MISSING in (p, n) else wilson(p, n)[1],
}


def everything():
    """A result in which every section has something to say."""
    result = make_result(
        rounds=5,
        dropped={2: {"west": "NO_REPLY"}},
        extra_floors={"local_only": {"local": 0.8, "neighbour": 0.3}, "centralised": {"local": 0.7, "neighbour": 0.7}},
    )
    result["audit"] = [
        {
            "attack": "canary",
            "adversary": "operator",
            "epsilon_lower_bound": 0.31,
            "epsilon_claimed": 2.0,
            "confidence": 0.95,
        }
    ]
    return result


CASES = {
    "everything": everything,
    "counts known": lambda: counted(everything()),
    "no metrics": lambda: make_result(released=()),
    "some metrics": lambda: make_result(released=("north",)),
    "central": lambda: make_result(privacy={"trust": "central"}),
    "sampled": lambda: make_result(privacy={"unit": "site", "trust": "central", "site_sample_rate": 0.5}),
    "no noise": lambda: make_result(privacy={"noise_multiplier": 0.0}),
    "simulation": lambda: make_result(real_noise=False, transport="in_process"),
    "no round": lambda: make_result(completed=0, final={}),
}


def counted(result):
    for number, site in enumerate(result["sites"]):
        site["test_images"] = 40 + number
    return result | {"verdict": verdict(result)}


def with_roi(result):
    table = BY_HAND | {"hourly_cost": {"low": 20, "expected": 40, "high": 60}}
    known = {} if result["verdict"]["before"] is not None else {"error_rate_before": 0.2, "error_rate_after": 0.1}
    return build(RoiInputs, table | known, "roi.toml")


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("case", CASES)
def test_every_number_follows_from_result_json(case, language):
    result = CASES[case]()
    page = render_report(result, language, with_roi(result))
    values = rows(json.loads(json.dumps(result)) | {"stopped_after": stopped_after(result)})
    values["roi"] = Row({name: roi_values(page, name) for name in ("low", "expected", "high")})
    found = NUMBER.findall(page)
    assert len(found) > 30
    for shown_value, formula, shown in found:
        formula = html.unescape(formula)
        if formula.startswith("roi."):
            continue  # see test_the_calculation_is_recomputed_from_its_own_formulas
        expected = None if shown_value == "" else json.loads(html.unescape(shown_value))
        computed = eval(formula, {"__builtins__": {}}, {**BY_PYTHON, **values})
        computed = None if computed is MISSING else computed
        assert computed == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected), formula
        check_shown(plain(shown), expected, formula)


def check_shown(shown, value, formula):
    """The digits on the page are the value's."""
    if value is None:
        assert shown == "–", formula
        return
    if value == "infinite":
        assert shown == "∞"
        return
    if "分" in shown or "min" in shown or "1 in" in shown or isinstance(value, str):
        return
    digits = float(re.sub(r"[^0-9.e+-]", "", shown.replace(",", "")))
    scales = (1, 100, 1e-3, 1e-6, 1e-9)
    assert any(digits == pytest.approx(value * scale, rel=0.06, abs=0.051) for scale in scales), (shown, value, formula)


def roi_values(page, name):
    found = {}
    for value, formula, _ in NUMBER.findall(page):
        if formula.startswith(f"roi.{name}.") and value:
            found[formula.split(".")[2]] = json.loads(html.unescape(value))
    return Row(found)


@pytest.mark.parametrize("name", ["low", "expected", "high"])
def test_the_calculation_is_recomputed_from_its_own_formulas(name):
    result = counted(everything())
    page = render_report(result, "en", with_roi(result))
    shown = roi_values(page, name)
    found = result["verdict"]
    low, high = found["interval"]
    assert low < found["after"] - found["before"] < high
    gain = {"low": low, "expected": found["after"] - found["before"], "high": high}[name]
    shown["error_rate_before"] = 1 - found["before"]
    shown["error_rate_after"] = min(1, max(0, 1 - found["before"] - gain))
    for step in STEPS:
        assert html.escape(step.formula) in page
        assert shown[step.name] == pytest.approx(eval(step.formula, {"__builtins__": {}}, dict(shown))), step.name


def test_no_number_stands_on_the_page_without_its_source():
    """Outside the marked numbers there is no digit but in fixed words, names, drawings and the folded settings."""
    for language in ("en", "ja"):
        result = everything()
        page = render_report(result, language, with_roi(result))
        body = page[page.index("<main>") : page.rindex("<section>")]  # without the folded settings at the end
        body = re.sub(r"<svg.*?</svg>|<code>.*?</code>|<ul class=\"legend\">.*?</ul>", "", body, flags=re.DOTALL)
        words = plain(NUMBER.sub("", body))
        for fixed in (
            "95 %",
            "95%",
            "100 %",
            "100%",
            "0.1 秒",
            "1 件",
            "1 回",
            "1 枚",
            "1 時間",
            "1 ラウンド",
            "1 から",
            "5 ポイント",
            "3 程度",
            "1 台",
            "（1 ",
        ):
            words = words.replace(fixed, "")
        assert re.findall(r"[^\n]*[0-9][^\n]*", words) == []


@pytest.mark.privacy
def test_what_fewer_rounds_would_have_cost_is_the_accountants():
    result = everything()
    experiment = parse_experiment(json.dumps(result["config"]))
    stops = stopped_after(result)
    assert [stop["rounds"] for stop in stops][-1] == 5
    for stop in stops:
        expected = privacy_statement(experiment, stop["rounds"])["epsilons"]
        for entry in expected:
            assert stop[entry["adversary"]] == entry["epsilon"]
    last = {entry["adversary"]: entry["epsilon"] for entry in result["privacy"]["epsilons"]}
    assert {key: stops[-1][key] for key in last} == last


@pytest.mark.privacy
def test_epsilon_in_words_is_never_less_than_what_it_allows():
    """At even odds before, e^epsilon / (1 + e^epsilon) after, rounded up."""
    for noise in (2.0, 40.0):
        result = make_result(privacy={"noise_multiplier": noise})
        page = render_report(result)
        sure = [float(s) for s in re.findall(r"at most ([0-9.]+) % sure", plain(page))]
        assert len(sure) == 3
        for shown, entry in zip(sure, result["privacy"]["epsilons"], strict=True):
            exact = 100 / (1 + math.exp(-entry["epsilon"]))
            assert exact <= shown <= min(100, exact + 0.11)
        assert ("comes near 100 %" in page) == any(s > 95 for s in sure)
        assert "1 in 100,000" in plain(page)


def test_intervals_only_where_counts_are_known():
    unknown = render_report(everything())
    assert "95 % interval after" not in unknown
    assert "is private, so no interval can be stated" in unknown
    known = render_report(counted(everything()))
    assert "is private, so no interval" not in known
    low, high = wilson(everything()["sites"][0]["local"], 40)
    assert f"{100 * low:.1f} to {100 * high:.1f} %" in plain(known)


def test_rounded_accuracies_are_called_rounded():
    result = everything()
    assert "may be rounding" not in render_report(result)
    for site in result["sites"]:
        site |= {"before": 0.55, "local": 0.9, "global": 0.6}
    assert "may be rounding" in render_report(result)


def test_the_audit_is_shown_if_there_was_one_and_missed_if_there_was_none():
    assert "canary" in render_report(everything())
    assert "No attack was run" in render_report(make_result())


# Return on investment on the page


def test_the_answer_says_when_it_has_paid_for_itself():
    result = everything()
    inputs = build(RoiInputs, BY_HAND | {"error_rate_before": 0.15, "error_rate_after": 0.1}, "roi.toml")
    assert "it pays for itself by month 5 in the expected case" in answer(render_report(result, "en", inputs))
    assert "5か月目までに投資を回収" in answer(render_report(result, "ja", inputs))
    poor = build(RoiInputs, BY_HAND | {"running_cost_per_month": 10**6}, "roi.toml")
    assert "does not pay for itself" in answer(render_report(result, "en", poor))
    assert "never" in plain(render_report(result, "en", poor))
    free = build(RoiInputs, BY_HAND | {"one_off_cost": 0}, "roi.toml")
    assert "costs nothing up front" in answer(render_report(result, "en", free))


def test_what_pays_only_after_the_months_considered_is_not_sold_as_a_gain():
    slow = build(
        RoiInputs, BY_HAND | {"one_off_cost": 9000, "months": 3, "error_rate_before": 0.15, "error_rate_after": 0.1}, ""
    )
    page = render_report(everything(), "en", slow)
    assert "does not pay for itself within the 3 months considered, but only by month 5" in answer(page)
    assert "5, after the months considered" in plain(page)
    assert "3か月以内には投資を回収できず、回収は 5か月目" in answer(render_report(everything(), "ja", slow))


def test_a_calculation_of_nothing_but_zeros_is_drawn():
    nothing = dict.fromkeys((k for k, v in BY_HAND.items() if isinstance(v, int | float) and k != "months"), 0)
    page = render_report(everything(), "en", build(RoiInputs, BY_HAND | nothing, "roi.toml"))
    assert "costs nothing up front" in answer(page)


def test_an_attack_that_beats_the_claim_is_not_a_plain_row():
    result = everything()
    assert "above the claim. The claim is wrong" not in plain(render_report(result))
    result["audit"][0] |= {"epsilon_lower_bound": 30.0, "epsilon_claimed": 8.0}
    assert "30.00: above the claim. The claim is wrong" in plain(render_report(result))


def test_without_accuracies_the_company_must_give_error_rates():
    with pytest.raises(ConfigError) as error:
        render_report(make_result(released=()), "en", build(RoiInputs, BY_HAND, "roi.toml"))
    assert error.value.code == "NO_ERROR_RATES"
    assert "error_rate_before" in error.value.advice


def test_the_origin_of_error_rates_is_said():
    result = everything()
    run = plain(render_report(result, "en", build(RoiInputs, BY_HAND, "roi.toml")))
    assert "this run's own" in run
    both = build(RoiInputs, BY_HAND | {"error_rate_before": 0.2, "error_rate_after": 0.1}, "roi.toml")
    company = plain(render_report(result, "en", both))
    assert "this run's own" not in company
    assert "come from roi.toml, not from this run" in company
    one = plain(render_report(result, "en", build(RoiInputs, BY_HAND | {"error_rate_before": 0.2}, "roi.toml")))
    assert "this run's own" in one
    assert "The other error rate comes from roi.toml" in one


# Languages


def catalogue(language):
    text = resources.files("dpfpl_server.report").joinpath(f"texts_{language}.toml").read_text(encoding="utf-8")
    return {f"{s}.{k}": v for s, table in tomllib.loads(text).items() for k, v in table.items()}


def test_both_languages_say_the_same_things_with_the_same_numbers():
    def fields(text):
        return sorted(field for _, field, _, _ in string.Formatter().parse(text) if field is not None)

    english, japanese = catalogue("en"), catalogue("ja")
    assert set(english) == set(japanese)
    assert {key: fields(text) for key, text in english.items()} == {key: fields(text) for key, text in japanese.items()}
    untranslated = {k for k, v in japanese.items() if v == english[k]} - {"format.points", "format.energy"}
    assert untranslated == set()


def test_the_japanese_page_is_japanese_and_holds_the_same_numbers():
    result = everything()
    english, japanese = (render_report(result, language, with_roi(result)) for language in ("en", "ja"))
    assert '<html lang="ja">' in japanese
    formulas = [[formula for _, formula, _ in NUMBER.findall(page)] for page in (english, japanese)]
    assert sorted(formulas[0]) == sorted(formulas[1])
    text = plain(japanese[japanese.index("<main>") : japanese.rindex("<section>")])
    assert re.findall(r"(?:[A-Za-z]{2,} ){3,}[A-Za-z]+", text) == []  # no English sentence left


def test_every_text_is_used():
    sources = "".join(
        path.read_text(encoding="utf-8")
        for path in resources.files("dpfpl_server.report").iterdir()
        if path.name.endswith(".py")
    )
    for key in catalogue("en"):
        section, name = key.split(".")
        used = (
            name in sources
            or section in ("format", "transport", "roi")
            or name.startswith(("unit_", "short_", "brief_", "trust_", "verdict_", "flag_"))
            or name.removesuffix("_meaning") in FLOORS
        )
        assert used or name.endswith("_short"), key


def test_an_unknown_language_is_named():
    with pytest.raises(ConfigError, match="UNKNOWN_LANGUAGE"):
        Texts("fr")


def test_the_japanese_report_lies_beside_the_english_one(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(everything()))
    assert [write_report(tmp_path, language).name for language in ("en", "ja")] == ["report.html", "report.ja.html"]
    assert write_report(tmp_path, "ja", out=tmp_path / "x.html").name == "x.html"
    with pytest.raises(ConfigError, match="FILE_MISSING"):
        read_roi(tmp_path / "roi.toml")


# Colours


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2], linear


def contrast(one, other):
    bright, dark = sorted((luminance(one)[0], luminance(other)[0]), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def schemes():
    style = resources.files("dpfpl_server.report").joinpath("report.css").read_text(encoding="utf-8")
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


DEFICIENCIES = {  # Machado, Oliveira, Fernandes 2009, severity 1.0, on linear RGB
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_before_and_after_differ_for_the_colour_blind(deficiency):
    """The two colours that a drawing sets against each other; a third line is told apart by its dashes as well."""
    for colours in schemes():
        seen = [
            [sum(row[k] * luminance(colours[name])[1][k] for k in range(3)) for row in DEFICIENCIES[deficiency]]
            for name in ("line0", "line1")
        ]
        assert math.dist(*seen) > 0.15, (deficiency, colours)


def test_lines_differ_without_any_colour():
    style = resources.files("dpfpl_server.report").joinpath("report.css").read_text(encoding="utf-8")
    dashes = re.findall(r"\.style[12] \{ stroke: var\(--line[12]\); (stroke-dasharray: [0-9 ]+);", style)
    assert len(set(dashes)) == 2


def test_every_drawing_has_words():
    page = render_report(everything(), "en", with_roi(everything()))
    drawings = re.findall(r"<svg[^>]*>", page)
    assert len(drawings) >= 5
    assert all('aria-label="' in drawing or 'aria-hidden="true"' in drawing for drawing in drawings)
    spoken = html.unescape(" ".join(re.findall(r'aria-label="([^"]*)"', page)))
    for site in SITES:
        assert f"{site} " in spoken


def test_rendering_leaves_the_result_as_it_is():
    result = everything()
    before = copy.deepcopy(result)
    render_report(result, "ja", with_roi(result))
    assert result == before
