"""The paper's tables beside ours: under its own noise, and under noise that is worth the epsilon that it names.

What ran is always our training (single examples are clipped, every batch moves the weights, a site's prompt by its own
gradient). ``accounting = "paper"`` only takes the noise from the paper's formula. docs/explanation/mechanism.md says
what differs.
"""

import csv
import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dpfpl_bench.simulation.settings import RunPrivacy, RunPrompt, RunSettings
from dpfpl_bench.simulation.sources import data_settings
from dpfpl_bench.sweep.sweep import Cell, Grid, Sweep, run_sweep
from dpfpl_bench.sweep.table import percent
from dpfpl_common.errors import ConfigError, DataError
from dpfpl_common.experiment import Accounting, Method, RoundSettings

__all__ = [
    "METHODS",
    "REASONS",
    "TABLES",
    "Comparison",
    "PaperRow",
    "as_json",
    "compare",
    "markdown",
    "paper_rows",
    "paper_training",
]

METHODS: tuple[Method, ...] = ("promptfl", "fedotp", "fedpgp", "dpfpl")
TABLES = {2: "own classes, pathological split", 3: "the others' classes, same runs", 4: "CIFAR-100, Dirichlet 0.3"}

OUR_KEYS = {"honest": "own_noise", "paper": "paper_noise"}
"""What a line calls our figures, by the accounting that the noise came from."""

REASONS = (
    "The paper's code clips the mean of a batch of 32 but assumes the sensitivity of clipped single examples: in it "
    "the noise is 64 times too small. Nominal epsilons of 0.01, 0.05, 0.1, 0.2 and 0.4 guarantee 0.99, 6.1, "
    "14, 36 and 102 for the personal factors, 1.2, 7.8, 19, 49 and 140 for both parts (delta 1e-5, 100 steps).",
    "Its server sees gradients without noise: epsilon towards the operator is infinite, which its tables do not say.",
    "The personal and the shared gradient come from the same batch but are accounted as if each were alone.",
    "In its code only the last batch of a round changes weights, every site's prompt is moved by the last site's "
    "gradient, and one momentum buffer serves all sites; here every site trains its own prompt at every step.",
    "The third term of its equation 4 has the wrong sign and a stray tenth in the code; here it is the equation.",
    "Its model is CLIP ViT-B/16 (ResNet-50 in table 4); what ran here is the model named above the table.",
)
"""Why our figures differ, for every table."""


@dataclass(frozen=True)
class PaperRow:
    """One line of the paper: accuracies in percent by method, at its nominal epsilon (None: no noise)."""

    table: int
    data: str
    sites: int
    where: str
    epsilon: float | None
    accuracy: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """What ran.

    Attributes:
        lines: one a data set, epsilon and method, ready for JSON; accuracies in [0, 1], None where nothing ran.
        missing: why a data set did not run, by its name.
        failed: runs that ended with an error.
    """

    lines: list[dict[str, Any]]
    missing: dict[str, str]
    failed: list[str]


def paper_rows(table: int) -> list[PaperRow]:
    """The lines of one table.

    Raises:
        ConfigError: a table that is not carried.
    """
    if table not in TABLES:
        raise ConfigError(
            code="IMPOSSIBLE_VALUE",
            message=f"--table is {table}.",
            advice=f"Give one of {', '.join(map(str, TABLES))}; the ranks of tables 6 and 7 are a sweep over rank.",
        )
    text = resources.files("dpfpl_bench").joinpath("paper_figures.csv").read_text(encoding="utf-8")
    reader = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return [
        PaperRow(
            table=table,
            data=line["set"],
            sites=int(line["sites"]),
            where=line["where"],
            epsilon=None if line["epsilon"] == "none" else float(line["epsilon"]),
            accuracy={method: float(line[method]) for method in METHODS},
        )
        for line in reader
        if int(line["table"]) == table
    ]


def compare(
    rows: Sequence[PaperRow],
    base: Sweep,
    out: Path,
    workers: int,
    on_text: Callable[[str], None] = lambda text: None,
    *,
    stand_in: str = "",
    offline: bool = True,
) -> Comparison:
    """Run the grid of the rows, as far as their data is at hand.

    Args:
        rows: of one table.
        base: model, seeds and training; data, sites, partition and grid are the rows'.
        out: folder of the runs; what is there is not run again.
        workers: processes.
        on_text: told what is done.
        stand_in: a data set that runs in place of all that are not at hand; its lines are named as such.
        offline: do not download.
    """
    missing: dict[str, str] = {}
    failed: list[str] = []
    lines: list[dict[str, Any]] = []
    for data, sites in dict.fromkeys((row.data, row.sites) for row in rows):
        here = [row for row in rows if (row.data, row.sites) == (data, sites)]
        used: str | None = data
        try:
            data_settings(data, 0, offline=offline)
        except DataError as error:
            missing[data] = f"{error.message} {error.advice}"
            used = stand_in or None
        found: dict[Accounting, dict[Cell, Mapping[str, Any]]] = {"honest": {}, "paper": {}}
        if used is not None:
            for accounting in found:
                sweep = _sweep(base, here, used, sites, accounting)
                outcome = run_sweep(
                    sweep,
                    out / f"{used}-{sites}",
                    workers,
                    lambda p: on_text(f"{p.done}/{p.total} {p.text}"),
                    offline=offline,
                )
                found[accounting] = dict(outcome.results)
                failed += [f"{sweep.file_name(cell)}: {why}" for cell, why in outcome.failed.items()]
        lines += [_line(row, method, used, found) for row in here for method in METHODS]
    return Comparison(lines, missing, failed)


def _sweep(base: Sweep, rows: Sequence[PaperRow], data: str, sites: int, accounting: Accounting) -> Sweep:
    table = rows[0].table
    epsilons = tuple(dict.fromkeys(row.epsilon for row in rows if row.epsilon is not None))
    return dataclasses.replace(
        base,
        name=f"paper-table-{table}",
        data=data,
        sites=sites,
        partition="dirichlet" if table == 4 else "pathological",
        alpha=0.3,
        floors="none",
        grid=Grid(method=METHODS, rank=base.grid.rank, mechanism=("per_step",), trust=("central",), epsilon=epsilons),
        privacy=dataclasses.replace(base.privacy, accounting=accounting),
    )


def paper_training(rounds: int, local_steps: int, sample_rate: float) -> RunSettings:
    """The paper's context and clipping norm; epsilon's delta as there. Random start, 16 vectors."""
    return RunSettings(
        prompt=RunPrompt(init_text="", num_context=16),
        privacy=RunPrivacy(sample_rate=sample_rate, clipping_norm=10.0),
        rounds=RoundSettings(number=rounds, local_steps=local_steps),
    )


def _line(
    row: PaperRow, method: str, used: str | None, found: Mapping[Accounting, Mapping[Cell, Mapping[str, Any]]]
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "table": row.table,
        "data": row.data,
        "ran_on": used,
        "sites": row.sites,
        "where": row.where,
        "nominal_epsilon": row.epsilon,
        "method": method,
        "paper": round(row.accuracy[method] / 100, 6),
    }
    for accounting, results in found.items():
        runs = [r for cell, r in results.items() if (cell.method, cell.epsilon) == (method, row.epsilon)]
        values = [run["accuracy"]["local" if row.where == "all" else row.where] for run in runs]
        known = [value for value in values if value is not None]
        spent = {e["adversary"]: e["epsilon"] for e in runs[0]["privacy"]["epsilons"]} if runs else {}
        line[OUR_KEYS[accounting]] = {
            "accuracy": statistics.mean(known) if known else None,
            "seeds": len(known),
            "epsilon_recipient": spent.get("prompt_recipient"),
            "epsilon_operator": spent.get("operator"),
        }
    return line


def markdown(comparison: Comparison, model: str) -> str:
    """The table for people, with the reasons for differences."""
    lines = [
        f"Model: {model}. Percent right; the paper's model is CLIP. `own noise`: calibrated by our accountant to the "
        "epsilon; `the paper's noise`: by its formula, with what it guarantees in our training.",
        "",
        "| data | where | epsilon | method | paper | ours, own noise | ours, the paper's noise | its epsilon |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in comparison.lines:
        data = line["data"] if line["ran_on"] in (None, line["data"]) else f"{line['data']} (ran: {line['ran_on']})"
        epsilon = "none" if line["nominal_epsilon"] is None else f"{line['nominal_epsilon']:g}"
        honest, paper = line["own_noise"], line["paper"]
        lines.append(
            f"| {data}, {line['sites']} sites | {line['where']} | {epsilon} | {line['method']} | {100 * paper:.1f} | "
            f"{percent(honest['accuracy'])} | {percent(line['paper_noise']['accuracy'])} | "
            f"{_epsilon(line['paper_noise']['epsilon_recipient'])} |"
        )
    lines += ["", "Reasons for differences:", "", *(f"- {reason}" for reason in REASONS)]
    if comparison.missing:
        lines += ["", "Not at hand:", "", *(f"- {name}: {why}" for name, why in comparison.missing.items())]
    return "\n".join(lines) + "\n"


def _epsilon(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.3g}"


def as_json(comparison: Comparison) -> str:
    """Everything, for programs."""
    return json.dumps(dataclasses.asdict(comparison) | {"reasons": list(REASONS)}, indent=2) + "\n"
