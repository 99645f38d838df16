"""Accuracies over the rounds, read from a result."""

from collections.abc import Mapping
from typing import Any

__all__ = ["Curve", "mean_curve", "site_curve"]

Curve = dict[int, float]
"""Accuracy by number of completed rounds."""

FINAL_KEYS = {"personal_local": "local", "personal_neighbour": "neighbour", "global_local": "global"}


def site_curve(result: Mapping[str, Any], site: str, metric: str) -> Curve:
    """One site's accuracies, where it reported them.

    A site evaluates the prompt as it arrives, so the metrics of round k belong to k - 1 completed rounds; the result's
    ``sites`` hold the accuracies after the last one.

    Args:
        result: as ``build_result`` makes it.
        site: its name.
        metric: ``personal_local``, ``personal_neighbour`` or ``global_local``.
    """
    curve: Curve = {}
    for entry in result["rounds"]:
        value = entry.get("metrics", {}).get(site, {}).get(metric)
        if value is not None:
            curve[entry["round"] - 1] = value
    for row in result["sites"]:
        value = row.get(FINAL_KEYS[metric])
        if row["name"] == site and value is not None:
            curve[len(result["rounds"])] = value
    return curve


def mean_curve(result: Mapping[str, Any], metric: str) -> Curve:
    """Mean over the sites that reported, at each number of completed rounds at which any did."""
    values: dict[int, list[float]] = {}
    for row in result["sites"]:
        for completed, value in site_curve(result, row["name"], metric).items():
            values.setdefault(completed, []).append(value)
    return {completed: sum(found) / len(found) for completed, found in sorted(values.items())}
