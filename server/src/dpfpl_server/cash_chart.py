"""Net amount over the months, one line a case; inline SVG, no script."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpfpl_server.markup import Html, text

__all__ = ["CashLine", "cash_chart"]

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
    ticks = _ticks(min(values), max(values))
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


def _ticks(low: float, high: float) -> list[float]:
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
