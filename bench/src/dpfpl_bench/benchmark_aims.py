"""What the default settings were to reach on the built-in sets, beside what they reached: the page's first table."""

import statistics
from collections.abc import Mapping
from typing import Any

from dpfpl_bench.sweep import SweepOutcome

__all__ = ["aims_section"]

LOSS, NEAR, KEPT = 2.0, 2.0, 80.0
"""Points of own accuracy that epsilon 2 may cost; points that the others' may lie below zero-shot; percent of the gain
on own classes to keep meanwhile."""
Results = Mapping[float | None, list[Mapping[str, Any]]]


def aims_section(outcomes: Mapping[str, SweepOutcome]) -> str:
    """The section; a set whose runs of the default settings are not there is left out."""
    lines = [
        "## What was aimed at",
        "",
        "With the default settings, means over seeds, points of accuracy.",
        "",
        "| aim | set | measured | reached |",
        "|---|---|---|---|",
    ]
    for data in ("digits", "shapes"):
        results = _by_epsilon(outcomes.get(f"{data}-default", SweepOutcome()))
        if None in results and 2.0 in results:
            lines += [
                f"| {aim} | {data} | {measured} | {'yes' if ok else 'no'} |" for aim, measured, ok in _aims(results)
            ]
    return "\n".join(lines) + "\n"


def _aims(results: Results) -> list[tuple[str, str, bool]]:
    noisy = {epsilon: runs for epsilon, runs in results.items() if epsilon is not None}
    loss = _own(results[None]) - _own(results[2.0])
    gains = {epsilon: _own(runs) - _floor(runs, "zero_shot") for epsilon, runs in noisy.items()}
    ahead = {epsilon: _own(runs) - _floor(runs, "local_only") for epsilon, runs in noisy.items()}
    kept = {epsilon: _gain_kept(runs) for epsilon, runs in noisy.items()}
    return [
        (f"epsilon 2 costs at most {LOSS:g} points of own accuracy against no noise", f"{loss:.1f}", loss <= LOSS),
        ("never below zero-shot on own classes", _each(gains, "+.1f"), min(gains.values()) >= 0),
        ("ahead of each site alone under the same promise", _each(ahead, "+.1f"), min(ahead.values()) > 0),
        (
            f"with the strength that keeps the others' within {NEAR:g} points of zero-shot: at least {KEPT:g} % of the "
            "gain on own classes",
            _each(kept, ".0f", " %"),
            min(kept.values()) >= KEPT,
        ),
    ]


def _gain_kept(runs: list[Mapping[str, Any]]) -> float:
    """Percent of the full strength's gain at the best strength whose others' accuracy is near zero-shot's."""
    zero_own, zero_others = _floor(runs, "zero_shot"), _floor(runs, "zero_shot", "neighbour")
    points = [
        {key: 100 * statistics.mean(float(point[key]) for point in same) for key in ("local", "neighbour")}
        for same in zip(*(run["strength_curve"] for run in runs), strict=True)
    ]
    near = [point["local"] - zero_own for point in points if point["neighbour"] >= zero_others - NEAR]
    whole = _own(runs) - zero_own
    return 100 * max(near, default=0.0) / whole if whole > 0 else 0.0


def _by_epsilon(outcome: SweepOutcome) -> Results:
    found: dict[float | None, list[Mapping[str, Any]]] = {}
    for cell, result in outcome.results.items():
        found.setdefault(cell.epsilon, []).append(result)
    return found


def _own(runs: list[Mapping[str, Any]]) -> float:
    return 100 * statistics.mean(float(run["accuracy"]["local"]) for run in runs)


def _floor(runs: list[Mapping[str, Any]], floor: str, where: str = "local") -> float:
    return 100 * statistics.mean(float(run["floors"][floor][where]) for run in runs)


def _each(values: Mapping[float, float], form: str, unit: str = "") -> str:
    """As ``+1.0 (epsilon 8), -0.2 (4)``."""
    shown = [f"{value:{form}}{unit} ({epsilon:g})" for epsilon, value in sorted(values.items(), reverse=True)]
    return ", ".join(shown).replace("(", "(epsilon ", 1)
