"""Return on investment of a pilot: the company's inputs, the run's own error rates, and the arithmetic between them."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from dpfpl_common.config import ImpossibleError, settings
from dpfpl_common.errors import ConfigError

__all__ = ["INPUTS", "RESULTS", "SCENARIOS", "Estimate", "RoiInputs", "calculation", "return_on_investment"]

SCENARIOS = ("low", "expected", "high")
"""By what they make of the return: the cautious, the expected and the hopeful case."""

LARGEST_AMOUNT = 1e12
"""More cases, minutes or money than this are a slip of the pen."""


@settings
class Estimate:
    """One input in the three cases; ``low`` is what makes the return low, which for a cost is the larger value."""

    low: float
    expected: float
    high: float


def _spread(value: object) -> object:
    """A plain number stands for all three cases."""
    if isinstance(value, Mapping | Estimate | None):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return dict.fromkeys(SCENARIOS, value)
    raise ImpossibleError("", value, "a number without quotes, or three: { low = 1, expected = 2, high = 3 }")


def _up_to(top: float) -> AfterValidator:
    def check(estimate: Estimate) -> Estimate:
        for case in SCENARIOS:
            value = getattr(estimate, case)
            if not 0 <= value <= top:
                key = case if len({estimate.low, estimate.expected, estimate.high}) > 1 else ""
                raise ImpossibleError(key, value, f"a number from 0 to {top:g}")
        return estimate

    return AfterValidator(check)


def _currency(text: str) -> str:
    if not (text.strip() and text.isprintable() and len(text) <= 12):
        raise ImpossibleError("", text, "a short text such as EUR or JPY")
    return text


Amount = Annotated[Estimate, BeforeValidator(_spread), _up_to(LARGEST_AMOUNT)]
Share = Annotated[Estimate, BeforeValidator(_spread), _up_to(1.0)]


@settings
class RoiInputs:
    """roi.toml: what only the company knows.

    Attributes:
        currency: as amounts are written.
        months: horizon of the calculation.
        cases_per_month: images that somebody judges.
        minutes_per_case: of working time today.
        minutes_per_case_assisted: of working time with the classifier's proposal on the screen.
        hourly_cost: of that working time, with overheads.
        cost_of_an_error: of a wrong judgement that has consequences.
        share_of_errors_that_cost: of the classifier's wrong proposals, those that nobody catches in time, 0 to 1.
        new_margin_per_month: of business that becomes possible.
        one_off_cost: of the roll-out: integration, training, approval.
        running_cost_per_month: of operation and support.
        error_rate_before: replaces the run's own, of the best way without a federation, for instance by people's.
        error_rate_after: replaces the run's own error rate of the learned prompt.
    """

    cases_per_month: Amount
    minutes_per_case: Amount
    minutes_per_case_assisted: Amount
    hourly_cost: Amount
    cost_of_an_error: Amount
    share_of_errors_that_cost: Share
    one_off_cost: Amount
    running_cost_per_month: Amount
    new_margin_per_month: Amount = Estimate(0.0, 0.0, 0.0)
    error_rate_before: Share | None = None
    error_rate_after: Share | None = None
    currency: Annotated[str, AfterValidator(_currency)] = "EUR"
    months: Annotated[int, Field(ge=1, le=600)] = 36


RESULTS = {
    "hours_saved": "hours",
    "labour_saved": "money",
    "errors_avoided": "cases",
    "errors_saved": "money",
    "monthly_benefit": "money",
    "monthly_net": "money",
    "net_over_horizon": "money",
    "return_on_investment": "share",
    "break_even": "months",
}
"""What is computed, with its unit, in the order of the calculation. The report's texts say each in words."""

INPUTS = {
    "cases_per_month": "cases",
    "minutes_per_case": "minutes",
    "minutes_per_case_assisted": "minutes",
    "hourly_cost": "money",
    "error_rate_before": "share",
    "error_rate_after": "share",
    "share_of_errors_that_cost": "share",
    "cost_of_an_error": "money",
    "new_margin_per_month": "money",
    "one_off_cost": "money",
    "running_cost_per_month": "money",
    "months": "months",
}


def calculation(inputs: Mapping[str, float]) -> dict[str, float | None]:
    """One case: the inputs by the names of ``INPUTS``, and beside them what follows, by those of ``RESULTS``.

    ``return_on_investment`` is None where nothing is spent. ``break_even`` is the first month after whose end the sum
    of all months covers the one-off cost: 0 if there is none to cover, None if it is never covered.
    """
    i = inputs
    hours = i["cases_per_month"] * (i["minutes_per_case"] - i["minutes_per_case_assisted"]) / 60
    fewer_errors = i["error_rate_before"] - i["error_rate_after"]
    errors = i["cases_per_month"] * fewer_errors * i["share_of_errors_that_cost"]
    labour, avoided = hours * i["hourly_cost"], errors * i["cost_of_an_error"]
    benefit = labour + avoided + i["new_margin_per_month"]
    net, cost = benefit - i["running_cost_per_month"], i["one_off_cost"]
    spent = cost + i["running_cost_per_month"] * i["months"]
    whole = net * i["months"] - cost
    month = 0 if cost <= 0 <= net else math.ceil(round(cost / net, 9)) if net > 0 else None
    values = (hours, labour, errors, avoided, benefit, net, whole, whole / spent if spent else None, month)
    return {**inputs, **dict(zip(RESULTS, values, strict=True))}


def return_on_investment(result: Mapping[str, Any], inputs: RoiInputs) -> dict[str, Any]:
    """The calculation in the three cases, by the names of ``SCENARIOS``.

    Error rates that roi.toml does not give are the run's own. The one before is that of the best way without a
    federation. The ones after lie, in the low and the high case, at the ends of the gain's interval; without an
    interval the low case has no gain. ``from_run`` names them.

    Raises:
        ConfigError: no site released its accuracy both before and after, and roi.toml gives no error rates.
    """
    found = result["verdict"]
    from_run = [name for name in ("error_rate_before", "error_rate_after") if getattr(inputs, name) is None]
    if from_run and found["before"] is None:
        raise ConfigError(
            code="NO_ERROR_RATES",
            message="No site released its accuracy both before and after, so the run has no error rates.",
            advice="Give error_rate_before and error_rate_after in roi.toml.",
        )
    cases: dict[str, dict[str, float | None]] = {}
    for case, end in zip(SCENARIOS, (0, None, 1), strict=True):
        values = {"months": float(inputs.months)}
        for field in fields(inputs):
            if isinstance(value := getattr(inputs, field.name), Estimate):
                values[field.name] = getattr(value, case)
        if from_run:
            before, gain = found["before"], found["after"] - found["before"]
            if end is not None and found["interval"] is not None:
                gain = found["interval"][end]
            elif case == "low":
                gain = 0.0
            values.setdefault("error_rate_before", 1 - before)
            values.setdefault("error_rate_after", min(1.0, max(0.0, 1 - before - gain)))
        cases[case] = calculation(values)
    return {"cases": cases, "currency": inputs.currency, "months": inputs.months, "from_run": from_run}
