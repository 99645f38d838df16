"""Return on investment: the arithmetic against a case computed by hand, and inputs that cannot be."""

import tomllib
from importlib import resources

import pytest
from report_samples import BY_HAND

from dpfpl_common.config import build
from dpfpl_common.errors import ConfigError
from dpfpl_server.report.formulas import evaluate, names_in
from dpfpl_server.report.roi import SCENARIOS, STEPS, ErrorRates, Estimate, RoiInputs, scenario

RATES = ErrorRates(before=Estimate(0.15, 0.15, 0.15), after=Estimate(0.11, 0.10, 0.05))


def test_a_case_computed_by_hand():
    """1000 cases x 1.5 minutes = 25 hours x 40 = 1000. 1000 x 0.05 x 0.1 = 5 errors x 200 = 1000. With 50 of new margin
    2050 a month, less 250 = 1800. 9000 / 1800 = month 5. 24 x 1800 - 9000 = 34,200 over 9000 + 24 x 250 = 15,000: 2.28.
    """
    found = scenario("expected", build(RoiInputs, BY_HAND, "roi.toml"), RATES)
    expected = {
        "hours_saved": 25,
        "labour_saved": 1000,
        "errors_avoided": 5,
        "errors_saved": 1000,
        "monthly_benefit": 2050,
        "monthly_net": 1800,
        "net_over_horizon": 34_200,
        "return_on_investment": 2.28,
    }
    assert {name: found.values[name] for name in expected} == pytest.approx(expected)
    assert found.break_even_month == 5
    assert found.cumulative(4) == pytest.approx(-1800)
    assert found.cumulative(5) == pytest.approx(0)


def test_the_three_cases_take_their_own_values():
    inputs = build(RoiInputs, BY_HAND | {"hourly_cost": {"low": 20, "expected": 40, "high": 60}}, "roi.toml")
    cases = {name: scenario(name, inputs, RATES) for name in SCENARIOS}
    assert [cases[name].values["labour_saved"] for name in SCENARIOS] == pytest.approx([500, 1000, 1500])
    assert [cases[name].values["errors_avoided"] for name in SCENARIOS] == pytest.approx([4, 5, 10])
    assert [cases[name].break_even_month for name in SCENARIOS] == [9, 5, 3]  # 1100, 1800, 3300 a month


def test_break_even_is_the_first_month_that_covers_the_cost():
    for cost, month in ((1799, 1), (1800, 1), (1801, 2), (0, 0), (18_000, 10)):
        found = scenario("expected", build(RoiInputs, BY_HAND | {"one_off_cost": cost}, "roi.toml"), RATES)
        assert found.break_even_month == month
        assert found.cumulative(month) >= -1e-9
        assert month == 0 or found.cumulative(month - 1) < 0


def test_a_loss_never_breaks_even():
    inputs = build(RoiInputs, BY_HAND | {"running_cost_per_month": 5000}, "roi.toml")
    found = scenario("expected", inputs, RATES)
    assert found.values["monthly_net"] == pytest.approx(-2950)
    assert found.break_even_month is None
    free = build(RoiInputs, BY_HAND | {"running_cost_per_month": 5000, "one_off_cost": 0}, "roi.toml")
    assert scenario("expected", free, RATES).break_even_month is None


def test_more_errors_than_before_cost_money():
    worse = ErrorRates(before=Estimate(0.1, 0.1, 0.1), after=Estimate(0.2, 0.2, 0.2))
    assert scenario("expected", build(RoiInputs, BY_HAND, "roi.toml"), worse).values["errors_saved"] == pytest.approx(
        -2000
    )


def test_the_companys_own_error_rates_come_first():
    inputs = build(RoiInputs, BY_HAND | {"error_rate_before": 0.3, "error_rate_after": 0.2}, "roi.toml")
    assert scenario("expected", inputs, RATES).values["errors_avoided"] == pytest.approx(10)


def test_nothing_spent_has_no_return_on_it():
    inputs = build(RoiInputs, BY_HAND | {"one_off_cost": 0, "running_cost_per_month": 0}, "roi.toml")
    assert scenario("expected", inputs, RATES).values["return_on_investment"] is None


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"hourly_cost": -1}, "IMPOSSIBLE_VALUE", "hourly_cost is -1"),
        ({"hourly_cost": {"low": -1, "expected": 2, "high": 3}}, "IMPOSSIBLE_VALUE", "[hourly_cost] low is -1"),
        ({"hourly_cost": float("nan")}, "WRONG_TYPE", "hourly_cost"),
        ({"hourly_cost": {"low": 1, "expected": 2}}, "MISSING_KEY", "high"),
        ({"hourly_cost": {"low": 1, "expected": 2, "high": 3, "max": 4}}, "UNKNOWN_KEY", "max"),
        ({"hourly_cost": "60"}, "IMPOSSIBLE_VALUE", "hourly_cost is '60', expected a number"),
        ({"hourly_cost": 1e13}, "IMPOSSIBLE_VALUE", "hourly_cost"),
        ({"hourly_cost": True}, "IMPOSSIBLE_VALUE", "hourly_cost is True"),
        ({"share_of_errors_that_cost": 1.5}, "IMPOSSIBLE_VALUE", "share_of_errors_that_cost"),
        ({"error_rate_after": 12}, "IMPOSSIBLE_VALUE", "error_rate_after"),
        ({"months": 0}, "IMPOSSIBLE_VALUE", "months"),
        ({"months": 10**9}, "IMPOSSIBLE_VALUE", "months"),
        ({"currency": " "}, "IMPOSSIBLE_VALUE", "currency"),
        ({"currency": "x" * 40}, "IMPOSSIBLE_VALUE", "currency"),
        ({"hourly_costs": 1}, "UNKNOWN_KEY", "hourly_costs"),
    ],
)
def test_an_impossible_input_is_named(change, code, named):
    with pytest.raises(ConfigError) as error:
        build(RoiInputs, BY_HAND | change, "roi.toml")
    assert error.value.code == code
    assert named in error.value.message


def test_a_missing_input_is_named():
    table = {key: value for key, value in BY_HAND.items() if key != "hourly_cost"}
    with pytest.raises(ConfigError, match="hourly_cost"):
        build(RoiInputs, table, "roi.toml")


def test_the_template_is_valid_and_each_step_uses_only_what_comes_before():
    text = resources.files("dpfpl_server.report").joinpath("roi_template.toml").read_text(encoding="utf-8")
    inputs = build(RoiInputs, tomllib.loads(text), "roi.toml")
    known = set(scenario("expected", inputs, RATES).values) - {step.name for step in STEPS}
    for step in STEPS:
        assert set(names_in(step.formula)) <= known
        known.add(step.name)


@pytest.mark.parametrize(
    "hostile", ["__import__('os')", "a.__class__()", "(lambda: 1)()", "[1, 2]", "a if b else c", "f'{a}'"]
)
def test_a_formula_is_never_code(hostile):
    with pytest.raises(ValueError, match="no formula"):
        evaluate(hostile, {"a": 1, "b": 2, "c": 3})


def test_missing_values_stay_missing_and_means_leave_them_out():
    values = {"a": 1.0, "b": None, "rows": [{"x": 3}, {"x": None}]}
    assert evaluate("a + b", values) is None
    assert evaluate("a / (a - a)", values) is None
    assert evaluate("mean(rows[0].x, rows[1].x)", values) == 3
    assert evaluate("mean(rows[1].x, rows[2].x)", values) is None
    assert evaluate("count(rows[0].x, rows[1].x)", values) == 1
    assert evaluate("wilson_low(a, b)", values) is None
    assert evaluate('rows[0]["x"] * 2 - -a', values) == 7


def test_wilson_against_published_values():
    """Newcombe, Statistics in Medicine 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    for hits, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        values = {"p": hits / count, "n": count}
        assert evaluate("wilson_low(p, n)", values) == pytest.approx(low, abs=1e-4)
        assert evaluate("wilson_high(p, n)", values) == pytest.approx(high, abs=1e-4)
