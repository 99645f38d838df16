"""``dpfpl-bench attacks``: what hostile sites do to honest ones under each aggregation rule.

Robust rules need ``local`` trust, so all columns have it. Every site is a real agent; a hostile one lies about what it
computed, learned from flipped labels or teaches a backdoor. The numbers are means over the honest sites, each on its
own test images.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpfpl_bench.backdoor import Stamped, success, with_backdoor
from dpfpl_bench.settings import BenchSettings, build_experiment
from dpfpl_bench.simulation import SimulatedSite, Simulation, prepare_sites, site_names
from dpfpl_client.agent.endpoint import Agent
from dpfpl_client.agent.feature_cache import FeatureCache
from dpfpl_client.agent.store import MemoryStore
from dpfpl_client.data import DataSettings, SiteData, list_classes, load_pool, partition_sites
from dpfpl_client.learning.backbone import Backbone, load_backbone
from dpfpl_client.learning.evaluation import LabelledFeatures
from dpfpl_common.experiment import AggregationSettings, Experiment
from dpfpl_common.payload import EvaluateRequest, SiteReply, TrainRequest

__all__ = ["ATTACKS", "RULES", "Attack", "AttackRequest", "markdown", "run_attacks"]


@dataclass(frozen=True)
class Attack:
    """Attributes: ``factor``, what a hostile site multiplies its update with; ``poison`` of its data, if any."""

    factor: float = 1.0
    poison: str = ""


ATTACKS: Mapping[str, Attack] = {
    "none": Attack(),
    "sign flip": Attack(-1.0),
    "times -10": Attack(-10.0),
    "label flip": Attack(poison="labels"),
    "backdoor": Attack(poison="backdoor"),
    "backdoor times 10": Attack(10.0, "backdoor"),
}

RULES: Mapping[str, AggregationSettings] = {
    "mean": AggregationSettings(),
    "mean, largest_site 2": AggregationSettings(largest_site=2.0),
    "median": AggregationSettings(rule="median"),
    "trimmed mean": AggregationSettings(rule="trimmed_mean"),
    "Krum": AggregationSettings(rule="krum"),
}
"""The columns; trimmed mean and Krum are told how many hostile sites there are."""


@dataclass(frozen=True)
class AttackRequest:
    """What to measure.

    Attributes:
        federations: number of sites, and how many of them are hostile.
        epsilon: target under ``local`` trust; None = no noise.
        partition: how the digits are dealt out.
        rounds: of each run.
        seeds: runs of each cell, from 0, averaged.
    """

    federations: tuple[tuple[int, int], ...] = ((5, 1), (10, 2))
    epsilon: float | None = 8.0
    partition: str = "iid"
    rounds: int = 10
    seeds: int = 1


@dataclass(frozen=True)
class _Dealt:
    """One dealing of the data: every site as it is, the hostile ones' poisoned forms, and stamped test images."""

    sites: list[SimulatedSite]
    poisoned: Mapping[str, list[SimulatedSite]]
    stamped: list[Stamped]

    def under(self, attack: Attack) -> list[SimulatedSite]:
        bad = self.poisoned.get(attack.poison, [])
        return [*bad, *self.sites[len(bad) :]]


def run_attacks(request: AttackRequest, on_cell: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """One entry a cell: sites, hostile, attack, rule, the honest sites' accuracies and the backdoor's success there."""
    settings = DataSettings(source="digits")
    classes = list_classes(settings)
    pool, backbone = load_pool(settings, classes), load_backbone("embedded")
    cache = FeatureCache(None, backbone)
    cells = []
    for count, hostile in request.federations:
        dealt = []
        for seed in range(request.seeds):
            data = partition_sites(pool, classes, request.partition, count, seed)
            dealt.append(_deal(data, classes, cache, hostile))
        for attack in ATTACKS:
            for rule in RULES:
                runs = [_run(request, backbone, classes, one, hostile, attack, rule, s) for s, one in enumerate(dealt)]
                figures = {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}
                cells.append({"sites": count, "hostile": hostile, "attack": attack, "rule": rule, **figures})
                said = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
                on_cell(f"{hostile} of {count}, {attack}, {rule}: {said}")
    return cells


def _deal(data: Sequence[SiteData], classes: tuple[str, ...], cache: FeatureCache, hostile: int) -> _Dealt:
    names = site_names(len(data))
    sites = prepare_sites(data, classes, cache, names)
    doored = [with_backdoor(one, classes) for one in data[:hostile]]
    return _Dealt(
        sites,
        {
            "labels": [_with_flipped_labels(site) for site in sites[:hostile]],
            "backdoor": prepare_sites(doored, classes, cache, names[:hostile]),
        },
        [Stamped.of(names[i], data[i], classes, cache) for i in range(hostile, len(data))],
    )


def _run(
    request: AttackRequest,
    backbone: Backbone,
    classes: tuple[str, ...],
    dealt: _Dealt,
    hostile: int,
    attack: str,
    rule: str,
    seed: int,
) -> dict[str, float]:
    """One run's figures: means over the honest sites."""
    sites = dealt.under(ATTACKS[attack])
    experiment = _experiment(request, backbone, classes, dealt.sites, hostile, rule)
    outcome = _Attacked(backbone, sites, seed, ATTACKS[attack].factor, hostile).run(experiment)
    found = [outcome.final[site.name] for site in sites[hostile:]]
    context = outcome.checkpoint.global_context
    by_personal, by_shared = success(backbone, experiment, dealt.stamped, context, outcome.personal)
    return {
        "personal": statistics.fmean(metrics["personal_local"] for metrics in found),
        "shared": statistics.fmean(metrics["global_local"] for metrics in found),
        "personal_success": by_personal,
        "shared_success": by_shared,
    }


def markdown(cells: Sequence[Mapping[str, Any]]) -> str:
    """Two tables, personal / shared prompt in percent: the accuracies, and how often a stamped image passes."""
    doors = [cell for cell in cells if cell["attack"] == "none" or ATTACKS[cell["attack"]].poison == "backdoor"]
    accuracies = _table(cells, "personal", "shared")
    return f"{accuracies}\nStamped images that pass for the target class:\n\n" + _table(
        doors, "personal_success", "shared_success"
    )


def _table(cells: Sequence[Mapping[str, Any]], personal: str, shared: str) -> str:
    lines = ["| Hostile sites | Attack | " + " | ".join(RULES) + " |", "|---" * (2 + len(RULES)) + "|"]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for cell in cells:
        row = rows.setdefault((f"{cell['hostile']} of {cell['sites']}", cell["attack"]), {})
        row[cell["rule"]] = f"{100 * cell[personal]:.1f} / {100 * cell[shared]:.1f}"
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
    # A hostile site's reply may be dropped, for its norm, and the round goes on, where the rule bears it.
    dropouts = 0 if rule == "Krum" else hostile
    return dataclasses.replace(
        experiment,
        privacy=dataclasses.replace(experiment.privacy, tolerated_dropouts=dropouts),
        aggregation=dataclasses.replace(RULES[rule], trim=min(hostile, (len(sites) - hostile - 1) // 2)),
    )


class _Attacked(Simulation):
    """A simulation whose first sites multiply what they send."""

    def __init__(
        self, backbone: Backbone, sites: Sequence[SimulatedSite], seed: int, factor: float, hostile: int
    ) -> None:
        super().__init__(backbone, sites, seed)
        self._factor = factor
        self._bad = {site.name for site in sites[:hostile]}

    def _agent(self, site: SimulatedSite, store: MemoryStore) -> Agent:
        agent = super()._agent(site, store)
        return _Liar(agent, self._factor) if site.name in self._bad else agent


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
