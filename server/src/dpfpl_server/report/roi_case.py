"""Return on investment for one result: the company's inputs joined to the run's own error rates."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dpfpl_common.errors import ConfigError
from dpfpl_server.formulas import evaluate
from dpfpl_server.report.facts import called, paired_sites
from dpfpl_server.roi import SCENARIOS, ErrorRates, Estimate, RoiInputs, Scenario, scenario

__all__ = ["RoiCase", "roi_case"]


@dataclass(frozen=True)
class RoiCase:
    """The three cases, computed.

    Attributes:
        inputs: from roi.toml.
        scenarios: by the names of ``SCENARIOS``.
        rate_formulas: where each error rate comes from in result.json, by name and case; those that roi.toml gives are
            not in it.
        least, most: the sites that gained least and most, for the low and the high case; empty if not used.
    """

    inputs: RoiInputs
    scenarios: Mapping[str, Scenario]
    rate_formulas: Mapping[str, Mapping[str, str]]
    least: str
    most: str

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
    given = {field.name for field in fields(inputs) if getattr(inputs, field.name) is not None}
    wanted = [name for name in ("error_rate_before", "error_rate_after") if name not in given]
    paired = paired_sites(result)
    if not wanted:
        nothing = Estimate(0.0, 0.0, 0.0)
        rates = ErrorRates(nothing, nothing)
        return RoiCase(inputs, {name: scenario(name, inputs, rates) for name in SCENARIOS}, {}, "", "")
    if not paired:
        raise ConfigError(
            code="NO_ERROR_RATES",
            message="No site let out its accuracy both before and after, so the run has no error rates.",
            advice="Give error_rate_before and error_rate_after in roi.toml.",
        )
    sites = result["sites"]
    by_gain = sorted(paired, key=lambda i: sites[i]["local"] - sites[i]["before"])
    formulas = {
        "error_rate_before": _formulas(by_gain, "before"),
        "error_rate_after": _formulas(by_gain, "local"),
    }
    rates = ErrorRates(
        *(Estimate(*(float(evaluate(formulas[name][case], result)) for case in SCENARIOS)) for name in formulas)
    )
    return RoiCase(
        inputs,
        {name: scenario(name, inputs, rates) for name in SCENARIOS},
        {name: formulas[name] for name in wanted},
        sites[by_gain[0]]["name"],
        sites[by_gain[-1]]["name"],
    )


def _formulas(by_gain: list[int], key: str) -> dict[str, str]:
    everybody = called("mean", [f"sites[{i}].{key}" for i in sorted(by_gain)])
    return {
        "low": f"1 - sites[{by_gain[0]}].{key}",
        "expected": f"1 - {everybody}",
        "high": f"1 - sites[{by_gain[-1]}].{key}",
    }
