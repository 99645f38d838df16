"""``dpfpl-bench sweep``: the runs of a sweep over several processes, each kept in a file, so that nothing is lost."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpfpl_bench.simulation.sources import FIELD
from dpfpl_bench.sweep.settings import Cell, Sweep
from dpfpl_common.errors import ConfigError, DpfplError

__all__ = ["SweepOutcome", "SweepProgress", "finished_runs", "run_sweep"]

Result = dict[str, Any]


@dataclass(frozen=True)
class SweepProgress:
    """Attributes: ``done`` of ``total`` runs, the ``text`` of the last one, ``seconds_left`` (None if unknown)."""

    done: int
    total: int
    text: str
    seconds_left: float | None


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep has: results by cell, and why the other cells have none.

    Attributes:
        refused: combinations without a sound analysis, with the reason.
        failed: runs that ended with an error; they are tried again when the sweep is started again.
    """

    results: dict[Cell, Result] = field(default_factory=dict)
    refused: dict[Cell, str] = field(default_factory=dict)
    failed: dict[Cell, str] = field(default_factory=dict)


def run_sweep(
    sweep: Sweep,
    folder: Path,
    workers: int,
    on_progress: Callable[[SweepProgress], None] = lambda progress: None,
    *,
    offline: bool = True,
) -> SweepOutcome:
    """Run what is missing in ``folder / "runs"``; a run that is there is not run again.

    Args:
        sweep: what to run.
        folder: one JSON file a run goes to its ``runs`` folder, image features to ``cache``.
        workers: processes, with one thread each.
        on_progress: called after every run.
        offline: do not reach for hub ids.
    """
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    outcome = SweepOutcome()
    cells = sweep.cells()
    missing = [cell for cell in cells if not _load(sweep, cell, runs, outcome)]
    total, began = len(cells), time.monotonic()
    on_progress(SweepProgress(total - len(missing), total, f"{total - len(missing)} runs were done before", None))
    # spawn: a forked torch may hang on locks that its threads held
    with ProcessPoolExecutor(max(1, workers), mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_run_cell, sweep, cell, folder, offline): cell for cell in missing}
        for count, future in enumerate(as_completed(futures), start=1):
            cell = futures[future]
            try:
                refusal = future.result()
            except DpfplError as error:
                outcome.failed[cell] = f"{error.code}: {error.message}"
            except BrokenProcessPool:
                outcome.failed[cell] = "the process ended (out of memory?)"
            else:
                if refusal is None:
                    _load(sweep, cell, runs, outcome)
                else:
                    outcome.refused[cell] = refusal
            left = (time.monotonic() - began) / count * (len(missing) - count)
            on_progress(SweepProgress(total - len(missing) + count, total, sweep.file_name(cell), left))
    return outcome


def finished_runs(sweep: Sweep, folder: Path) -> SweepOutcome:
    """What is there of a sweep; nothing is run."""
    outcome = SweepOutcome()
    for cell in sweep.cells():
        _load(sweep, cell, folder / "runs", outcome)
    return outcome


def _load(sweep: Sweep, cell: Cell, runs: Path, outcome: SweepOutcome) -> bool:
    """Take a run's result from its file; False if there is none or it is damaged."""
    try:
        result = json.loads((runs / sweep.file_name(cell)).read_text())
    except (OSError, ValueError):
        return False
    outcome.results[cell] = result
    return True


def _run_cell(sweep: Sweep, cell: Cell, folder: Path, offline: bool) -> str | None:
    """One run in a process of its own; gives the reason if the combination is refused, else writes the file."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch  # after the variable, which it reads then

    from dpfpl_bench.simulation.run import RunRequest, run_simulation, write_result
    from dpfpl_bench.simulation.sources import data_settings, named_classes

    torch.set_num_threads(1)
    data = data_settings(sweep.data, cell.seed, offline=offline)
    request = RunRequest(
        **vars(sweep.run_of(cell)),
        name=sweep.name,
        data=data,
        classes=named_classes(sweep.data, data) if sweep.data in FIELD else None,
        seed=cell.seed,
        cache=str(folder / "cache"),
        offline=offline,
    )
    try:
        result = run_simulation(request)
    except ConfigError as error:
        if error.code == "NO_SOUND_ANALYSIS":
            return error.message
        raise
    write_result(result, folder / "runs" / sweep.file_name(cell))
    return None
