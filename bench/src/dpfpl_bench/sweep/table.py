"""From the runs of a sweep to a table and pictures: mean and spread over seeds, the worst site, the floors."""

import csv
import io
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpfpl_bench.sweep.sweep import Cell

__all__ = ["COLOURS", "FLOORS", "MARKS", "Row", "as_csv", "as_markdown", "percent", "summarise", "write_plots"]

FLOORS = ("zero_shot", "global_only", "local_only", "local_only_no_noise", "centralised")
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """Runs that differ in the seed alone. Accuracies in [0, 1]; None where nothing was measured.

    Attributes:
        seeds: how many runs.
        local, local_spread: on a site's own classes, mean over sites and seeds, and standard deviation over seeds.
        neighbour, neighbour_spread: on the other sites' classes.
        worst_site: the lowest accuracy of a site on its own classes, over all seeds.
        floors: by ``<floor>_<local or neighbour>``, means over seeds.
        epsilon_recipient, epsilon_operator: what the runs' events amount to.
    """

    method: str
    rank: int
    mechanism: str
    trust: str
    epsilon: float | None
    seeds: int
    local: float | None
    local_spread: float
    neighbour: float | None
    neighbour_spread: float
    worst_site: float | None
    floors: dict[str, float | None]
    epsilon_recipient: float | str
    epsilon_operator: float | str


def summarise(results: Mapping[Cell, Result]) -> list[Row]:
    """One row for each setting, in the order in which the sweep names them first."""
    groups: dict[tuple[object, ...], list[Result]] = defaultdict(list)
    cells: dict[tuple[object, ...], Cell] = {}
    for cell, result in results.items():
        groups[cell.group].append(result)
        cells.setdefault(cell.group, cell)
    rows = [_row(cells[group], found) for group, found in groups.items()]
    return sorted(rows, key=lambda row: (row.method, row.rank, row.mechanism, row.trust, -(row.epsilon or 1e9)))


def as_csv(rows: Sequence[Row]) -> str:
    """All rows, a column a number."""
    flat = [{k: v for k, v in asdict(row).items() if k != "floors"} | row.floors for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]) if flat else ["method"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    """The table for people: percent right, mean ± standard deviation over seeds."""
    lines = [
        "| method | rank | mechanism | trust | epsilon | own classes | others' classes | worst site | "
        "zero-shot | alone, same promise | operator's epsilon |",
        "|" + "---|" * 11,
    ]
    for row in rows:
        zero_shot = _both(row.floors["zero_shot_local"], row.floors["zero_shot_neighbour"])
        alone = _both(row.floors["local_only_local"], row.floors["local_only_neighbour"])
        lines.append(
            f"| {row.method} | {row.rank if row.method != 'promptfl' else '-'} | {row.mechanism} | {row.trust} | "
            f"{'none' if row.epsilon is None else f'{row.epsilon:g}'} | {_with_spread(row.local, row.local_spread)} | "
            f"{_with_spread(row.neighbour, row.neighbour_spread)} | {percent(row.worst_site)} | {zero_shot} | "
            f"{alone} | {_epsilon(row.epsilon_operator)} |"
        )
    return "\n".join(lines) + "\n"


def _row(cell: Cell, results: Sequence[Result]) -> Row:
    local, local_spread = _over_seeds(result["accuracy"]["local"] for result in results)
    neighbour, neighbour_spread = _over_seeds(result["accuracy"]["neighbour"] for result in results)
    worst = [r["accuracy"]["worst_site"] for r in results if r["accuracy"]["worst_site"] is not None]
    floors = {
        f"{floor}_{where}": _over_seeds(result["floors"].get(floor, {}).get(where) for result in results)[0]
        for floor in FLOORS
        for where in ("local", "neighbour")
    }
    spent = {entry["adversary"]: entry["epsilon"] for entry in results[0]["privacy"]["epsilons"]}
    return Row(
        method=cell.method,
        rank=cell.rank,
        mechanism=cell.mechanism,
        trust=cell.trust,
        epsilon=cell.epsilon,
        seeds=len(results),
        local=local,
        local_spread=local_spread,
        neighbour=neighbour,
        neighbour_spread=neighbour_spread,
        worst_site=min(worst, default=None),
        floors=floors,
        epsilon_recipient=spent["prompt_recipient"],
        epsilon_operator=spent["operator"],
    )


def _over_seeds(values: Any) -> tuple[float | None, float]:
    present = [value for value in values if value is not None]
    if not present:
        return None, 0.0
    return statistics.mean(present), statistics.stdev(present) if len(present) > 1 else 0.0


def percent(value: float | None) -> str:
    """A share of one in percent, ``-`` for none."""
    return "-" if value is None else f"{100 * value:.1f}"


def _with_spread(value: float | None, spread: float) -> str:
    return "-" if value is None else f"{100 * value:.1f} ± {100 * spread:.1f}"


def _both(local: float | None, neighbour: float | None) -> str:
    return f"{percent(local)} / {percent(neighbour)}"


def _epsilon(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2g}"


# Pictures: accuracy against epsilon, and against rank.


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Okabe and Ito's, told apart also by the colour-blind."""
MARKS = "osD^vPX"
OVER = {"epsilon": "epsilon for the recipient of a site's prompt", "rank": "rank of the personal factors"}


def write_plots(rows: Sequence[Row], folder: Path, title: str) -> list[Path]:
    """Draw what the rows allow: one file for epsilon if there are several, one for rank if there are several."""
    import matplotlib as mpl  # seconds; nobody but a sweep needs it

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "dpfpl"  # the same rows give the same file
    written = []
    if len({row.epsilon for row in rows if row.epsilon is not None}) > 1:
        written.append(_picture(_by_epsilon(rows), "epsilon", rows, folder / "accuracy-by-epsilon.svg", title))
    if len({row.rank for row in rows}) > 1:
        written.append(_picture(_by_rank(rows), "rank", rows, folder / "accuracy-by-rank.svg", title))
    return written


def _by_epsilon(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """A line each: its label and its points."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.method, row.rank, row.mechanism, row.trust].append(row)
    several = len({row.rank for row in rows}) > 1
    return [
        (
            f"{method}, {mechanism}, {trust}" + (f", rank {rank}" if several else ""),
            [row for row in found if row.epsilon is not None],
        )
        for (method, rank, mechanism, trust), found in sorted(groups.items())
    ]


def _by_rank(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row.method, row.mechanism, row.trust, row.epsilon or 0.0].append(row)
    return [
        (
            f"{method}, {mechanism}, {trust}, " + (f"epsilon {epsilon:g}" if epsilon else "no noise"),
            found if len(found) > 1 else [],
        )
        for (method, mechanism, trust, epsilon), found in sorted(groups.items())
    ]


def _picture(lines: Sequence[tuple[str, list[Row]]], over: str, rows: Sequence[Row], path: Path, title: str) -> Path:
    """Own classes beside the others', each line over ``over``: epsilon or rank."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2)
    for axis, where, name in zip(panels, ("local", "neighbour"), ("own classes", "other sites' classes"), strict=True):
        axis.set_title(name)
        for number, (label, found) in enumerate(lines):
            _line(axis, sorted(found, key=lambda row: getattr(row, over)), over, where, label, number)
        zero_shot = [row.floors[f"zero_shot_{where}"] for row in rows]
        if floor := [value for value in zero_shot if value is not None]:
            level = 100 * statistics.mean(floor)
            axis.axhline(level, color="#777777", linestyle=":", linewidth=1.2, label="zero-shot")
        axis.set_xscale("log", base=2)
        axis.set_xlabel(OVER[over])
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_ylabel("right answers, percent")
        axis.grid(color="#dddddd", linewidth=0.6)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    return path


def _line(axis: Any, rows: Sequence[Row], over: str, where: str, label: str, number: int) -> None:
    shown = [row for row in rows if getattr(row, where) is not None]
    if shown:
        axis.errorbar(
            [getattr(row, over) for row in shown],
            [100 * getattr(row, where) for row in shown],
            [100 * getattr(row, f"{where}_spread") for row in shown],
            label=label,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKS[number % len(MARKS)],
            linestyle=("-", "--", "-.")[number // len(COLOURS) % 3],
            capsize=2,
            linewidth=1.4,
            markersize=4,
        )
