"""Return on investment: the arithmetic against a case computed by hand, the run's error rates, impossible inputs."""

import tomllib
from importlib import resources

import pytest
from report_samples import BY_HAND, everything, make_result, with_counts

from dpfpl_common.config import build
from dpfpl_common.errors import ConfigError
from dpfpl_server.report.roi import INPUTS, RESULTS, SCENARIOS, RoiInputs, calculation, return_on_investment

RATES = {"error_rate_before": 0.15, "error_rate_after": 0.10}


def case(**changes):
    return calculation(BY_HAND | RATES | changes)


def test_a_case_computed_by_hand():
    """1000 cases x 1.5 minutes = 25 hours x 40 = 1000. 1000 x 0.05 x 0.1 = 5 errors x 200 = 1000. With 50 of new margin
    2050 a month, less 250 = 1800. 9000 / 1800 = month 5. 24 x 1800 - 9000 = 34,200 over 9000 + 24 x 250 = 15,000: 2.28.
    """
    found = case()
    assert list(RESULTS) == list(found)[len(BY_HAND | RATES) :]
    assert [found[name] for name in RESULTS] == pytest.approx([25, 1000, 5, 1000, 2050, 1800, 34_200, 2.28, 5])
    assert set(found) == {*INPUTS, *RESULTS}


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({"error_rate_after": 0.25}, "errors_saved", -2000),  # more errors than before cost money
        ({"error_rate_before": 0.3}, "errors_avoided", 20),
        ({"one_off_cost": 1799}, "break_even", 1),
        ({"one_off_cost": 1800}, "break_even", 1),
        ({"one_off_cost": 1801}, "break_even", 2),
        ({"one_off_cost": 18_000}, "break_even", 10),
        ({"one_off_cost": 0}, "break_even", 0),
        ({"running_cost_per_month": 5000}, "monthly_net", -2950),
        ({"running_cost_per_month": 5000}, "break_even", None),  # a loss never breaks even,
        (
            {"running_cost_per_month": 5000, "one_off_cost": 0},
            "break_even",
            None,
        ),  # also where nothing is to be covered
        ({"one_off_cost": 0, "running_cost_per_month": 0}, "return_on_investment", None),
    ],
)
def test_other_cases_by_hand(changes, name, value):
    assert case(**changes)[name] == (value if value is None else pytest.approx(value))


def roi(result, **changes):
    return return_on_investment(result, build(RoiInputs, BY_HAND | changes, "roi.toml"))


def test_the_three_cases_take_their_own_values():
    found = roi(everything(), **RATES, hourly_cost={"low": 20, "expected": 40, "high": 60})
    assert [found["cases"][name]["labour_saved"] for name in SCENARIOS] == pytest.approx([500, 1000, 1500])
    assert [found["cases"][name]["break_even"] for name in SCENARIOS] == [7, 5, 4]  # 1300, 1800, 2300 a month


def test_the_runs_error_rates_follow_the_interval_of_its_gain():
    result = with_counts(everything())
    verdict = result["verdict"]
    low, high = verdict["interval"]
    assert low < verdict["after"] - verdict["before"] < high
    found = roi(result)
    assert found["from_run"] == ["error_rate_before", "error_rate_after"]
    assert {case["error_rate_before"] for case in found["cases"].values()} == {1 - verdict["before"]}
    after = [found["cases"][name]["error_rate_after"] for name in SCENARIOS]
    before = 1 - verdict["before"]
    assert after == pytest.approx([before - low, 1 - verdict["after"], max(0, before - high)])


def test_without_an_interval_the_low_case_gains_nothing():
    cases = roi(everything())["cases"]
    assert cases["low"]["error_rate_after"] == pytest.approx(cases["low"]["error_rate_before"])
    assert cases["high"] == cases["expected"]


def test_the_companys_own_error_rates_come_first():
    found = roi(everything(), error_rate_before=0.3)
    assert found["from_run"] == ["error_rate_after"]
    assert {case["error_rate_before"] for case in found["cases"].values()} == {0.3}
    assert found["cases"]["expected"]["error_rate_after"] == pytest.approx(1 - everything()["verdict"]["after"])


def test_without_accuracies_the_company_must_give_error_rates():
    nothing = make_result(released=())
    assert roi(nothing, **RATES)["cases"]["expected"]["break_even"] == 5
    with pytest.raises(ConfigError) as error:
        roi(nothing)
    assert error.value.code == "NO_ERROR_RATES"
    assert "error_rate_before" in error.value.advice


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


def test_the_template_is_valid():
    text = resources.files("dpfpl_server.report").joinpath("roi_template.toml").read_text(encoding="utf-8")
    build(RoiInputs, tomllib.loads(text), "roi.toml")
