"""The pictures of a sweep: accuracy against epsilon, and against rank."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpfpl_bench.sweep.table import Row

__all__ = ["COLOURS", "MARKS", "write_plots"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Okabe and Ito's, told apart also by the colour-blind."""
MARKS = "osD^vPX"


def write_plots(rows: Sequence[Row], folder: Path, title: str) -> list[Path]:
    """Draw what the rows allow: one file for epsilon if there are several, one for rank if there are several."""
    import matplotlib as mpl  # seconds; nobody but a sweep needs it

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "dpfpl"  # the same rows give the same file
    written = []
    if len({row.epsilon for row in rows if row.epsilon is not None}) > 1:
        written.append(_by_epsilon(rows, folder / "accuracy-by-epsilon.svg", title))
    if len({row.rank for row in rows}) > 1:
        written.append(_by_rank(rows, folder / "accuracy-by-rank.svg", title))
    return written


def _by_epsilon(rows: Sequence[Row], path: Path, title: str) -> Path:
    figure, axes = _two_panels(title)
    groups = defaultdict(list)
    for row in rows:
        groups[row.method, row.rank, row.mechanism, row.trust].append(row)
    for number, ((method, rank, mechanism, trust), found) in enumerate(sorted(groups.items())):
        noisy = sorted((row for row in found if row.epsilon is not None), key=lambda row: row.epsilon or 0.0)
        if not noisy:
            continue
        label = f"{method}, {mechanism}, {trust}" + (f", rank {rank}" if len({r.rank for r in rows}) > 1 else "")
        _lines(axes, noisy, [row.epsilon or 0.0 for row in noisy], label, number)
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xlabel("epsilon for the recipient of a site's prompt")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return _finish(figure, axes, rows, path)


def _by_rank(rows: Sequence[Row], path: Path, title: str) -> Path:
    figure, axes = _two_panels(title)
    groups = defaultdict(list)
    for row in rows:
        groups[row.method, row.mechanism, row.trust, row.epsilon or 0.0].append(row)
    for number, ((method, mechanism, trust, epsilon), found) in enumerate(sorted(groups.items())):
        if len(found) < 2:
            continue
        ordered = sorted(found, key=lambda row: row.rank)
        label = f"{method}, {mechanism}, {trust}, " + (f"epsilon {epsilon:g}" if epsilon else "no noise")
        _lines(axes, ordered, [row.rank for row in ordered], label, number)
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xlabel("rank of the personal factors")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return _finish(figure, axes, rows, path)


def _two_panels(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, 2)
    axes[0].set_title("own classes")
    axes[1].set_title("other sites' classes")
    return figure, axes


def _lines(axes: Any, rows: Sequence[Row], places: Sequence[float], label: str, number: int) -> None:
    for axis, values, spreads in (
        (axes[0], [row.local for row in rows], [row.local_spread for row in rows]),
        (axes[1], [row.neighbour for row in rows], [row.neighbour_spread for row in rows]),
    ):
        points = [(x, 100 * y, 100 * s) for x, y, s in zip(places, values, spreads, strict=True) if y is not None]
        if points:
            x, y, spread = zip(*points, strict=True)
            axis.errorbar(
                x,
                y,
                spread,
                label=label,
                color=COLOURS[number % len(COLOURS)],
                marker=MARKS[number % len(MARKS)],
                linestyle=("-", "--", "-.")[number // len(COLOURS) % 3],
                capsize=2,
                linewidth=1.4,
                markersize=4,
            )


def _finish(figure: Any, axes: Any, rows: Sequence[Row], path: Path) -> Path:
    for axis, where in zip(axes, ("local", "neighbour"), strict=True):
        floor = [row.floors[f"zero_shot_{where}"] for row in rows if row.floors[f"zero_shot_{where}"] is not None]
        if floor:
            level = 100 * sum(value for value in floor if value is not None) / len(floor)
            axis.axhline(level, color="#777777", linestyle=":", linewidth=1.2, label="zero-shot")
        axis.set_ylabel("right answers, percent")
        axis.grid(color="#dddddd", linewidth=0.6)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    return path
