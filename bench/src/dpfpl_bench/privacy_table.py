"""The tables of docs/privacy.md: method, mechanism and trust mode against epsilon, on a built-in image set.

``python -m dpfpl_bench.privacy_table --out runs/privacy`` writes one JSON file a run (so it can be interrupted and goes
on where it was) and prints the table in Markdown. ``--data shapes --methods dpfpl promptfl`` makes the smaller one.
"""

from dpfpl_common.telemetry import silence_telemetry

silence_telemetry()

import argparse  # noqa: E402  after telemetry is switched off
import dataclasses  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from concurrent.futures import ProcessPoolExecutor, as_completed  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from dpfpl_bench.run import RunRequest, run_simulation, write_result  # noqa: E402
from dpfpl_bench.settings import BenchSettings  # noqa: E402
from dpfpl_client.data import DataSettings  # noqa: E402
from dpfpl_common.experiment import METHODS  # noqa: E402

__all__ = ["SITES", "Cell", "bench_settings", "cells", "main", "markdown"]

WAYS = (
    ("per_step", "distributed", "none"),
    ("per_step", "central", "none"),
    ("per_step", "local", "none"),
    ("one_shot", "local", "none"),
    ("one_shot", "local", "text"),
)
"""Mechanism, trust and projection."""

EPSILONS = (None, 8.0, 4.0, 2.0, 1.0, 0.5)
SITES = 4


@dataclass(frozen=True)
class Cell:
    """One run of a table."""

    method: str
    mechanism: str
    trust: str
    epsilon: float | None
    seed: int
    data: str = "digits"
    projection: str = "none"

    @property
    def name(self) -> str:
        """Its file name."""
        way = self.mechanism if self.projection == "none" else f"{self.mechanism}+{self.projection}"
        return f"{self.data}-{self.method}-{way}-{self.trust}-{self.epsilon or 'none'}-{self.seed}.json"

    @property
    def run(self) -> "Cell":
        """The cell whose run stands for this one: without noise, ``central`` and ``distributed`` are the same."""
        same = self.epsilon is None and self.trust == "central"
        return dataclasses.replace(self, trust="distributed") if same else self

    @property
    def has_floors(self) -> bool:
        """Whether the floors are trained along with it; they are the same for a whole table."""
        return (
            self.method == "dpfpl" and self.mechanism == "per_step" and self.epsilon is None and self.trust == "local"
        )


def cells(seeds: int, data: str = "digits", methods: Sequence[str] = METHODS) -> list[Cell]:
    """All runs, each once."""
    every = [
        Cell(method, mechanism, trust, epsilon, seed, data, projection).run
        for seed in range(seeds)
        for epsilon in EPSILONS
        for method in methods
        for mechanism, trust, projection in WAYS
    ]
    return list(dict.fromkeys(every))


def run_cell(cell: Cell, out: Path) -> Path:
    """Run one cell unless its file is there."""
    path = out / cell.name
    if path.exists():
        return path
    import torch

    torch.set_num_threads(1)
    bench = bench_settings(cell.method, cell.mechanism, cell.trust, cell.epsilon, cell.projection)
    request = RunRequest(
        model="embedded",
        data=DataSettings(source=cell.data, split_seed=cell.seed),
        partition="pathological",
        num_sites=SITES,
        alpha=0.3,
        seed=cell.seed,
        bench=bench,
        floors="all" if cell.has_floors else "none",
    )
    write_result(run_simulation(request), path)
    return path


def bench_settings(
    method: str, mechanism: str, trust: str, epsilon: float | None, projection: str = "none"
) -> BenchSettings:
    """The setting that all tables of docs/privacy.md share."""
    return BenchSettings(
        name="privacy-table",
        method=method,
        rank=4,
        mechanism=mechanism,
        trust=trust,
        projection=projection,
        epsilon=epsilon,
        clipping="joint",
        accounting="honest",
        delta=1e-5,
        rounds=10,
        local_steps=4,
        sample_rate=0.5,
        clipping_norm=0.1,
        learning_rate=0.02,
        personal_learning_rate=0.02,
        init_text="a photo of a",
        num_context=0,
        evaluate_every=100,
    )


def markdown(out: Path, seeds: int, data: str = "digits", methods: Sequence[str] = METHODS) -> str:
    """The table: mean over seeds of local / neighbour accuracy in percent, with the standard deviation over seeds."""
    head = (
        "| method | mechanism | trust | " + " | ".join(f"epsilon {e:g}" if e else "no noise" for e in EPSILONS) + " |"
    )
    lines = [head, "|" + "---|" * (len(EPSILONS) + 3)]
    for method in methods:
        for mechanism, trust, projection in WAYS:
            shown = mechanism if projection == "none" else f"{mechanism}, projection {projection}"
            texts = []
            for epsilon in EPSILONS:
                runs = [Cell(method, mechanism, trust, epsilon, seed, data, projection).run for seed in range(seeds)]
                texts.append(_pair([_read(out / run.name) for run in runs]))
            lines.append(f"| {method} | {shown} | {trust} | " + " | ".join(texts) + " |")
    return "\n".join([*lines, "", *_floors(out, [cell for cell in cells(seeds, data) if cell.has_floors])])


def _floors(out: Path, runs: Sequence[Cell]) -> list[str]:
    results = [_read(out / run.name) for run in runs]
    lines = ["| floor | local / neighbour |", "|---|---|"]
    for floor in ("zero_shot", "global_only", "local_only", "centralised"):
        lines.append(f"| {floor} | {_pair([{'accuracy': result['floors'][floor]} for result in results])} |")
    return lines


def _pair(results: Sequence[dict[str, Any]]) -> str:
    texts = []
    for where in ("local", "neighbour"):
        values = [100 * result["accuracy"][where] for result in results]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        texts.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
    return " / ".join(texts)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/privacy"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", default="digits", choices=("digits", "shapes"))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    options = parser.parse_args()
    todo = cells(options.seeds, options.data, options.methods)
    with ProcessPoolExecutor(options.workers) as pool:
        futures = {pool.submit(run_cell, cell, options.out): cell for cell in todo}
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            print(f"{done}/{len(todo)} {futures[future].name}", flush=True)
    print(markdown(options.out, options.seeds, options.data, options.methods))


if __name__ == "__main__":
    main()
