"""Line charts of accuracies as inline SVG: no script, no network, colours from the page's style."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dpfpl_server.markup import Html, text

__all__ = ["Frame", "Line", "legend", "line_chart"]

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
