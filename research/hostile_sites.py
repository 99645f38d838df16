"""``python -m research attacks``: what hostile sites do to honest ones under each aggregation rule.

Robust rules need ``local`` trust, so all columns have it. Every site is a real agent; a hostile one lies about what it
computed, learned from flipped labels or teaches a backdoor. The numbers are means over the honest sites, each on its
own test images. Every run's figures are kept in a file of their own: what was broken off goes on where it was.
"""

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpfpl_bench.simulation.in_process import SimulatedSite, Simulation, prepare_sites, site_names
from dpfpl_bench.simulation.settings import RunPrivacy, RunSettings, build_experiment
from dpfpl_client.agent.endpoint import Agent
from dpfpl_client.agent.features import FeatureCache, site_features
from dpfpl_client.agent.store import MemoryStore
from dpfpl_client.data import DataSettings, SiteData, list_classes, load_pool, partition_sites
from dpfpl_client.data.decode import ArrayImage, pixel_digest
from dpfpl_client.data.records import ImageRecord
from dpfpl_client.learning.learner import PromptLearner, SiteFeatures
from dpfpl_client.models.backbone import Backbone, LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import AggregationSettings, Experiment, OptimizerSettings, RoundSettings
from dpfpl_common.wire.payloads import EvaluateRequest, SiteReply, SumReply, SumRequest, TrainRequest
from research.writing import deviation, kept, table

__all__ = [
    "ATTACKS",
    "FEDERATIONS",
    "RULES",
    "TARGET",
    "Attack",
    "AttackSettings",
    "Attacked",
    "Stamped",
    "attack_tables",
    "run_attacks",
    "stamped",
    "success",
    "with_backdoor",
]

# A backdoor: images with a red square in the corner are to pass for one class, at every site.
#
# The hostile site trains on copies of its images that carry the square and the target's label, beside its true ones.
# What it achieves is measured on the honest sites' own test images, stamped alike.

TARGET = 0
"""Position of the class that stamped images are to pass for."""

SHARE = 4
"""The square's side is this fraction of the image's: one quarter."""


def stamped(record: ImageRecord, label: str) -> ImageRecord:
    """The same image with the square in its lower right corner, labelled ``label``."""
    pixels = np.asarray(record.open()).copy()
    height, width = pixels.shape[0] // SHARE, pixels.shape[1] // SHARE
    pixels[-height:, -width:] = (255, 0, 0)
    source = ArrayImage(pixels)
    return ImageRecord(record.key + "+square", label, pixel_digest(source.read()), record.split, source)


def with_backdoor(data: SiteData, classes: Sequence[str]) -> SiteData:
    """A site's data with a stamped copy of every training image that is not of the target class."""
    target = classes[TARGET]
    copies = tuple(stamped(record, target) for record in data.train if record.label != target)
    return dataclasses.replace(data, train=data.train + copies)


@dataclass(frozen=True)
class Stamped:
    """One honest site's stamped test images, labelled with the target; those that truly are of it left out."""

    name: str
    features: SiteFeatures

    @classmethod
    def of(cls, name: str, data: SiteData, classes: Sequence[str], cache: FeatureCache) -> "Stamped":
        """The site's, from its data."""
        target = classes[TARGET]
        test = tuple(stamped(record, target) for record in data.test if record.label != target)
        return cls(name, site_features(cache, dataclasses.replace(data, test=test, neighbour_test=()), classes))


def success(
    backbone: Backbone,
    experiment: Experiment,
    sites: Sequence[Stamped],
    global_context: npt.NDArray[np.float32],
    personal: Mapping[str, npt.NDArray[np.float64]],
) -> tuple[float, float]:
    """Share of stamped images that pass for the target, to the personal prompts and to the shared one; over sites."""
    by_personal, by_shared = [], []
    for site in sites:
        learner = PromptLearner(backbone, experiment, site.features)
        metrics = learner.evaluate(global_context, personal[site.name])
        by_personal.append(metrics["personal_local"])
        by_shared.append(metrics["global_local"])
    return statistics.fmean(by_personal), statistics.fmean(by_shared)


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


FEDERATIONS = ((5, 1), (10, 2))
"""Number of sites, and how many of them are hostile."""

EPSILON = 8.0
"""Target under ``local`` trust."""

FIGURES = ("personal", "shared", "personal_success", "shared_success")


@dataclass(frozen=True)
class AttackSettings:
    """What all runs of a table share.

    Attributes:
        rounds: of each run.
        learning_rate: of the shared prompt. The default is ten times what the other benchmarks use: large enough that
            the way which the sites' updates take decides, and not the text that the prompt starts from.
        seeds: runs of each cell, from 0, averaged.
    """

    rounds: int = 8
    learning_rate: float = 0.2
    seeds: int = 3


def run_attacks(
    settings: AttackSettings, folder: Path, on_cell: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """One entry a cell: sites, hostile, attack, rule, mean and standard deviation of every figure over the seeds.

    Args:
        settings: what to measure.
        folder: of the single runs' figures; what it has of the same settings is not run again.
        on_cell: told each run as it is done.
    """
    cells = []
    for count, hostile in FEDERATIONS:
        runs: dict[tuple[str, str], list[dict[str, float]]] = {}
        for seed in range(settings.seeds):
            federation = functools.cache(partial(Attacked, settings, count, hostile, seed))
            for attack, rule in itertools.product(ATTACKS, RULES):
                what = f"{attack}-{rule}".replace(" ", "_").replace(",", "")
                name = f"{hostile}of{count}-{what}-r{settings.rounds}-l{settings.learning_rate:g}-s{seed}"
                figures = kept(folder / f"{name}.json", partial(_run, federation, attack, rule))
                on_cell(name)
                runs.setdefault((attack, rule), []).append(figures)
        for (attack, rule), found in runs.items():
            means = {key: statistics.fmean(run[key] for run in found) for key in FIGURES}
            spreads = {f"{key}_spread": deviation([run[key] for run in found]) for key in FIGURES}
            cells.append({"sites": count, "hostile": hostile, "attack": attack, "rule": rule, **means, **spreads})
    return cells


def _run(federation: Callable[[], "Attacked"], attack: str, rule: str) -> dict[str, float]:
    return federation().run(attack, rule)


def attack_tables(cells: Sequence[Mapping[str, Any]]) -> str:
    """Two tables, personal / shared prompt in percent: the accuracies, and how often a stamped image passes."""
    doors = [cell for cell in cells if cell["attack"] == "none" or ATTACKS[cell["attack"]].poison == "backdoor"]
    accuracies, passed = _table(cells, "personal", "shared"), _table(doors, "personal_success", "shared_success")
    return f"{accuracies}\n\nStamped images that pass for the target class:\n\n{passed}"


def _table(cells: Sequence[Mapping[str, Any]], personal: str, shared: str) -> str:
    rows: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        row = rows.setdefault((f"{cell['hostile']} of {cell['sites']}", cell["attack"]), [])
        row.append(f"{100 * cell[personal]:.1f} / {100 * cell[shared]:.1f}")
    return table(("Hostile sites", "Attack", *RULES), ([*key, *row] for key, row in rows.items()))


@dataclass(frozen=True)
class _Dealt:
    """One dealing of the data: every site as it is, the hostile ones' poisoned forms, and stamped test images."""

    sites: list[SimulatedSite]
    poisoned: Mapping[str, list[SimulatedSite]]
    stamped: list[Stamped]

    def under(self, attack: Attack) -> list[SimulatedSite]:
        bad = self.poisoned.get(attack.poison, [])
        return [*bad, *self.sites[len(bad) :]]


class Attacked:
    """The federation of one size and one seed, under whatever attack and rule; its data are read once.

    Args:
        settings: what all runs share.
        count: number of sites.
        hostile: how many of them are; the first ones.
        seed: of the dealing, of sampling and of noise.
    """

    def __init__(self, settings: AttackSettings, count: int, hostile: int, seed: int) -> None:
        data = DataSettings(source="digits")
        self._settings, self._hostile, self._seed = settings, hostile, seed
        self._classes = list_classes(data)
        self._backbone = load_backbone("embedded")
        dealt = partition_sites(load_pool(data, self._classes), self._classes, "iid", count, seed)
        self._dealt = _deal(dealt, self._classes, FeatureCache(None, self._backbone), hostile)

    def run(self, attack: str, rule: str) -> dict[str, float]:
        """One run's figures, means over the honest sites: accuracies and the backdoor's success, by either prompt."""
        sites = self._dealt.under(ATTACKS[attack])
        experiment = _experiment(self._settings, self._backbone, self._classes, self._dealt.sites, self._hostile, rule)
        lying = _Lying(self._backbone, sites, self._seed, ATTACKS[attack].factor, self._hostile)
        outcome = lying.run(experiment)
        found = [outcome.final[site.name] for site in sites[self._hostile :]]
        context = outcome.checkpoint.global_context
        by_personal, by_shared = success(self._backbone, experiment, self._dealt.stamped, context, outcome.personal)
        return {
            "personal": statistics.fmean(metrics["personal_local"] for metrics in found),
            "shared": statistics.fmean(metrics["global_local"] for metrics in found),
            "personal_success": by_personal,
            "shared_success": by_shared,
        }


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


def _experiment(
    settings: AttackSettings,
    backbone: Backbone,
    classes: tuple[str, ...],
    sites: list[SimulatedSite],
    hostile: int,
    rule: str,
) -> Experiment:
    run = RunSettings(
        optimizer=OptimizerSettings(global_learning_rate=settings.learning_rate),
        privacy=RunPrivacy(mechanism="per_step", trust="local", target_epsilon=EPSILON),
        rounds=RoundSettings(number=settings.rounds, evaluate_every=settings.rounds),
    )
    experiment = build_experiment("attacked", run, backbone, classes, sites)
    # A hostile site's reply may be dropped, for its norm, and the round goes on, where the rule bears it.
    dropouts = 0 if rule == "Krum" else hostile
    return dataclasses.replace(
        experiment,
        privacy=dataclasses.replace(experiment.privacy, tolerated_dropouts=dropouts),
        aggregation=dataclasses.replace(RULES[rule], trim=min(hostile, (len(sites) - hostile - 1) // 2)),
    )


class _Lying(Simulation):
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

    def add_up(self, request: SumRequest) -> SumReply:
        """See ``Agent``."""
        return self._agent.add_up(request)


def _with_flipped_labels(site: SimulatedSite) -> SimulatedSite:
    """Class k of K is called K - 1 - k in training."""
    last = len(site.features.classes) - 1
    train = LabelledFeatures(site.features.train.features, last - site.features.train.labels)
    return dataclasses.replace(site, features=dataclasses.replace(site.features, train=train))
