"""The second table of docs/privacy.md: ``one_shot`` where its noise is hard to bear, few images or many dimensions.

``python -m dpfpl_bench.projection_table --out runs/projection`` writes one JSON file a run (so it can be interrupted
and goes on where it was) and prints the table in Markdown: digits, four sites with classes of their own, method dpfpl.
"""

from dpfpl_common.telemetry import silence_telemetry

silence_telemetry()

import argparse  # noqa: E402  after telemetry is switched off
import dataclasses  # noqa: E402
import functools  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from dpfpl_bench.lifted import lifted_backbone, lifted_features  # noqa: E402
from dpfpl_bench.privacy_table import SITES, bench_settings  # noqa: E402
from dpfpl_bench.run import write_result  # noqa: E402
from dpfpl_bench.settings import build_experiment  # noqa: E402
from dpfpl_bench.simulation import SimulatedSite, Simulation, prepare_sites, site_names  # noqa: E402
from dpfpl_client.agent.feature_cache import FeatureCache  # noqa: E402
from dpfpl_client.data import DataSettings, list_classes, partition_sites, read_pool  # noqa: E402
from dpfpl_client.learning.backbone import load_backbone  # noqa: E402
from dpfpl_client.learning.dual_encoder import DualEncoder, as_dual_encoder  # noqa: E402
from dpfpl_server.result import mean  # noqa: E402

__all__ = ["Row", "limited", "main", "markdown", "run_row"]

PER_CLASS = (5, 10, 30, 130)
"""Training images of a class at a site; about 130 is all there are."""

EPSILONS = (8.0, 4.0, 2.0, 1.0, 0.5)
WAYS = (
    ("per_step", "distributed", "none", 0),
    ("one_shot", "local", "none", 0),
    ("one_shot", "local", "text", 0),
    ("one_shot", "local", "none", 512),
    ("one_shot", "local", "text", 512),
)
"""Mechanism, trust, projection and feature size; 0 is the model's own. ``per_step`` does not depend on that size."""


@dataclass(frozen=True)
class Row:
    """One run."""

    per_class: int
    mechanism: str
    trust: str
    projection: str
    size: int
    epsilon: float
    seed: int

    @property
    def name(self) -> str:
        """Its file name."""
        return "-".join(str(value) for value in dataclasses.astuple(self)) + ".json"


def rows(seeds: int) -> list[Row]:
    """All runs, the quick ones first."""
    every = [
        Row(per_class, *way, epsilon, seed)
        for seed in range(seeds)
        for per_class in PER_CLASS
        for epsilon in EPSILONS
        for way in WAYS
    ]
    return sorted(every, key=lambda row: row.mechanism == "per_step" and row.per_class == 130)


def limited(site: SimulatedSite, per_class: int, seed: int) -> SimulatedSite:
    """The site with at most ``per_class`` training images of a class, drawn from the seed."""
    train = site.features.train
    labels, generator = train.labels.numpy(), np.random.default_rng(seed)
    kept = [generator.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)]
    features = dataclasses.replace(site.features, train=train.take(np.concatenate(kept)))
    return dataclasses.replace(site, features=features)


@functools.cache
def _digits(seed: int) -> tuple[DualEncoder, tuple[str, ...], tuple[SimulatedSite, ...]]:
    settings = DataSettings(source="digits", split_seed=seed)
    names = list_classes(settings)
    pool = read_pool(settings, names, None)
    data = partition_sites(pool.records, names, "pathological", SITES, seed, 0.3)
    backbone = as_dual_encoder(load_backbone("embedded"))
    return backbone, names, tuple(prepare_sites(data, names, FeatureCache(None, backbone), site_names(SITES)))


def run_row(row: Row) -> dict[str, float | None]:
    """Accuracies of the personalised prompts, mean over sites."""
    backbone, names, every = _digits(row.seed)
    sites = [limited(site, row.per_class, row.seed) for site in every]
    if row.size:
        backbone = lifted_backbone(backbone, row.size)
        sites = [dataclasses.replace(site, features=lifted_features(site.features, row.size)) for site in sites]
    settings = bench_settings("dpfpl", row.mechanism, row.trust, row.epsilon, row.projection)
    experiment = build_experiment(settings, backbone, "embedded", names, sites)
    final = Simulation(backbone, sites, row.seed).run(experiment).final.values()
    return {where: mean(metrics.get(f"personal_{where}") for metrics in final) for where in ("local", "neighbour")}


def markdown(out: Path, seeds: int) -> str:
    """Mean over seeds of local / neighbour accuracy in percent, with the standard deviation over seeds."""
    lines = [
        "| images of a class | mechanism | projection | dimension | "
        + " | ".join(f"epsilon {e:g}" for e in EPSILONS)
        + " |",
        "|" + "---|" * (len(EPSILONS) + 4),
    ]
    for per_class in PER_CLASS:
        for mechanism, trust, projection, size in WAYS:
            texts = []
            for epsilon in EPSILONS:
                runs = [Row(per_class, mechanism, trust, projection, size, epsilon, seed) for seed in range(seeds)]
                texts.append(_pair([json.loads((out / run.name).read_text()) for run in runs]))
            dimension = "any" if mechanism == "per_step" else str(size or 96)
            lines.append(f"| {per_class} | {mechanism} | {projection} | {dimension} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _pair(results: Sequence[dict[str, float]]) -> str:
    texts = []
    for where in ("local", "neighbour"):
        values = [100 * result[where] for result in results]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        texts.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
    return " / ".join(texts)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/projection"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    todo = rows(options.seeds)
    for done, row in enumerate(todo, start=1):
        if not (options.out / row.name).exists():
            write_result(run_row(row), options.out / row.name)
            print(f"{done}/{len(todo)} {row.name}", flush=True)
    print(markdown(options.out, options.seeds))


if __name__ == "__main__":
    main()
