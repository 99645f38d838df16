"""Charts with one row a site or a way: before and after as two marks, or one bar; inline SVG, no script."""

from collections.abc import Sequence
from dataclasses import dataclass

from dpfpl_server.markup import Html, text

__all__ = ["Bar", "Change", "bar_chart", "change_chart"]

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
