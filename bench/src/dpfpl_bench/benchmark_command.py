"""``dpfpl-bench benchmarks``: everything behind docs/benchmarks.md, then the page."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dpfpl_common.durable import write_durably
from dpfpl_common.errors import ConfigError

__all__ = ["AUDITS", "EXAMPLES", "benchmarks"]

EXAMPLES = "Example: dpfpl-bench benchmarks --out runs/benchmarks --docs docs"

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
    docs: Annotated[Path, typer.Option(file_okay=False, help="where benchmarks.md and its pictures go")] = Path("docs"),
    demo: Annotated[
        Path, typer.Option(file_okay=False, help="a demo whose released prompts are attacked, if it is there")
    ] = Path("runs/demo"),
    workers: Annotated[int, typer.Option(min=0, help="processes; 0 = one a core")] = 0,
    page_only: Annotated[bool, typer.Option("--page-only", help="run nothing, write what is there")] = False,
    only: Annotated[str, typer.Option(help="run only the tables whose key begins with this, and write no page")] = "",
) -> None:
    """Run the benchmarks on built-in data and write docs/benchmarks.md; under half an hour on two free cores."""
    from dpfpl_bench.benchmark_page import audit_section, page
    from dpfpl_bench.benchmarks import STUDIES, run_study

    console = Console(stderr=True)

    def told(text: str) -> None:
        console.print(text, highlight=False)

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
