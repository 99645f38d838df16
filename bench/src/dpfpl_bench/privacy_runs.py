"""The simulated runs behind docs/privacy.md: what varies, what they share, and what each gives."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from dpfpl_bench.floors import centralised, local_only
from dpfpl_bench.lifted import lifted_backbone, lifted_features
from dpfpl_bench.run import write_result
from dpfpl_bench.settings import BenchSettings, build_experiment
from dpfpl_bench.simulation import SimulatedSite, Simulation, prepare_sites, site_names
from dpfpl_client.agent.feature_cache import FeatureCache
from dpfpl_client.data import DataSettings, list_classes, partition_sites, read_pool
from dpfpl_client.learning.backbone import load_backbone
from dpfpl_client.learning.dual_encoder import DualEncoder, as_dual_encoder
from dpfpl_server.result import floors_from_metrics, mean

__all__ = ["SITES", "Pair", "PrivacyRun", "done", "file_of", "limited", "settings_of", "simulated"]

Pair = dict[str, float | None]
"""Accuracy on the site's own classes, ``local``, and on the other sites', ``neighbour``; mean over sites."""

SITES: Final = 4


@dataclass(frozen=True)
class PrivacyRun:
    """One run.

    Attributes:
        epsilon: towards whoever receives a personalised prompt; None = no noise.
        seed: of split, partition, sampling and noise.
        per_class: most training images of a class at a site; 0 = all.
        size: dimension that the features are lifted into; 0 = the model's own.
    """

    method: str
    mechanism: str
    trust: str
    projection: str = "none"
    epsilon: float | None = None
    seed: int = 0
    data: str = "digits"
    rank: int = 2
    per_class: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        """Names its file, and the run itself in docs/privacy-runs.json."""
        parts = [self.data, self.method, f"r{self.rank}", self.mechanism, self.trust]
        if self.projection != "none":
            parts.append(self.projection)
        if self.per_class:
            parts.append(f"of{self.per_class}")
        if self.size:
            parts.append(f"in{self.size}")
        return "-".join([*parts, f"e{self.epsilon:g}" if self.epsilon else "free", f"s{self.seed}"])

    @property
    def stands_for(self) -> "PrivacyRun":
        """The run that gives this one's numbers too.

        Without noise ``central`` and ``distributed`` are the same; a method without a personal part has no rank.
        """
        trust = "distributed" if self.epsilon is None and self.trust == "central" else self.trust
        return dataclasses.replace(self, trust=trust, rank=2 if self.method == "promptfl" else self.rank)

    @property
    def has_floors(self) -> bool:
        """Whether the floors are trained along with it; they are the same for all runs on the same images."""
        plain = PrivacyRun("dpfpl", "per_step", "local", seed=self.seed, data=self.data)
        return self == plain


def settings_of(run: PrivacyRun) -> BenchSettings:
    """The setting that all runs share, but for what varies."""
    return BenchSettings(
        name="privacy-table",
        method=run.method,
        rank=run.rank,
        mechanism=run.mechanism,
        trust=run.trust,
        projection=run.projection,
        epsilon=run.epsilon,
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


def limited(site: SimulatedSite, per_class: int, seed: int) -> SimulatedSite:
    """The site with at most ``per_class`` training images of a class, drawn from the seed."""
    train = site.features.train
    labels, generator = train.labels.numpy(), np.random.default_rng(seed)
    kept = [generator.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)]
    features = dataclasses.replace(site.features, train=train.take(np.concatenate(kept)))
    return dataclasses.replace(site, features=features)


@functools.cache
def _model() -> DualEncoder:
    return as_dual_encoder(load_backbone("embedded"))


@functools.cache
def _sites(data: str, seed: int) -> tuple[tuple[str, ...], tuple[SimulatedSite, ...]]:
    settings = DataSettings(source=data, split_seed=seed)
    names = list_classes(settings)
    pool = read_pool(settings, names, None)
    parts = partition_sites(pool.records, names, "pathological", SITES, seed, 0.3)
    return names, tuple(prepare_sites(parts, names, FeatureCache(None, _model()), site_names(SITES)))


def simulated(run: PrivacyRun) -> dict[str, Any]:
    """``accuracy`` of the personalised prompts, the ``noise_multiplier``, and ``floors`` where it has them."""
    backbone = _model()
    names, every = _sites(run.data, run.seed)
    sites = [limited(site, run.per_class, run.seed) for site in every] if run.per_class else list(every)
    if run.size:
        backbone = lifted_backbone(backbone, run.size)
        sites = [dataclasses.replace(site, features=lifted_features(site.features, run.size)) for site in sites]
    experiment = build_experiment(settings_of(run), backbone, "embedded", names, sites)
    final = Simulation(backbone, sites, run.seed).run(experiment).final
    result: dict[str, Any] = {
        "accuracy": {
            where: mean(metrics.get(f"personal_{where}") for metrics in final.values())
            for where in ("local", "neighbour")
        },
        "noise_multiplier": experiment.privacy.noise_multiplier,
    }
    if run.has_floors:
        result["floors"] = floors_from_metrics(final) | {
            "local_only": local_only(backbone, sites, experiment, run.seed),
            "centralised": centralised(backbone, sites, experiment, run.seed),
        }
    return result


def file_of(run: PrivacyRun, folder: Path) -> Path:
    """Where its result is, or will be."""
    return folder / f"{run.name}.json"


def done(run: PrivacyRun, folder: Path) -> Mapping[str, Any]:
    """The run's result from its file in ``folder``, made first where there is none."""
    path = file_of(run, folder)
    if not path.exists():
        write_result(simulated(run), path)
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result
