"""What federating brought: over each site alone under the same promise, and over the plain text.

A site that does as well alone has no reason to join, so a run's answer begins with this, and a gain counts as shown
where its 95 % interval lies above zero, nowhere else.
"""

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["NOTICEABLE", "RIVALS", "verdict"]

NOTICEABLE = 0.01
"""Whose interval ends below one percentage point did not gain anything that anybody would notice."""

RIVALS = ("local_only", "local_only_evidence", "zero_shot")
"""What federating is compared with, by the names of ``baselines``: each site alone under the same promise, with what
its own vote chooses and with class vectors of its own; the plain text.

Where a run uses the plain text with each site's usual mix of classes, because no class was found or by the votes, that
is a rival as well, ``text``, in place of the plain text: a site has all of it alone, so the gain over it is 0.
"""

NORMAL_95 = 1.959963984540054
COUNTED = {"alone": "local_only_evidence", "zero_shot": "zero_shot", "text": "text"}
UNTRAINED = ("zero_shot", "text")


def verdict(result: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison, ready for JSON, from other keys of the same result.

    Exact accuracies where each site alone was measured on public data, else the sites' noised counts, else what exact
    accuracies there are.

    Returns:
        ``measured``: "accuracies", "counts" or "nothing". ``rivals``: of each its ``name``, and the gain in accuracy
        over it on a site's own images (``local``) and on the others' (``neighbour``), each with ``value`` and
        ``interval`` (None where nobody told how many images were tested). ``says``: "pays", "costs", "not_proven", or
        "unknown" where each site alone was not measured. ``before``, ``after``, ``interval``: accuracy on own images
        of the best rival there, of the federation, and the interval of the difference: what money is computed from.
    """
    exact = _from_accuracies(result)
    told = exact if any(rival["name"] not in UNTRAINED for rival in exact) else _from_counts(result) or exact
    measured = ("accuracies" if told is exact else "counts") if told else "nothing"
    own = [rival for rival in told if rival["local"] is not None]
    # What is used itself, ``text``, comes first among equals: over that there is no chance of a gain.
    best = min(own, key=lambda rival: (rival["local"]["value"], rival["name"] != "text"), default=None)
    interval = None if best is None else best["local"]["interval"]
    if interval is not None and any(rival["name"] == "text" for rival in own):
        interval = [interval[0], min(0.0, interval[1])]
    return {
        "measured": measured,
        "says": _says(told),
        "rivals": told,
        "before": None if best is None else best["local"]["before"],
        "after": None if best is None else best["local"]["before"] + best["local"]["value"],
        "interval": interval,
    }


def _says(rivals: list[dict[str, Any]]) -> str:
    intervals = [
        [rival[column]["interval"] for column in ("local", "neighbour") if rival[column] is not None]
        for rival in rivals
    ]
    known = [of_rival for of_rival in intervals if None not in of_rival]
    if any(max(high for _, high in found) < NOTICEABLE for found in known):
        return "costs"
    if not any(rival["name"] not in UNTRAINED for rival in rivals):
        return "unknown"
    if len(known) < len(rivals):
        return "not_proven"
    ahead = all(max(low for low, _ in found) > 0 and min(high for _, high in found) >= 0 for found in known)
    return "pays" if ahead else "not_proven"


def _from_accuracies(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    images = sum(site.get("test_images") or 0 for site in result["sites"])
    if result["config"].get("task", {}).get("kind") == "caption":
        images = 0  # word overlap is no share of right answers
    ours, rivals = result["accuracy"], []
    for name in RIVALS:
        if name == "zero_shot" and result["chosen"] == "text":
            columns = {column: _no_gain(ours.get(column)) for column in ("local", "neighbour")}
            name = "text"
        else:
            floor = result["baselines"].get(name, {})
            columns = {
                column: _difference(ours.get(column), floor.get(column), images) for column in ("local", "neighbour")
            }
        if columns["local"] is not None:
            rivals.append({"name": name, **columns})
    return rivals


def _no_gain(share: float | None) -> dict[str, Any] | None:
    """Over the very same answers, so there is no chance in it."""
    return None if share is None else {"before": share, "value": 0.0, "interval": [0.0, 0.0]}


def _difference(after: float | None, before: float | None, images: int) -> dict[str, Any] | None:
    """As of two independent samples of so many images: the same images were asked, so the interval is wide enough."""
    if after is None or before is None:
        return None
    half = NORMAL_95 * math.sqrt((after * (1 - after) + before * (1 - before)) / images) if images else None
    interval = None if half is None else [after - before - half, after - before + half]
    return {"before": before, "value": after - before, "interval": interval}


def _from_counts(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Gains of what is used, from noised counts of right answers on the sites' own held-back images."""
    values = {score["candidate"]: score["value"] for score in result["scores"]}
    gains = [(gain["over"], gain["value"], gain["interval"]) for gain in result["gains"] if gain["used"]]
    if result["chosen"] == "text":
        gains = [(over, value, interval) for over, value, interval in gains if over != "zero_shot"]
        gains.insert(0, ("text", 0.0, [0.0, 0.0]))
    return [
        {
            "name": COUNTED[over],
            "local": {"before": values[over], "value": value, "interval": interval},
            "neighbour": None,
        }
        for over, value, interval in gains
        if over in COUNTED and None not in (value, values.get(over))
    ]
