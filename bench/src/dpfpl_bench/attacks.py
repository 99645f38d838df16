"""``dpfpl-bench attacks``: what hostile sites do to honest ones under each aggregation rule.

Robust rules need ``local`` trust, so all columns have it. Every site is a real agent; a hostile one lies about what it
computed or learned from flipped labels. The numbers are means over the honest sites, each on its own test images.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpfpl_bench.settings import BenchSettings, build_experiment
from dpfpl_bench.simulation import SimulatedSite, Simulation, prepare_sites, site_names
from dpfpl_client.agent.endpoint import Agent
from dpfpl_client.agent.feature_cache import FeatureCache
from dpfpl_client.agent.store import MemoryStore
from dpfpl_client.data import DataSettings, list_classes, load_pool, partition_sites
from dpfpl_client.learning.backbone import Backbone, load_backbone
from dpfpl_client.learning.evaluation import LabelledFeatures
from dpfpl_common.experiment import AggregationSettings, Experiment
from dpfpl_common.payload import EvaluateRequest, SiteReply, TrainRequest

__all__ = ["ATTACKS", "RULES", "AttackRequest", "markdown", "run_attacks"]

ATTACKS: Mapping[str, float | None] = {"none": 1.0, "sign flip": -1.0, "times -10": -10.0, "label flip": None}
"""What a hostile site multiplies its update with; None: it is honest about labels that were flipped."""

RULES: Mapping[str, AggregationSettings] = {
    "mean": AggregationSettings(),
    "mean, largest_site 2": AggregationSettings(largest_site=2.0),
    "median": AggregationSettings(rule="median"),
    "trimmed mean": AggregationSettings(rule="trimmed_mean"),
}
"""The columns; the trimmed mean cuts as many values at each end as there are hostile sites."""


@dataclass(frozen=True)
class AttackRequest:
    """What to measure.

    Attributes:
        federations: number of sites, and how many of them are hostile.
        epsilon: target under ``local`` trust; None = no noise.
        partition: how the digits are dealt out.
        rounds: of each run.
        seeds: runs of each cell, averaged.
    """

    federations: tuple[tuple[int, int], ...] = ((5, 1), (10, 2))
    epsilon: float | None = 8.0
    partition: str = "iid"
    rounds: int = 10
    seeds: int = 1


def run_attacks(request: AttackRequest, on_cell: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """One entry a cell: sites, hostile, attack, rule, accuracies of the honest sites."""
    settings = DataSettings(source="digits")
    classes = list_classes(settings)
    pool, backbone = load_pool(settings, classes), load_backbone("embedded")
    cache = FeatureCache(None, backbone)
    cells = []
    for count, hostile in request.federations:
        dealt = [partition_sites(pool, classes, request.partition, count, seed) for seed in range(request.seeds)]
        federations = [prepare_sites(data, classes, cache, site_names(count)) for data in dealt]
        for attack in ATTACKS:
            for rule in RULES:
                found = []
                for seed, sites in enumerate(federations):
                    experiment = _experiment(request, backbone, classes, sites, hostile, rule)
                    final = _Attacked(backbone, sites, seed, attack, hostile).run(experiment).final
                    found += [final[site.name] for site in sites[hostile:]]
                cell = {
                    "sites": count,
                    "hostile": hostile,
                    "attack": attack,
                    "rule": rule,
                    "personal": statistics.fmean(metrics["personal_local"] for metrics in found),
                    "shared": statistics.fmean(metrics["global_local"] for metrics in found),
                }
                cells.append(cell)
                accuracies = f"personal {cell['personal']:.3f}, shared {cell['shared']:.3f}"
                on_cell(f"{hostile} of {count}, {attack}, {rule}: {accuracies}")
    return cells


def markdown(cells: Sequence[Mapping[str, Any]]) -> str:
    """The cells as a table: personal / shared prompt, in percent."""
    lines = ["| Hostile sites | Attack | " + " | ".join(RULES) + " |", "|---" * (2 + len(RULES)) + "|"]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for cell in cells:
        row = rows.setdefault((f"{cell['hostile']} of {cell['sites']}", cell["attack"]), {})
        row[cell["rule"]] = f"{100 * cell['personal']:.1f} / {100 * cell['shared']:.1f}"
    for (who, attack), row in rows.items():
        lines.append(f"| {who} | {attack} | " + " | ".join(row.get(rule, "") for rule in RULES) + " |")
    return "\n".join(lines) + "\n"


def _experiment(
    request: AttackRequest,
    backbone: Backbone,
    classes: tuple[str, ...],
    sites: list[SimulatedSite],
    hostile: int,
    rule: str,
) -> Experiment:
    bench = BenchSettings(
        name="attacked",
        method="dpfpl",
        rank=4,
        mechanism="per_step",
        trust="local",
        epsilon=request.epsilon,
        clipping="joint",
        accounting="honest",
        delta=1e-5,
        rounds=request.rounds,
        local_steps=4,
        sample_rate=0.5,
        clipping_norm=0.1,
        learning_rate=0.02,
        personal_learning_rate=0.02,
        init_text="a photo of a",
        num_context=0,
        evaluate_every=request.rounds,
    )
    experiment = build_experiment(bench, backbone, "embedded", classes, sites)
    return dataclasses.replace(
        experiment,
        privacy=dataclasses.replace(experiment.privacy, tolerated_dropouts=hostile),
        aggregation=dataclasses.replace(RULES[rule], trim=min(hostile, (len(sites) - hostile - 1) // 2)),
    )


class _Attacked(Simulation):
    """A simulation whose first sites are hostile."""

    def __init__(
        self, backbone: Backbone, sites: Sequence[SimulatedSite], seed: int, attack: str, hostile: int
    ) -> None:
        self._factor = ATTACKS[attack]
        self._bad = {site.name for site in sites[:hostile]} if attack != "none" else set()
        flipped = [_with_flipped_labels(site) if site.name in self._bad else site for site in sites]
        super().__init__(backbone, flipped if self._factor is None else sites, seed)

    def _agent(self, site: SimulatedSite, store: MemoryStore) -> Agent:
        agent = super()._agent(site, store)
        return _Liar(agent, self._factor) if site.name in self._bad and self._factor is not None else agent


class _Liar:
    """An agent whose updates are multiplied on their way out."""

    def __init__(self, agent: Agent, factor: float) -> None:
        self._agent = agent
        self._factor = factor

    def train(self, request: TrainRequest) -> SiteReply:
        """See ``Agent``."""
        reply = self._agent.train(request)
        assert reply.update is not None
        return dataclasses.replace(reply, update=np.asarray(self._factor * reply.update, dtype="<f4"))

    def evaluate(self, request: EvaluateRequest) -> SiteReply:
        """See ``Agent``."""
        return self._agent.evaluate(request)


def _with_flipped_labels(site: SimulatedSite) -> SimulatedSite:
    """Class k of K is called K - 1 - k in training."""
    last = len(site.features.classes) - 1
    train = LabelledFeatures(site.features.train.features, last - site.features.train.labels)
    return dataclasses.replace(site, features=dataclasses.replace(site.features, train=train))
