"""``python -m research benchmarks``: everything behind docs/results/benchmarks.md, then the page."""

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
from dpfpl_bench.sweep.settings import Grid, Sweep
from dpfpl_bench.sweep.sweep import SweepOutcome, finished_runs, run_sweep
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import Mechanism
from dpfpl_common.ops.files import write_durably

__all__ = ["AUDITS", "EPSILONS", "EXAMPLES", "STUDIES", "Study", "benchmarks", "run_study"]


# ``make benchmarks``: the runs behind docs/results/benchmarks.md, on built-in image sets. Resumable; a run is a file.
#
# Every table is one :class:`Study`: a few sweeps whose runs are compared. The page is written by
# ``dpfpl_bench.benchmark_page`` from the files alone, so a page never says what did not run.


EPSILONS = (8.0, 4.0, 2.0, 1.0)
DEFAULTS = RunPrompt()
BALANCED = RunPrompt(absent_weight=0.5)
RETAINED = RunPrompt(retention=1.0)
LONGER = RunPrompt(num_context=8)
STEPS = Grid(mechanism=("per_step",), trust=("distributed",))


@dataclass(frozen=True)
class Study:
    """One table.

    Attributes:
        key: its anchor and the prefix of its files.
        title: of its section.
        says: what it answers.
        sweeps: its runs.
        plots: whether accuracy is drawn against epsilon, or rank.
    """

    key: str
    title: str
    says: str
    sweeps: tuple[Sweep, ...]
    plots: bool = False


def _against_floors(key: str, data: str, mechanism: Mechanism, prompt: RunPrompt) -> tuple[Sweep, Sweep]:
    """Without noise beside all floors; with noise beside each site alone under the same promise."""
    trust = "local" if mechanism == "one_shot" else "distributed"
    bare = Grid(mechanism=(mechanism,), trust=(trust,), epsilon=())
    noisy = dataclasses.replace(bare, epsilon=EPSILONS, no_noise=False)
    return (
        Sweep(name=f"{key}-bare", data=data, grid=bare, prompt=prompt),
        Sweep(name=key, data=data, floors="alone", grid=noisy, prompt=prompt),
    )


def _studies_of(data: str) -> list[Study]:
    return [
        Study(
            f"{data}-default",
            f"The default settings on {data}",
            "One noised release, `local` trust: what an experiment.toml without further settings does.",
            _against_floors(f"{data}-default", data, "one_shot", DEFAULTS),
            plots=True,
        ),
        Study(
            f"{data}-balanced",
            f"The default settings with absent_weight on {data}",
            "As above with `absent_weight = 0.5`: half of the loss keeps the classes of which a site showed nothing.",
            _against_floors(f"{data}-balanced", data, "one_shot", BALANCED),
        ),
        Study(
            f"{data}-per-step",
            f"Noise at every step on {data}",
            '`mechanism = "per_step"`: the published algorithm with an honest mechanism, each site adds its share.',
            _against_floors(f"{data}-per-step", data, "per_step", DEFAULTS),
            plots=True,
        ),
        Study(
            f"{data}-retention",
            f"Noise at every step with retention on {data}",
            "As above with `retention = 1`: a pull made of public facts keeps all classes apart.",
            (
                Sweep(
                    name=f"{data}-retention",
                    data=data,
                    floors="none",
                    grid=dataclasses.replace(STEPS, epsilon=(8.0, 2.0)),
                    prompt=RETAINED,
                ),
            ),
        ),
    ]


def _studies() -> tuple[Study, ...]:
    found = []
    for data in ("digits", "shapes"):
        found += _studies_of(data)
    for mechanism in ("per_step", "one_shot"):
        trust = "local" if mechanism == "one_shot" else "distributed"
        found.append(
            Study(
                f"dirichlet-{mechanism.replace('_', '-')}",
                f"Sites that share classes, {mechanism}",
                "Digits, Dirichlet(0.3): here the others' images are also about a site's own classes.",
                (
                    Sweep(
                        name=f"dirichlet-{mechanism}",
                        partition="dirichlet",
                        floors="alone",
                        grid=Grid(mechanism=(mechanism,), trust=(trust,), epsilon=(2.0,), no_noise=False),
                    ),
                ),
            )
        )
    found += [
        Study(
            f"{data}-small-sites",
            f"Twelve small sites that share classes, {data}",
            "Dirichlet(0.3), 30 to 260 training images a site, the default mechanism.",
            (
                Sweep(
                    name=f"{data}-small-sites",
                    data=data,
                    sites=12,
                    partition="dirichlet",
                    floors="alone",
                    grid=Grid(epsilon=(8.0, 2.0, 1.0), no_noise=False),
                ),
            ),
        )
        for data in ("digits", "shapes")
    ]
    found.append(
        Study(
            "ranks",
            "Rank, and what the residual is worth",
            "Digits, eight context vectors, so that rank 8 is full rank; `dplora` is `dpfpl` without the residual.",
            (
                Sweep(
                    name="ranks",
                    seeds=2,
                    floors="none",
                    grid=dataclasses.replace(
                        STEPS, method=("dpfpl", "dplora"), rank=(1, 2, 4, 8), epsilon=(2.0,), no_noise=False
                    ),
                    prompt=LONGER,
                ),
            ),
            plots=True,
        )
    )
    return tuple(found)


STUDIES = _studies()
"""All tables, in the order of the page."""


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


EXAMPLES = "Example: python -m research benchmarks --out runs/benchmarks --docs docs/results"

AUDITS = {
    "The default settings' one release, digits, epsilon 8": (
        "--data",
        "digits",
        "--epsilon",
        "8",
        "--mechanism",
        "one_shot",
    ),
    "The default settings' one release, digits, epsilon 2": (
        "--data",
        "digits",
        "--epsilon",
        "2",
        "--mechanism",
        "one_shot",
    ),
    "Noise at every step, digits, epsilon 8": (
        "--data",
        "digits",
        "--epsilon",
        "8",
        "--mechanism",
        "per_step",
        "--quick",
    ),
    "Noise at every step, digits, epsilon 2": (
        "--data",
        "digits",
        "--epsilon",
        "2",
        "--mechanism",
        "per_step",
        "--quick",
    ),
}
"""What is attacked, and the flags of ``dpfpl-bench audit``: class sums take it seconds, trainings minutes."""

SEEDS = 2
CLAIM_BROKEN = 1


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
    flags = dict(AUDITS)
    if (demo / "result.json").is_file():
        flags["The prompts that the demo released"] = ("--demo", str(demo))
    if page_only:
        flags = {title: call for title, call in flags.items() if _report_path(out, call).is_file()}
    with ThreadPoolExecutor(count) as pool:
        reports = dict(zip(flags, pool.map(lambda title: _audit(out, flags[title], told), flags), strict=True))
    told(f"all runs: {(time.monotonic() - began) / 60:.1f} minutes")
    seconds = sum(result["seconds"] for outcome in outcomes.values() for result in outcome.results.values())
    write_durably(docs / "benchmarks.md", page(outcomes, docs, audit_section(reports), seconds).encode(), 0o644)


def _audit(out: Path, flags: tuple[str, ...], told: Callable[[str], None]) -> dict[str, Any]:
    """One audit in a process of its own, unless its report is there."""
    path = _report_path(out, flags)
    if not path.exists():
        told(f"audit: {' '.join(flags)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        call = [sys.executable, "-c", "from dpfpl_bench.cli import main; main()", "audit", *flags]
        done = subprocess.run(
            [*call, "--seeds", str(SEEDS), "--out", str(path)],
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
