"""``dpfpl-bench sweep``: what sweep.toml compares, and its runs over several processes, each kept in a file."""

import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict

from dpfpl_bench.simulation.settings import RunSettings
from dpfpl_bench.simulation.sources import FIELD
from dpfpl_common.config import ImpossibleError, build, read_toml, settings, to_table
from dpfpl_common.errors import ConfigError, DpfplError
from dpfpl_common.experiment import Mechanism, Method, PromptSettings, Trust

__all__ = ["Cell", "Grid", "Sweep", "SweepOutcome", "SweepProgress", "finished_runs", "load_sweep", "run_sweep"]

LAST_ROUND_ONLY = 100_000
"""A sweep looks at what its runs end with."""
_SomeOf = (Strict(False), Field(min_length=1))


@settings
class Grid:
    """Every combination of these is run; one without a sound analysis is listed with the reason instead.

    Attributes:
        method, rank, mechanism, trust: as in experiment.toml.
        epsilon: targets for the recipient of a personalised prompt.
        no_noise: also without noise, once: without noise trust modes do not differ.
    """

    method: Annotated[tuple[Method, ...], *_SomeOf] = (PromptSettings.method,)
    rank: Annotated[tuple[int, ...], *_SomeOf] = (PromptSettings.rank,)
    mechanism: Annotated[tuple[Mechanism, ...], *_SomeOf] = ("one_shot",)
    trust: Annotated[tuple[Trust, ...], *_SomeOf] = ("local",)
    epsilon: Annotated[tuple[float, ...], Strict(False)] = (8.0, 2.0)
    no_noise: bool = True

    def __post_init__(self) -> None:
        if not self.epsilon and not self.no_noise:
            raise ImpossibleError("epsilon", (), "at least one value, or no_noise = true")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep; ``epsilon`` None is without noise."""

    method: Method
    rank: int
    mechanism: Mechanism
    trust: Trust
    epsilon: float | None
    seed: int

    @property
    def group(self) -> tuple[str, int, str, str, float | None]:
        """What runs that differ in nothing but the seed have in common."""
        return (self.method, self.rank, self.mechanism, self.trust, self.epsilon)

    def of(self, run: RunSettings) -> RunSettings:
        """The run's settings in full, without those that say nothing to the cell's mechanism and method."""
        once, steps = self.mechanism == "one_shot", self.mechanism == "per_step"
        prompt = dataclasses.replace(
            run.prompt,
            method=self.method,
            rank=self.rank,
            absent_weight=run.prompt.absent_weight if once else 0.0,
            retention=run.prompt.retention if steps else 0.0,
            contrast=run.prompt.contrast if steps and self.method == "fedpgp" else 0.0,
        )
        privacy = dataclasses.replace(
            run.privacy,
            mechanism=self.mechanism,
            trust=self.trust,
            target_epsilon=self.epsilon,
            noise_multiplier=0.0 if self.epsilon is None else None,
            projection=run.privacy.projection if once else "none",
        )
        rounds = dataclasses.replace(run.rounds, evaluate_every=LAST_ROUND_ONLY)
        return dataclasses.replace(run, prompt=prompt, privacy=privacy, rounds=rounds)


@settings
class Sweep(RunSettings):
    """A comparison over several settings and seeds; what is not in the grid is the same in every run.

    Settings of one mechanism only (``absent_weight``, ``projection``, ``retention``, ``contrast``) say nothing to the
    other mechanism's runs.

    Attributes:
        data: as ``--data`` of ``dpfpl-bench run``.
        seeds: how many, from 0; each draws its own split, partition, sampling and noise.
    """

    name: str = "sweep"
    data: str = "digits"
    seeds: Annotated[int, Field(ge=1)] = 3
    grid: Grid = field(default_factory=Grid)

    def run_of(self, cell: Cell) -> RunSettings:
        """The settings of one run."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(RunSettings)}
        return cell.of(RunSettings(**shared))

    def cells(self) -> list[Cell]:
        """All runs, in an order in which early ones already give a picture."""
        grid = self.grid
        epsilons: list[float | None] = [*([None] if grid.no_noise else []), *grid.epsilon]
        return [
            Cell(method, rank, mechanism, trust, epsilon, seed)
            for seed, epsilon, mechanism, method in itertools.product(
                range(self.seeds), epsilons, grid.mechanism, grid.method
            )
            for rank in (grid.rank if method != "promptfl" else grid.rank[:1])  # it has no factors
            for trust in self._trusts(mechanism, epsilon)
        ]

    def file_name(self, cell: Cell) -> str:
        """Where a run's result lies: readable, and another name for any other setting."""
        everything = json.dumps([to_table(dataclasses.replace(self, name="", seeds=1, grid=Grid())), to_table(cell)])
        digest = hashlib.sha256(everything.encode()).hexdigest()[:10]
        epsilon = "none" if cell.epsilon is None else f"{cell.epsilon:g}"
        return f"{cell.method}-r{cell.rank}-{cell.mechanism}-{cell.trust}-eps{epsilon}-s{cell.seed}-{digest}.json"

    def _trusts(self, mechanism: str, epsilon: float | None) -> tuple[Trust, ...]:
        if epsilon is not None:
            return self.grid.trust
        return ("local",) if mechanism == "one_shot" else self.grid.trust[:1]


def load_sweep(path: Path) -> Sweep:
    """Read sweep.toml; errors name the key, the value and what was expected."""
    return build(Sweep, {"name": path.stem, **read_toml(path)}, path.name)


# The runs.


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
