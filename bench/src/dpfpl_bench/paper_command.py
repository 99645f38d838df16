"""``dpfpl-bench paper``: the published tables beside what this code reaches, under honest noise and the paper's."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["EXAMPLES", "paper"]

EXAMPLES = """
Examples:

  dpfpl-bench paper --table 2 --model MODEL_DIR --online

  dpfpl-bench paper --table 2 --stand-in digits --rounds 10 --seeds 1
"""


def paper(
    table: Annotated[int, typer.Option(help="2, 3 or 4")] = 2,
    model: Annotated[str, typer.Option(help="embedded, a folder or hub id of the CLIP family")] = "embedded",
    stand_in: Annotated[str, typer.Option(help="used in place of missing data: digits or shapes")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="federated rounds; the paper's are 100")] = 100,
    local_steps: Annotated[int, typer.Option(min=1, help="noised steps of a site in one round")] = 1,
    sample_rate: Annotated[float, typer.Option(help="chance that an example joins a step")] = 0.1,
    rank: Annotated[int, typer.Option(help="rank of the personal factors; the paper's best is 8")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each cell")] = 3,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0 = one a core")] = 0,
    online: Annotated[bool, typer.Option("--online", help="let hub ids be downloaded")] = False,
    out: Annotated[Path, typer.Option(file_okay=False, help="folder of the runs; started again, it resumes")] = Path(
        "runs/paper"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of the table")] = False,
) -> None:
    """Set the paper's figures and ours side by side, with the reasons for differences.

    Missing data is listed with what to do. Exit codes: 0, 1 some runs failed, 2 bad input.
    """
    from dpfpl_bench import paper as module
    from dpfpl_bench.sweep.settings import Grid, Sweep

    console = Console(stderr=True, markup=False, highlight=False)
    training = module.paper_training(rounds, local_steps, sample_rate)
    base = Sweep(**vars(dataclasses.replace(training, model=model)), name="paper", seeds=seeds, grid=Grid(rank=(rank,)))
    found = module.compare(
        module.paper_rows(table),
        base,
        out,
        workers or os.cpu_count() or 1,
        lambda text: console.print(text),
        stand_in=stand_in,
        offline=not online,
    )
    for text in found.failed:
        console.print(f"failed: {text}")
    sys.stdout.write(module.as_json(found) if as_json else module.markdown(found, model))
    if found.failed:
        raise typer.Exit(1)
