"""The tables of docs/privacy.md: method, mechanism and trust mode against epsilon, on the built-in image sets.

``python -m dpfpl_bench.privacy_table --out runs/privacy`` makes the runs that are missing, one JSON file each, so it
can be interrupted and goes on where it was; with ``--docs docs`` it then writes docs/privacy-runs.json and the tables
between their marks in docs/privacy.md.
"""

from dpfpl_common.telemetry import silence_telemetry

silence_telemetry()

import argparse  # noqa: E402  after telemetry is switched off
import dataclasses  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Mapping, Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Final  # noqa: E402

import torch  # noqa: E402

from dpfpl_bench.privacy_runs import PrivacyRun, done, file_of  # noqa: E402
from dpfpl_common.experiment import METHODS  # noqa: E402

__all__ = ["SEEDS", "TABLES", "Table", "collected", "main", "markdown", "runs_of", "with_tables"]

SEEDS: Final = 3
EPSILONS: Final = (8.0, 4.0, 2.0, 1.0, 0.5)
WAYS: Final = (
    ("per_step", "distributed", "none"),
    ("per_step", "central", "none"),
    ("per_step", "local", "none"),
    ("one_shot", "local", "none"),
    ("one_shot", "local", "text"),
)
"""Mechanism, trust and projection."""

NARROW: Final = (WAYS[0], WAYS[3], WAYS[4])
FLOORS: Final = ("zero_shot", "global_only", "local_only", "centralised")


@dataclass(frozen=True)
class Table:
    """Attributes: ``rows``: what stands at the left, and a run of the row; ``floors``: below, where there are any."""

    head: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], PrivacyRun], ...]
    epsilons: tuple[float | None, ...] = (None, *EPSILONS)
    floors: bool = False


def _shown(mechanism: str, projection: str) -> str:
    return mechanism if projection == "none" else f"{mechanism}, projection {projection}"


def _few() -> tuple[tuple[tuple[str, ...], PrivacyRun], ...]:
    rows = []
    for per_class in (5, 10, 30, 0):
        for size in (0, 512):
            for mechanism, trust, projection in NARROW:
                if size and mechanism == "per_step":
                    continue  # it does not depend on the dimension
                dimension = "any" if mechanism == "per_step" else str(size or 96)
                labels = (str(per_class or "all, about 130"), mechanism, projection, dimension)
                rows.append((labels, PrivacyRun("dpfpl", mechanism, trust, projection, per_class=per_class, size=size)))
    return tuple(rows)


TABLES: Final[Mapping[str, Table]] = {
    "methods": Table(
        ("method", "mechanism", "trust"),
        tuple(
            ((method, _shown(way[0], way[2]), way[1]), PrivacyRun(method, *way)) for method in METHODS for way in WAYS
        ),
        floors=True,
    ),
    "ranks": Table(
        ("rank", "mechanism", "trust"),
        tuple(
            ((str(rank), way[0], way[1]), PrivacyRun("dpfpl", *way, rank=rank))
            for way in NARROW[:2]
            for rank in (1, 2, 4)
        ),
    ),
    "shapes": Table(
        ("method", "mechanism", "trust"),
        tuple(
            (("dpfpl", _shown(way[0], way[2]), way[1]), PrivacyRun("dpfpl", *way, data="shapes"))
            for way in (WAYS[0], WAYS[2], WAYS[3], WAYS[4])
        ),
        floors=True,
    ),
    "few": Table(("images of a class", "mechanism", "projection", "dimension"), _few(), EPSILONS),
}


def _cell(run: PrivacyRun, epsilon: float | None) -> list[PrivacyRun]:
    """The runs behind one cell, one a seed."""
    return [dataclasses.replace(run, epsilon=epsilon, seed=seed).stands_for for seed in range(SEEDS)]


def runs_of(tables: Sequence[str]) -> list[PrivacyRun]:
    """All their runs, each once, table after table."""
    every = [
        dataclasses.replace(row, epsilon=epsilon, seed=seed).stands_for
        for name in tables
        for seed in range(SEEDS)
        for epsilon in TABLES[name].epsilons
        for _, row in TABLES[name].rows
    ]
    if any(TABLES[name].floors for name in tables):
        data = {row.data for name in tables if TABLES[name].floors for _, row in TABLES[name].rows}
        every += [run for source in sorted(data) for run in _with_floors(source)]
    return list(dict.fromkeys(every))


def _with_floors(data: str) -> list[PrivacyRun]:
    runs = [PrivacyRun("dpfpl", "per_step", "local", seed=seed, data=data) for seed in range(SEEDS)]
    assert all(run.has_floors for run in runs)
    return runs


def collected(folder: Path) -> dict[str, Any]:
    """The results that are there, as docs/privacy-runs.json keeps them: percent, local and neighbour, by run."""
    kept: dict[str, Any] = {}
    for run in runs_of(tuple(TABLES)):
        if not file_of(run, folder).exists():
            continue
        result = done(run, folder)
        kept[run.name] = _percent(result["accuracy"])
        if run.has_floors:
            kept |= {f"{run.name} {floor}": _percent(result["floors"][floor]) for floor in FLOORS}
    return dict(sorted(kept.items()))


def _percent(accuracy: Mapping[str, float]) -> list[float]:
    return [round(100 * accuracy[where], 3) for where in ("local", "neighbour")]


def markdown(name: str, kept: Mapping[str, Sequence[float]]) -> str:
    """A table: mean over seeds of local / neighbour accuracy in percent, with the standard deviation over seeds.

    A row is of as many seeds as all its cells have; a row without any is left out.
    """
    table = TABLES[name]
    head = [*table.head, "seeds", *(f"epsilon {epsilon:g}" if epsilon else "no noise" for epsilon in table.epsilons)]
    lines = [_row(head), "|" + "---|" * len(head)]
    for labels, run in table.rows:
        cells = [[each.name for each in _cell(run, epsilon)] for epsilon in table.epsilons]
        seeds = next((k for k in range(SEEDS) if any(names[k] not in kept for names in cells)), SEEDS)
        if seeds:
            pairs = [_pair([kept[each] for each in names[:seeds]]) for names in cells]
            lines.append(_row([*labels, str(seeds), *pairs]))
    if table.floors:
        lines += ["", _row(("floor (no noise)", "seeds", "local / neighbour")), "|---|---|---|"]
        runs = [run for run in _with_floors(table.rows[0][1].data) if run.name in kept]
        lines += [
            _row((floor, str(len(runs)), _pair([kept[f"{run.name} {floor}"] for run in runs]))) for floor in FLOORS
        ]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _pair(results: Sequence[Sequence[float]]) -> str:
    return " / ".join(_with_spread(values) for values in zip(*results, strict=True))


def _with_spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def with_tables(document: str, kept: Mapping[str, Sequence[float]]) -> str:
    """The document with every table between its marks, ``<!-- table: NAME -->`` and ``<!-- end -->``, made anew."""

    def made(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n{markdown(found[1], kept)}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", made, document, flags=re.DOTALL)


def main() -> None:
    """Make the runs that are missing, then print the tables or write them into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/privacy"), help="folder of the runs' files")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further run after so many")
    parser.add_argument("--docs", type=Path, help="the folder docs, to write the tables into privacy.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    todo = runs_of(options.tables)
    missing = [run for run in todo if not file_of(run, options.out).exists()]
    for number, run in enumerate(missing, start=1):
        if time.monotonic() - began > 60 * options.minutes:
            print(f"{len(missing) - number + 1} of {len(todo)} runs are still to be made; call it again.", flush=True)
            break
        done(run, options.out)
        print(f"{len(todo) - len(missing) + number}/{len(todo)} {run.name}", flush=True)
    kept = collected(options.out)
    if options.docs is None:
        print("\n\n".join(markdown(name, kept) for name in options.tables))
        return
    lines = [f"  {json.dumps(name)}: {json.dumps(pair)}" for name, pair in kept.items()]
    (options.docs / "privacy-runs.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    document = options.docs / "privacy.md"
    document.write_text(with_tables(document.read_text(encoding="utf-8"), kept), encoding="utf-8")


if __name__ == "__main__":
    main()
