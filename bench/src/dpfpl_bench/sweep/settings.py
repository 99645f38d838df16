"""What a sweep compares: sweep.toml as frozen values, and the runs it stands for."""

import dataclasses
import hashlib
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path

from dpfpl_bench.simulate.settings import BenchSettings
from dpfpl_common.config import build, read_toml, to_table
from dpfpl_common.errors import ConfigError

__all__ = ["Cell", "FixedSettings", "Grid", "Sweep", "load_sweep"]

FLOORS = ("all", "alone", "none")


@dataclass(frozen=True)
class Grid:
    """Every combination of these is run; one without a sound analysis is listed with the reason instead.

    Attributes:
        epsilon: targets for whoever receives a personalised prompt.
        no_noise: also without noise, once whatever the trust mode: without noise trust modes do not differ.
    """

    method: tuple[str, ...] = ("dpfpl",)
    rank: tuple[int, ...] = (4,)
    mechanism: tuple[str, ...] = ("one_shot",)
    trust: tuple[str, ...] = ("local",)
    epsilon: tuple[float, ...] = (8.0, 2.0)
    no_noise: bool = True

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if f.name != "no_noise" and not getattr(self, f.name) and f.name != "epsilon":
                raise _wrong(f"[grid] {f.name}", "is empty", "Give at least one value.")
        if not self.epsilon and not self.no_noise:
            raise _wrong("[grid] epsilon", "is empty", "Give a value, or set no_noise = true.")


@dataclass(frozen=True)
class FixedSettings:
    """The same in every run; the flags of ``dpfpl-bench run`` with the same names and defaults.

    ``absent_weight`` and ``projection`` are of ``one_shot``, ``retention`` of ``per_step``: they say nothing to the
    other mechanism's runs.
    """

    delta: float = 1e-5
    rounds: int = 10
    local_steps: int = 4
    sample_rate: float = 0.5
    clipping_norm: float = 0.1
    clipping: str = "joint"
    accounting: str = "honest"
    learning_rate: float = 0.02
    personal_learning_rate: float = 0.02
    init_text: str = "a photo of a"
    num_context: int = 0
    evaluate_every: int = 100_000
    projection: str = "none"
    absent_weight: float = 0.0
    retention: float = 0.0
    contrast: float = 0.0
    personal_strength: float = 1.0


@dataclass(frozen=True)
class Cell:
    """One run of a sweep; ``epsilon`` None is without noise."""

    method: str
    rank: int
    mechanism: str
    trust: str
    epsilon: float | None
    seed: int

    @property
    def group(self) -> tuple[str, int, str, str, float | None]:
        """What runs that differ in nothing but the seed have in common."""
        return (self.method, self.rank, self.mechanism, self.trust, self.epsilon)

    def bench_settings(self, name: str, fixed: FixedSettings) -> BenchSettings:
        """The run's settings in full."""
        if self.mechanism != "one_shot":
            fixed = dataclasses.replace(fixed, projection="none", absent_weight=0.0)
        else:
            fixed = dataclasses.replace(fixed, retention=0.0)
        if self.mechanism == "one_shot" or self.method != "fedpgp":
            fixed = dataclasses.replace(fixed, contrast=0.0)
        return BenchSettings(
            name=name,
            method=self.method,
            rank=self.rank,
            mechanism=self.mechanism,
            trust=self.trust,
            epsilon=self.epsilon,
            **{f.name: getattr(fixed, f.name) for f in dataclasses.fields(fixed)},
        )


@dataclass(frozen=True)
class Sweep:
    """A comparison over several settings and seeds.

    Attributes:
        data: as ``--data`` of ``dpfpl-bench run``.
        seeds: how many, from 0; each draws split, partition, sampling and noise anew.
        floors: ``all`` trains the floors of every run (each site alone, all data in one place), ``alone``
            the one under the same promise,
            ``none`` keeps the two that cost nothing (plain text prompt, shared prompt alone).
    """

    name: str
    data: str = "digits"
    model: str = "embedded"
    sites: int = 4
    partition: str = "pathological"
    alpha: float = 0.3
    seeds: int = 3
    floors: str = "all"
    grid: Grid = field(default_factory=Grid)
    settings: FixedSettings = field(default_factory=FixedSettings)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise _wrong("seeds", f"is {self.seeds}", "Give at least one.")
        if self.floors not in FLOORS:
            raise _wrong("floors", f"is {self.floors!r}", f"Expected one of {', '.join(FLOORS)}.")

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

    def _trusts(self, mechanism: str, epsilon: float | None) -> tuple[str, ...]:
        if epsilon is not None:
            return self.grid.trust
        return ("local",) if mechanism == "one_shot" else self.grid.trust[:1]


def load_sweep(path: Path) -> Sweep:
    """Read sweep.toml; errors name the key, the value and what was expected."""
    return build(Sweep, read_toml(path), path.name)


def _wrong(key: str, what: str, advice: str) -> ConfigError:
    return ConfigError(code="IMPOSSIBLE_VALUE", message=f"The sweep's {key} {what}.", advice=advice)
