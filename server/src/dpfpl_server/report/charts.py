"""Line charts as inline SVG, and the curves and axes that they show: no script, colours from the page's style."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

__all__ = ["Curve", "Line", "line_chart", "mean_curve", "site_curve", "ticks"]

Curve = dict[int, float]
"""Accuracy by number of completed rounds."""

FINAL_KEYS = {"personal_local": "local", "personal_neighbour": "neighbour", "global_local": "global"}

MARKED_POINTS = 15
"""Lines with more points than this get no marker at each."""


@dataclass(frozen=True)
class Line:
    """One line: ``style`` 0, 1 or 2 chooses colour and dashes, ``points`` maps rounds or months to values."""

    label: str
    points: Mapping[int, float]
    style: int = 0


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


def ticks(values: Iterable[float], *, share: bool = True) -> list[float]:
    """Round numbers, three to eight, that span the values; the axis is cut there.

    Args:
        values: what is drawn; if there is nothing, the axis of shares.
        share: whether they are shares of one, whose axis stays between 0 and 1.
    """
    found = list(values) or [0.0, 1.0]
    low, high = min(found), max(found)
    if share and high - low < 0.1:
        low, high = max(0.0, low - 0.05), min(1.0, high + 0.05)
    span = (high - low) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 6)
    first = math.floor(low / step + 1e-9)
    return [step * index for index in range(first, max(first + 1, math.ceil(high / step - 1e-9)) + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    axis: str = "completed rounds",
    *,
    heights: Sequence[float] = (),
    show: Callable[[float], object] = lambda value: f"{100 * value:.3g}%",
    small: bool = False,
) -> Markup:
    """Lines over rounds or months from 0 on; a line of one point is drawn as a marker.

    Args:
        title: what it shows, for those who hear it too.
        lines: the first one is drawn on top.
        axis: what is counted below.
        heights: ticks of the upright axis; charts with the same ones can be compared by eye.
        show: how a tick is written.
        small: for one of many.
    """
    width, height, left, bottom, font = (300, 230, 58, 54, 18) if small else (520, 280, 84, 44, 14)
    heights = heights or ticks(value for line in lines for value in line.points.values())
    right, floor = width - 14, height - bottom
    last = max([1, *(place for line in lines for place in line.points)])

    def x(place: float) -> float:
        return left + (right - left) * place / last

    def y(value: float) -> float:
        return floor - (floor - 10) * (value - heights[0]) / (heights[-1] - heights[0])

    def label(x: float, y: float, anchor: str, shown: object) -> str:
        return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(shown)}</text>'

    parts = []
    for value in heights:
        style = "zero" if value == 0 and heights[0] < 0 else "grid"
        parts.append(f'<path class="{style}" d="M{left} {y(value):.1f}H{right}"/>')
        parts.append(label(left - 6, y(value) + font / 3, "end", show(value)))
    parts += [label(x(place), floor + 1.4 * font, "middle", place) for place in _whole(last)]
    parts.append(label((left + right) / 2, floor + 2.7 * font, "middle", axis))
    for line in reversed(lines):
        places = sorted(line.points.items())
        if len(places) > 1:
            path = "L".join(f"{x(place):.1f} {y(value):.1f}" for place, value in places)
            parts.append(f'<path class="line style{line.style}" d="M{path}"/>')
        if len(places) <= MARKED_POINTS:
            parts += [
                f'<circle class="mark style{line.style}" cx="{x(p):.1f}" cy="{y(v):.1f}" r="3.5"/>' for p, v in places
            ]
    spoken = f"{title}: {'; '.join(_spoken(line, show) for line in lines if line.points)}"
    return Markup(  # noqa: S704  its texts are escaped above
        f'<svg class="chart" viewBox="0 0 {width} {height}" font-size="{font}" role="img" '
        f'aria-label="{escape(spoken)}">\n' + "\n".join(parts) + "\n</svg>"
    )


def _spoken(line: Line, show: Callable[[float], object]) -> str:
    first, last = (line.points[end(line.points)] for end in (min, max))
    return f"{line.label} {show(first)} → {show(last)}"


def _whole(last: int) -> list[int]:
    """At most seven whole numbers from 0, in steps of 1, 2 or 5 times a power of ten."""
    step = next(factor * 10**power for power in range(10) for factor in (1, 2, 5) if last / (factor * 10**power) <= 6)
    return list(range(0, last + 1, step))
