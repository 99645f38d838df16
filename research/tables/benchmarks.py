"""``python -m research benchmarks``: everything behind docs/results/benchmarks.md, on built-in images, then the page.

Resumable: a run is a file, and the page is written from the files alone, so it never says what did not run.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dpfpl_bench.simulation.settings import RunPrompt
from dpfpl_bench.sweep.sweep import Grid, Sweep, SweepOutcome, finished_runs, run_sweep
from dpfpl_common.errors import ConfigError
from dpfpl_common.ops.files import write_durably

__all__ = ["AUDITS", "EPSILONS", "EXAMPLES", "STUDIES", "Study", "benchmarks", "run_study"]

EPSILONS = (8.0, 2.0, 1.0)
SETS = ("digits", "shapes")
SEEDS, FEWER_SEEDS = 5, 3
GROWTH_SETS = ("digits", "shapes-more")
EXAMPLES = "Example: python -m research benchmarks --out runs/benchmarks --docs docs/results"


@dataclass(frozen=True)
class Study:
    """One table.

    Attributes:
        key: the prefix of its files.
        title: of its section.
        says: what its sites are and what it answers.
        sweeps: its runs; every one stands beside each site alone under the same promise.
    """

    key: str
    title: str
    says: str
    sweeps: tuple[Sweep, ...]


def _beside_all(key: str, base: Sweep) -> tuple[Sweep, Sweep]:
    """Without noise beside all baselines; with noise beside each site alone under the same promise."""
    return (
        dataclasses.replace(base, name=f"{key}-bare", grid=Grid(epsilon=())),
        dataclasses.replace(base, name=key, floors="alone", grid=Grid(epsilon=EPSILONS, no_noise=False)),
    )


STUDIES = tuple(
    study
    for data in SETS
    for study in (
        Study(
            f"{data}-default",
            f"Sites that share no class, {data}",
            "Four sites with classes of their own and the default settings: one noised release, `local` trust.",
            _beside_all(f"{data}-default", Sweep(data=data, seeds=SEEDS)),
        ),
        Study(
            f"{data}-dirichlet",
            f"Small sites that share classes, {data}",
            "Twelve sites, Dirichlet(0.3), 30 to 260 training images each, the default settings.",
            (
                Sweep(
                    name=f"{data}-dirichlet",
                    data=data,
                    seeds=FEWER_SEEDS,
                    sites=12,
                    partition="dirichlet",
                    floors="alone",
                    grid=Grid(epsilon=EPSILONS),
                ),
            ),
        ),
        Study(
            f"{data}-per-step",
            f"The paper's own set-up, {data}",
            "Prompts alone (`evidence = false`), noise at every step (`per_step`, `distributed`), the same sites.",
            (
                Sweep(
                    name=f"{data}-per-step",
                    data=data,
                    seeds=FEWER_SEEDS,
                    floors="alone",
                    prompt=RunPrompt(evidence=False),
                    grid=Grid(mechanism=("per_step",), trust=("distributed",), epsilon=(8.0, 2.0)),
                ),
            ),
        ),
    )
)
"""All tables, in the order of the page."""

AUDITS = {
    "The default settings' one release, digits, epsilon 8": ("--epsilon", "8", "--mechanism", "one_shot"),
    "The default settings' one release, digits, epsilon 2": ("--epsilon", "2", "--mechanism", "one_shot"),
    "Noise at every step, digits, epsilon 8": ("--epsilon", "8", "--mechanism", "per_step", "--quick"),
    "Noise at every step, digits, epsilon 2": ("--epsilon", "2", "--mechanism", "per_step", "--quick"),
}
"""What is attacked, and the flags of ``dpfpl-bench audit``: class sums take it seconds, trainings minutes."""
AUDIT_SEEDS = 2
CLAIM_BROKEN = 1


def run_study(study: Study, out: Path, workers: int, on_text: Callable[[str], None]) -> SweepOutcome:
    """Run what is missing of a study; its sweeps share a folder and with it the image features.

    Args:
        study: what to run.
        out: folder of the runs.
        workers: processes; 0: run nothing, take what is there.
        on_text: told what is done.
    """
    whole = SweepOutcome()
    for sweep in study.sweeps:
        on_text(f"{study.key}: {sweep.name}")
        if workers:
            outcome = run_sweep(sweep, out, workers, lambda p: on_text(f"  {p.done}/{p.total} {p.text}"))
        else:
            outcome = finished_runs(sweep, out)
        whole.results.update(outcome.results)
        whole.refused.update(outcome.refused)
        whole.failed.update(outcome.failed)
    return whole


def benchmarks(
    out: Annotated[Path, typer.Option(file_okay=False, help="folder of the runs; started again it goes on")] = Path(
        "runs/benchmarks"
    ),
    docs: Annotated[Path, typer.Option(file_okay=False, help="where benchmarks.md and its pictures go")] = Path(
        "docs/results"
    ),
    demo: Annotated[
        Path, typer.Option(file_okay=False, help="a demo whose released prompts are attacked, if it is there")
    ] = Path("runs/demo"),
    workers: Annotated[int, typer.Option(min=0, help="processes; 0 = one a core")] = 0,
    page_only: Annotated[bool, typer.Option("--page-only", help="run nothing, write what is there")] = False,
    only: Annotated[str, typer.Option(help="run only the tables whose key begins with this, and write no page")] = "",
) -> None:
    """Run the benchmarks on built-in data and write docs/results/benchmarks.md; half an hour on two free cores."""
    from research.tables.benchmark_page import audit_section, page

    console = Console(stderr=True, markup=False, highlight=False)

    def told(text: str) -> None:
        console.print(text)

    count, began, outcomes = workers or os.cpu_count() or 1, time.monotonic(), {}
    for study in STUDIES:
        if study.key.startswith(only):
            outcomes[study.key] = run_study(study, out, 0 if page_only else count, told)
    if only:
        return
    flags = {title: ("--data", "digits", *call) for title, call in AUDITS.items()}
    if (demo / "result.json").is_file():
        flags["The prompts that the demo released"] = ("--demo", str(demo))
    if page_only:
        flags = {title: call for title, call in flags.items() if _report_path(out, call).is_file()}
    with ThreadPoolExecutor(count) as pool:
        reports = dict(zip(flags, pool.map(lambda title: _audit(out, flags[title], told), flags), strict=True))
    growth = _growth(out, told, run=not page_only)
    told(f"all runs: {(time.monotonic() - began) / 60:.1f} minutes")
    write_durably(docs / "benchmarks.md", page(outcomes, growth, docs, audit_section(reports)).encode(), 0o644)


def _growth(out: Path, told: Callable[[str], None], *, run: bool) -> list[dict[str, Any]]:
    """All-classes accuracy by number of sites, one entry for each set and epsilon that is there."""
    from research.evidence import growth
    from research.evidence.features import built_in

    found = []
    for name in GROWTH_SETS:
        for epsilon in growth.EPSILONS:
            path = out / "growth" / f"{name}-{epsilon:g}.json"
            if run and not path.is_file():
                told(f"growth: {name}, epsilon {epsilon:g}")
                (study,) = built_in(name, out / "growth")
                lines = growth.grown(study, epsilon, 2 * SEEDS)
                write_durably(path, json.dumps(list(lines.items())).encode(), 0o644)
            if path.is_file():
                found.append({"set": name, "epsilon": epsilon, "lines": dict(json.loads(path.read_text()))})
    return found


def _audit(out: Path, flags: tuple[str, ...], told: Callable[[str], None]) -> dict[str, Any]:
    """One audit in a process of its own, unless its report is there."""
    path = _report_path(out, flags)
    if not path.exists():
        told(f"audit: {' '.join(flags)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "dpfpl_bench", "audit", *flags, "--seeds", str(AUDIT_SEEDS), "--out", str(path)],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=False,
        )
        if done.returncode not in (0, CLAIM_BROKEN):
            raise ConfigError(
                code="AUDIT_FAILED",
                message=f"dpfpl-bench audit {' '.join(flags)} ended with {done.returncode}: {done.stderr[-500:]}",
                advice="Run that command by itself.",
            )
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def _report_path(out: Path, flags: tuple[str, ...]) -> Path:
    return out / "audits" / ("_".join(flags).replace("--", "").replace("/", "_") + ".json")
