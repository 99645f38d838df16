"""Return on investment for one result: the company's inputs joined to the run's own error rates."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from dpfpl_common.config import ImpossibleError, settings
from dpfpl_common.errors import ConfigError
from dpfpl_server.report.formulas import evaluate

__all__ = [
    "SCENARIOS",
    "STEPS",
    "ErrorRates",
    "Estimate",
    "RoiCase",
    "RoiInputs",
    "Scenario",
    "Step",
    "roi_case",
    "scenario",
]


# Return on investment of a pilot: what the company knows, what the run measured, and every formula between them.
#
# Pure arithmetic. The formulas are data (``STEPS``): the report prints the very text that is computed.


SCENARIOS = ("low", "expected", "high")
"""By what they make of the return: the cautious, the expected and the hopeful case."""

RATES = ("error_rate_before", "error_rate_after")

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


@dataclass(frozen=True)
class ErrorRates:
    """Shares of wrong answers before and after training, in the three cases."""

    before: Estimate
    after: Estimate


@dataclass(frozen=True)
class Step:
    """One line of the calculation.

    Attributes:
        name: of its result, and its key in the report's texts.
        formula: over the inputs and earlier steps.
        unit: ``money``, ``hours``, ``cases``, ``share`` or ``months``.
    """

    name: str
    formula: str
    unit: str


STEPS = (
    Step("hours_saved", "cases_per_month * (minutes_per_case - minutes_per_case_assisted) / 60", "hours"),
    Step("labour_saved", "hours_saved * hourly_cost", "money"),
    Step(
        "errors_avoided",
        "cases_per_month * (error_rate_before - error_rate_after) * share_of_errors_that_cost",
        "cases",
    ),
    Step("errors_saved", "errors_avoided * cost_of_an_error", "money"),
    Step("monthly_benefit", "labour_saved + errors_saved + new_margin_per_month", "money"),
    Step("monthly_net", "monthly_benefit - running_cost_per_month", "money"),
    Step("net_over_horizon", "monthly_net * months - one_off_cost", "money"),
    Step(
        "return_on_investment",
        "net_over_horizon / (one_off_cost + running_cost_per_month * months)",
        "share",
    ),
)
"""The calculation, top to bottom. The break-even month follows: see ``Scenario``."""


@dataclass(frozen=True)
class Scenario:
    """One case, computed.

    Attributes:
        values: inputs and results by name; a result is None where it has no meaning (a division by nothing).
        break_even_month: the first month after whose end the sum of all months covers the one-off cost; 0 if there is
            none to cover; None if it is never covered.
    """

    name: str
    values: Mapping[str, float | None]
    break_even_month: int | None

    def cumulative(self, month: int) -> float:
        """Net amount after so many months, the one-off cost included."""
        return float(month * (self.values["monthly_net"] or 0.0) - (self.values["one_off_cost"] or 0.0))


BREAK_EVEN = "ceiling(one_off_cost / monthly_net)"


def scenario(name: str, inputs: RoiInputs, rates: ErrorRates) -> Scenario:
    """Compute one of ``SCENARIOS``; error rates of ``inputs`` come before those of the run."""
    values: dict[str, float | None] = {"months": float(inputs.months)}
    for field in fields(inputs):
        value = getattr(inputs, field.name)
        if isinstance(value, Estimate):
            values[field.name] = getattr(value, name)
    values.setdefault("error_rate_before", getattr(rates.before, name))
    values.setdefault("error_rate_after", getattr(rates.after, name))
    for step in STEPS:
        values[step.name] = evaluate(step.formula, values)
    net, cost = values["monthly_net"], values["one_off_cost"]
    assert net is not None
    assert cost is not None
    month = 0 if cost <= 0 <= net else evaluate(BREAK_EVEN, values) if net > 0 else None
    return Scenario(name, values, month)


@dataclass(frozen=True)
class RoiCase:
    """The three cases, computed.

    Attributes:
        inputs: from roi.toml.
        scenarios: by the names of ``SCENARIOS``.
        rate_formulas: where each error rate comes from in result.json, by name and case; those that roi.toml gives are
            not in it.
    """

    inputs: RoiInputs
    scenarios: Mapping[str, Scenario]
    rate_formulas: Mapping[str, Mapping[str, str]]

    def values(self) -> dict[str, Any]:
        """What formulas find under ``roi``."""
        return {
            name: {**case.values, "break_even_month": case.break_even_month} for name, case in self.scenarios.items()
        }


def roi_case(result: Mapping[str, Any], inputs: RoiInputs) -> RoiCase:
    """Compute the three cases.

    Raises:
        ConfigError: no site let out its accuracy both before and after, and roi.toml gives no error rates.
    """
    wanted = [name for name in RATES if getattr(inputs, name) is None]
    if wanted and result["verdict"]["before"] is None:
        raise ConfigError(
            code="NO_ERROR_RATES",
            message="No site let out its accuracy both before and after, so the run has no error rates.",
            advice="Give error_rate_before and error_rate_after in roi.toml.",
        )
    proven = result["verdict"]["interval"] is not None
    ends = {"low": "interval[0]", "high": "interval[1]"} if proven else {}
    rates = {
        "error_rate_before": dict.fromkeys(SCENARIOS, "1 - verdict.before"),
        "error_rate_after": {
            "low": "1 - verdict.before",  # no gain, unless an interval says otherwise
            "expected": "1 - verdict.after",
            "high": "1 - verdict.after",
            **{case: f"min(1, max(0, 1 - verdict.before - verdict.{end}))" for case, end in ends.items()},
        },
    }
    formulas = {name: rates[name] for name in wanted}
    known = {
        name: Estimate(**{case: float(evaluate(formulas[name][case], result)) for case in SCENARIOS})
        if name in formulas
        else getattr(inputs, name)
        for name in RATES
    }
    errors = ErrorRates(known["error_rate_before"], known["error_rate_after"])
    return RoiCase(inputs, {name: scenario(name, inputs, errors) for name in SCENARIOS}, formulas)
