"""What the sections of the report ask of a result, beside its numbers."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from dpfpl_common.config import build
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.accounting import PrivacyEvent, epsilon, json_epsilon
from dpfpl_common.privacy_plan import planned_events
from dpfpl_server.report.figures import key_path

__all__ = ["called", "mean_after", "paired_sites", "site_sample_rate", "stopped_after"]

Result = Mapping[str, Any]
SHOWN_STOPS = 4


def called(function: str, formulas: Sequence[str]) -> str:
    """The formula that applies a function to several others."""
    return f"{function}({', '.join(formulas)})"


def paired_sites(result: Result, before: str = "before", after: str = "local") -> list[int]:
    """Places of the sites that reported an accuracy both before and after."""
    return [i for i, s in enumerate(result["sites"]) if s.get(before) is not None and s.get(after) is not None]


def site_sample_rate(result: Result) -> float:
    """Chance that a site joined a round; 1 where sites were not sampled."""
    return float(result["config"].get("privacy", {}).get("site_sample_rate", 1.0))


def mean_after(result: Result, completed: int) -> str:
    """The formula for the mean accuracy on own classes after so many rounds.

    A site evaluates the prompt as it arrives, so what belongs to ``completed`` rounds stands in the next one.
    """
    if completed >= len(result["rounds"]):
        return "accuracy.local"
    metrics = f"rounds[{completed}].metrics"
    return called("mean", [f"{key_path(metrics, site['name'])}.personal_local" for site in result["sites"]])


def stopped_after(result: Result) -> list[dict[str, Any]]:
    """What the accountant would charge after fewer rounds: number of rounds, and epsilon by adversary.

    Empty where the configuration is not one that this version can plan with.
    """
    completed = len(result["rounds"])
    if not completed:
        return []
    try:
        experiment = build(Experiment, result["config"], "result.json config")
        steps = experiment.rounds.local_steps
        delta = experiment.privacy.target_delta
        stops = sorted({max(1, round(completed * part / SHOWN_STOPS)) for part in range(1, SHOWN_STOPS + 1)})
        earlier = [
            {
                "rounds": stop,
                **{e.adversary: _epsilon(e, delta) for e in planned_events(experiment, stop * steps)},
            }
            for stop in stops[:-1]
        ]
    except (ConfigError, ValueError):
        return []
    whole = {entry["adversary"]: entry["epsilon"] for entry in result["privacy"]["epsilons"]}
    return [*earlier, {"rounds": completed, **whole}]


@lru_cache(maxsize=256)
def _epsilon(event: PrivacyEvent, delta: float) -> float | str:
    return json_epsilon(epsilon([event], delta))
