"""Net amount over the months, one line a case; inline SVG, no script."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpfpl_server.report.markup import Html, text

__all__ = [
    "Bar",
    "CashLine",
    "Change",
    "Curve",
    "Frame",
    "Line",
    "bar_chart",
    "cash_chart",
    "change_chart",
    "legend",
    "line_chart",
    "mean_curve",
    "site_curve",
]


# Accuracies over the rounds, read from a result.


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


# Line charts of accuracies as inline SVG: no script, no network, colours from the page's style.


MARKED_POINTS = 15
"""Lines with more points than this get no marker at each."""


@dataclass(frozen=True)
class Line:
    """One line: ``style`` 0, 1 or 2 chooses colour and dashes, ``points`` maps completed rounds to accuracies."""

    label: str
    points: Mapping[int, float]
    style: int = 0


@dataclass(frozen=True)
class Frame:
    """What a chart spans and how large it is; charts with the same span can be compared by eye.

    Attributes:
        rounds: right end of the horizontal axis, which starts at 0.
        low, high: accuracies at the bottom and the top.
        width, height: of the drawing, in its own units.
        left, bottom: room for the labels of the axes.
        font: height of their letters.
    """

    rounds: int
    low: float
    high: float
    width: int = 460
    height: int = 240
    left: int = 44
    bottom: int = 40
    font: int = 13

    @classmethod
    def around(cls, lines: Iterable[Line], rounds: int) -> "Frame":
        """The span, in tenths of accuracy, that holds all the lines."""
        values = [value for line in lines for value in line.points.values()] or [0.0, 1.0]
        low = max(0.0, math.floor(min(values) * 10) / 10)
        high = min(1.0, math.ceil(max(values) * 10) / 10)
        if high - low < 0.15:
            low, high = max(0.0, low - 0.1), min(1.0, high + 0.1)
        return cls(max(rounds, 1), low, high)

    def x(self, completed: float) -> float:
        """Place of a number of completed rounds."""
        return self.left + (self.width - self.left - 14) * completed / self.rounds

    def y(self, accuracy: float) -> float:
        """Place of an accuracy."""
        top, bottom = 10, self.height - self.bottom
        return bottom - (bottom - top) * (accuracy - self.low) / (self.high - self.low)


def line_chart(title: str, lines: Sequence[Line], frame: Frame, axis: str = "completed rounds") -> Html:
    """An SVG drawing with axes in percent and completed rounds; a line of one point is drawn as a marker."""
    lowest_drawn_first = sorted(lines, key=lambda line: -line.style)
    return Html(
        "\n".join(
            (
                f'<svg class="chart" viewBox="0 0 {frame.width} {frame.height}" font-size="{frame.font}" role="img" '
                f'aria-label="{text(_spoken(title, lines))}">',
                _axes(frame, axis),
                *(_line(line, frame) for line in lowest_drawn_first),
                "</svg>",
            )
        )
    )


def _spoken(title: str, lines: Sequence[Line]) -> str:
    """The drawing for those who hear it: each line's first and last value."""
    parts = [
        f"{line.label} {100 * line.points[min(line.points)]:.1f}% → {100 * line.points[max(line.points)]:.1f}%"
        for line in lines
        if line.points
    ]
    return f"{title}: {'; '.join(parts)}"


def legend(lines: Sequence[Line], missing: str = "not reported") -> Html:
    """What the lines of a chart are, with the last value of each, as HTML."""
    entries = []
    for line in lines:
        last = f": {100 * line.points[max(line.points)]:.1f} %" if line.points else f": {missing}"
        swatch = (
            '<svg class="swatch" viewBox="0 0 36 10" aria-hidden="true">'
            f'<path class="line style{line.style}" d="M1 5H35"/></svg>'
        )
        entries.append(f"<li>{swatch}{text(line.label + last)}</li>")
    return Html('<ul class="legend">' + "".join(entries) + "</ul>")


def _axes(frame: Frame, axis: str) -> str:
    parts = []
    right, bottom = frame.width - 14, frame.height - frame.bottom
    step = 0.1 if frame.high - frame.low < 0.55 else 0.2
    for index in range(round((frame.high - frame.low) / step) + 1):
        accuracy = frame.low + index * step
        if accuracy > frame.high + 1e-9:
            break
        y = frame.y(accuracy)
        parts.append(f'<path class="grid" d="M{frame.left} {y:.1f}H{right}"/>')
        parts.append(
            f'<text class="label" x="{frame.left - 6}" y="{y + frame.font / 3:.1f}" '
            f'text-anchor="end">{100 * accuracy:.0f}%</text>'
        )
    for completed in _ticks(frame.rounds):
        parts.append(
            f'<text class="label" x="{frame.x(completed):.1f}" y="{bottom + 1.4 * frame.font:.1f}" '
            f'text-anchor="middle">{completed}</text>'
        )
    middle = (frame.left + right) / 2
    parts.append(
        f'<text class="label" x="{middle:.1f}" y="{bottom + 2.7 * frame.font:.1f}" '
        f'text-anchor="middle">{text(axis)}</text>'
    )
    return "\n".join(parts)


def _ticks(rounds: int) -> list[int]:
    """At most seven whole numbers from 0, in steps of 1, 2 or 5 times a power of ten."""
    step = next(factor * 10**power for power in range(10) for factor in (1, 2, 5) if rounds / (factor * 10**power) <= 6)
    return list(range(0, rounds + 1, step))


def _line(line: Line, frame: Frame) -> str:
    places = [
        (completed, value, frame.x(completed), frame.y(value)) for completed, value in sorted(line.points.items())
    ]
    parts = []
    if len(places) > 1:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for _, _, x, y in places)
        parts.append(f'<path class="line style{line.style}" d="{path}"/>')
    if len(places) <= MARKED_POINTS:
        for completed, value, x, y in places:
            hint = text(f"{line.label}, {completed}: {100 * value:.1f} %")
            parts.append(
                f'<circle class="mark style{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">'
                f"<title>{hint}</title></circle>"
            )
    return "\n".join(parts)


# Charts with one row a site or a way: before and after as two marks, or one bar; inline SVG, no script.


WIDTH, ROW, TOP, RIGHT, FONT = 520, 30, 8, 66, 15
LABEL = 218
LONGEST_LABEL = 26


@dataclass(frozen=True)
class Change:
    """One row of two marks: accuracies in [0, 1] before and after."""

    label: str
    before: float
    after: float


@dataclass(frozen=True)
class Bar:
    """One bar: an accuracy in [0, 1]; the highlighted one is the run's own."""

    label: str
    value: float
    highlighted: bool = False


def change_chart(title: str, rows: Sequence[Change], names: tuple[str, str]) -> Html:
    """A hollow mark before, a filled one after, and an arrow between them.

    Args:
        title: what it shows.
        rows: one a site.
        names: what "before" and "after" are called.
    """
    parts = []
    for index, row in enumerate(rows):
        y = TOP + ROW * index + ROW / 2
        x0, x1 = _x(row.before), _x(row.after)
        parts.append(_label(row.label, y))
        parts.append(f'<path class="grid" d="M{LABEL} {y}H{_x(1.0)}"/>')
        parts.append(f'<path class="line way" d="M{x0:.1f} {y}H{x1:.1f}"/>')
        parts.append(f'<circle class="hollow" cx="{x0:.1f}" cy="{y}" r="6"/>')
        parts.append(f'<circle class="mark style0" cx="{x1:.1f}" cy="{y}" r="6"/>')
        parts.append(_value(f"{100 * row.after:.1f}%", _x(1.0) + 10, y))
    spoken = "; ".join(f"{row.label} {100 * row.before:.1f}% → {100 * row.after:.1f}%" for row in rows)
    key = (
        '<ul class="legend row">'
        '<li><svg class="dot" viewBox="0 0 16 16" aria-hidden="true"><circle class="hollow" cx="8" cy="8" r="6"/></svg>'
        f"{text(names[0])}</li>"
        '<li><svg class="dot" viewBox="0 0 16 16" aria-hidden="true"><circle class="mark style0" cx="8" cy="8" r="6"/>'
        f"</svg>{text(names[1])}</li></ul>"
    )
    return Html(_drawing(title, spoken, parts, len(rows)) + key)


def bar_chart(title: str, bars: Sequence[Bar]) -> Html:
    """Horizontal bars from 0 to 100 %, each with its value."""
    parts = []
    for index, bar in enumerate(bars):
        y = TOP + ROW * index + ROW / 2
        parts.append(_label(bar.label, y))
        style = "own" if bar.highlighted else "other"
        parts.append(
            f'<rect class="bar {style}" x="{LABEL}" y="{y - 9}" width="{_x(bar.value) - LABEL:.1f}" height="18"/>'
        )
        parts.append(_value(f"{100 * bar.value:.1f}%", _x(bar.value) + 8, y))
    spoken = "; ".join(f"{bar.label} {100 * bar.value:.1f}%" for bar in bars)
    return Html(_drawing(title, spoken, parts, len(bars)))


def _drawing(title: str, spoken: str, parts: Sequence[str], rows: int) -> str:
    height = TOP + ROW * rows + 30
    bottom = TOP + ROW * rows
    ticks = [
        f'<path class="grid" d="M{_x(share):.1f} {TOP}V{bottom}"/>'
        f'<text class="label" x="{_x(share):.1f}" y="{bottom + 18}" text-anchor="middle">{100 * share:.0f}%</text>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return (
        f'<svg class="chart wide" viewBox="0 0 {WIDTH} {height}" font-size="{FONT}" role="img" '
        f'aria-label="{text(f"{title}: {spoken}")}">\n' + "\n".join([*ticks, *parts]) + "\n</svg>"
    )


def _x(share: float) -> float:
    return LABEL + (WIDTH - LABEL - RIGHT) * share


def _label(name: str, y: float) -> str:
    wide = sum(2 if ord(char) > 0x2E80 else 1 for char in name)  # a Chinese or Japanese character takes two
    shown = name if wide <= LONGEST_LABEL else name[: max(1, (LONGEST_LABEL - 1) * len(name) // wide)] + "…"
    return f'<text class="name" x="{LABEL - 10}" y="{y + FONT / 3:.1f}" text-anchor="end">{text(shown)}</text>'


def _value(shown: str, x: float, y: float) -> str:
    return f'<text class="name" x="{x:.1f}" y="{y + FONT / 3:.1f}">{text(shown)}</text>'


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, FONT = 520, 290, 84, 84, 12, 48, 15


@dataclass(frozen=True)
class CashLine:
    """A case: amounts after 0, 1, 2, ... months; ``style`` 0, 1 or 2 chooses colour and dashes."""

    label: str
    amounts: Sequence[float]
    style: int


def cash_chart(title: str, lines: Sequence[CashLine], axis: str) -> Html:
    """Straight lines from minus the one-off cost upwards or downwards, and the line at zero."""
    months = len(lines[0].amounts) - 1
    values = [amount for line in lines for amount in line.amounts] + [0.0]
    ticks = _amounts(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def x(month: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * month / months

    def y(amount: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - amount) / (high - low)

    parts = []
    for tick in ticks:
        style = "zero" if tick == 0 else "grid"
        parts.append(f'<path class="{style}" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text class="label" x="{LEFT - 8}" y="{y(tick) + FONT / 3:.1f}" text-anchor="end">{tick:,.0f}</text>'
        )
    for part in range(5):
        month = round(months * part / 4)
        parts.append(
            f'<text class="label" x="{x(month):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{month}</text>'
        )
    parts.append(
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{text(axis)}</text>"
    )
    ends = _apart([y(line.amounts[-1]) for line in lines])
    for line, end in zip(lines, ends, strict=True):
        path = "M" + "L".join(f"{x(month):.1f} {y(amount):.1f}" for month, amount in enumerate(line.amounts))
        parts.append(f'<path class="line style{line.style}" d="{path}"/>')
        parts.append(f'<text class="name" x="{WIDTH - RIGHT + 8}" y="{end + FONT / 3:.1f}">{text(line.label)}</text>')
    spoken = "; ".join(f"{line.label} {line.amounts[0]:,.0f} → {line.amounts[-1]:,.0f}" for line in lines)
    return Html(
        f'<svg class="chart wide" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="{FONT}" role="img" '
        f'aria-label="{text(f"{title}: {spoken}")}">\n' + "\n".join(parts) + "\n</svg>"
    )


def _amounts(low: float, high: float) -> list[float]:
    """Round amounts that span both, four to eight of them, zero among them."""
    span = (high - low) or 1.0  # every amount zero: one step above it
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 6)
    first = math.floor(low / step)
    return [step * index for index in range(first, max(first + 1, math.ceil(high / step)) + 1)]


def _apart(places: Sequence[float]) -> list[float]:
    """The same heights, moved so far that labels at them do not overlap."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + 1.1 * FONT)
    return moved
