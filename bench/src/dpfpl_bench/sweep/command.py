"""``dpfpl-bench sweep``: from sweep.toml to tables and pictures."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dpfpl_common.errors import ConfigError
from dpfpl_common.ops.files import write_durably

if TYPE_CHECKING:
    from dpfpl_bench.sweep.sweep import Cell, Sweep, SweepOutcome, SweepProgress

__all__ = ["EXAMPLES", "sweep", "write_summary"]

EXAMPLES = """
Example of a sweep.toml:

  name = "ranks"\n
  data = "digits"            # or an image folder, a .csv, a hub id\n
  seeds = 3\n
  \\[grid]                     # every combination is run\n
  method = ["dpfpl", "promptfl"]\n
  rank = [1, 2, 4, 8]\n
  mechanism = ["per_step", "one_shot"]\n
  trust = ["distributed", "local"]\n
  epsilon = [8, 4, 2, 1]\n
  \\[rounds]                   # the same in every run, as \\[prompt] and \\[privacy]: see experiment.toml\n
  number = 10

dpfpl-bench sweep sweep.toml --out runs/ranks. Started again, it resumes.
"""


def sweep(
    file: Annotated[Path, typer.Argument(help="sweep.toml: what to compare", dir_okay=False)],
    out: Annotated[Path | None, typer.Option(file_okay=False, help="folder; default runs/NAME")] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes; default: the machine's cores")] = os.cpu_count() or 1,
    online: Annotated[bool, typer.Option("--online", help="let hub ids be downloaded")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
) -> None:
    """Run many simulated federations, several at a time, and compare them.

    Writes runs/*.json, summary.json, summary.csv, table.md and pictures. Exit codes: 0 done, 1 some runs failed, 2 bad input.
    """  # noqa: E501
    from dpfpl_bench.sweep.sweep import load_sweep, run_sweep
    from dpfpl_client.agent.progress import duration

    plan = load_sweep(file)
    folder = out or Path("runs") / plan.name
    console = Console(stderr=True, markup=False, highlight=False)

    def tell(progress: "SweepProgress") -> None:
        left = "" if progress.seconds_left is None else f", about {duration(progress.seconds_left)} left"
        console.print(f"{progress.done}/{progress.total} {progress.text}{left}", soft_wrap=True)

    outcome = run_sweep(plan, folder, workers, tell, offline=not online)
    summary = write_summary(plan, outcome, folder)
    for cell, reason in outcome.refused.items():
        if cell.seed == 0:
            console.print(f"left out: {_name(cell)}: {reason}", soft_wrap=True)
    for cell, reason in outcome.failed.items():
        console.print(f"failed: {_name(cell)}, seed {cell.seed}: {reason}", soft_wrap=True)
    sys.stdout.write(json.dumps(summary, indent=2) + "\n" if as_json else (folder / "table.md").read_text())
    if outcome.failed:
        sys.exit(1)


def write_summary(plan: "Sweep", outcome: "SweepOutcome", folder: Path) -> dict[str, Any]:
    """Write table, CSV, JSON and pictures of what there is; gives the JSON."""
    from dpfpl_bench.sweep.table import as_csv, as_markdown, summarise, write_plots
    from dpfpl_common.config import to_table

    if not outcome.results:
        reasons = [*outcome.failed.values(), *outcome.refused.values()]
        raise ConfigError(
            code="NO_RESULTS",
            message=f"No run of the sweep produced a result: {reasons[0] if reasons else 'it has none'}",
            advice="Correct sweep.toml.",
        )
    rows = summarise(outcome.results)
    summary = {
        "sweep": to_table(plan),
        "seeds": list(range(plan.seeds)),
        "rows": [dataclasses.asdict(row) for row in rows],
        "refused": {_name(cell): reason for cell, reason in outcome.refused.items()},
        "failed": {f"{_name(cell)}, seed {cell.seed}": reason for cell, reason in outcome.failed.items()},
        "events": {_name(cell): result["privacy"]["events"] for cell, result in outcome.results.items()},
    }
    for name, content in (
        ("summary.json", json.dumps(summary, indent=2) + "\n"),
        ("summary.csv", as_csv(rows)),
        ("table.md", as_markdown(rows)),
    ):
        write_durably(folder / name, content.encode(), 0o644)
    write_plots(rows, folder, f"{plan.name}: {plan.data}, {plan.sites} sites, {plan.partition}, {plan.seeds} seeds")
    return summary


def _name(cell: "Cell") -> str:
    epsilon = "no noise" if cell.epsilon is None else f"epsilon {cell.epsilon:g}"
    return f"{cell.method} rank {cell.rank}, {cell.mechanism}, {cell.trust}, {epsilon}"
