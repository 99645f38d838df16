"""The tables of docs/results/accuracy.md: method, mechanism and trust mode against epsilon, on the built-in image sets.

``python -m research.tables.privacy --out runs/privacy --docs docs/results`` makes the runs that are missing, one JSON
file each, so it can be interrupted and goes on where it was; then it writes privacy-runs.json and the tables between
their marks in accuracy.md.
"""

import argparse
import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import torch
from torch import Tensor

from dpfpl_bench.simulation.baselines import centralised, local_only
from dpfpl_bench.simulation.in_process import SimulatedSite, Simulation, prepare_sites, site_names
from dpfpl_bench.simulation.settings import RunPrivacy, RunPrompt, RunSettings, build_experiment
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.data import DataSettings, list_classes, partition_sites, read_pool
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.class_scorer import ClassScorer
from dpfpl_client.models.dual_encoder import DualEncoder, as_dual_encoder
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.models.text_tower.choice import TextPass
from dpfpl_client.models.text_tower.states import ClassTokens
from dpfpl_common.experiment import METHODS, Experiment, Mechanism, Method, RoundSettings, Trust
from dpfpl_common.ops.telemetry import silence_telemetry
from dpfpl_server.runs.result import floors_from_metrics, mean
from research.writing import kept, spread, table

__all__ = [
    "TABLES",
    "PrivacyRun",
    "Table",
    "collected",
    "done",
    "lifted_backbone",
    "lifted_features",
    "limited",
    "main",
    "markdown",
    "runs_of",
    "settings_of",
    "simulated",
    "with_tables",
]

silence_telemetry()

LIFT_SEED: Final = 7
SITES: Final = 4
SEEDS: Final = 3
EPSILONS: Final = (8.0, 4.0, 2.0, 1.0, 0.5)
FLOORS: Final = ("zero_shot", "global_only", "local_only", "centralised")

Data = Literal["digits", "shapes"]
Projection = Literal["none", "text"]
Way = tuple[Mechanism, Trust, Projection]

WAYS: Final[tuple[Way, ...]] = (
    ("per_step", "distributed", "none"),
    ("per_step", "central", "none"),
    ("per_step", "local", "none"),
    ("one_shot", "local", "none"),
    ("one_shot", "local", "text"),
)
NARROW: Final[tuple[Way, ...]] = (WAYS[0], WAYS[3], WAYS[4])


# The same model in a larger feature space: what ``one_shot`` does when the dimension grows and nothing else.
#
# Image and text features are mapped into R^size by one fixed map with orthonormal columns. All products of two features
# stay what they were, so every logit, gradient and accuracy is the original's up to rounding; only class sums, and with
# them the noise of ``one_shot``, have more coordinates. What this cannot show: the text features of a real model of
# that size fill more of the space, and here noise outside the original space touches no logit.


def lifted_backbone(backbone: DualEncoder, size: int) -> DualEncoder:
    """``backbone`` with features of ``size`` coordinates, at least as many as it has."""
    return cast(DualEncoder, _Lifted(backbone, _map(backbone.feature_size, size)))


def lifted_features(features: SiteFeatures, size: int) -> SiteFeatures:
    """A site's image features in the space of ``lifted_backbone(..., size)``."""
    lift = _map(features.train.features.shape[1], size)

    def lifted(images: LabelledFeatures) -> LabelledFeatures:
        return LabelledFeatures(images.features @ lift.T, images.labels)

    return SiteFeatures(
        lifted(features.train), lifted(features.test), lifted(features.neighbour_test), features.classes
    )


def _map(feature_size: int, size: int) -> Tensor:
    """[size, feature_size] with orthonormal columns, the same at every call."""
    columns, _ = np.linalg.qr(np.random.default_rng(LIFT_SEED).normal(size=(size, feature_size)))
    return torch.from_numpy(columns).float()


class _Lifted:
    """Delegates all but the features to the original."""

    def __init__(self, backbone: DualEncoder, lift: Tensor) -> None:
        self._backbone, self._lift = backbone, lift
        self.feature_size = len(lift)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def scorer(self, experiment: Experiment) -> ClassScorer:
        tokens = self._backbone.class_tokens(experiment.classes, experiment.prompt.num_context)
        return ClassScorer(cast(DualEncoder, self), tokens)

    def text_features(self, context: Tensor, tokens: ClassTokens) -> Tensor:
        return self._backbone.text_features(context, tokens) @ self._lift.T

    def text_pass(
        self, context: Tensor, tokens: ClassTokens, *, coarse: bool = False, singly: bool = False
    ) -> TextPass:
        return _LiftedPass(self._backbone.text_pass(context, tokens, coarse=coarse, singly=singly), self._lift)


class _LiftedPass:
    def __init__(self, original: TextPass, lift: Tensor) -> None:
        self._original, self._lift = original, lift
        self.features = original.features @ lift.T

    def pullback(self, cotangents: Tensor) -> Tensor:
        return self._original.pullback(cotangents @ self._lift)

    def rank_one_pullback(self, scales: Tensor, directions: Tensor, *, coarse: bool = False, few: int = 0) -> Tensor:
        return self._original.rank_one_pullback(scales, directions @ self._lift, coarse=coarse, few=few)


@dataclass(frozen=True)
class PrivacyRun:
    """One run.

    Attributes:
        epsilon: for the recipient of a personalised prompt; None = no noise.
        seed: of split, partition, sampling and noise.
        per_class: most training images of a class at a site; 0 = all.
        size: dimension that the features are lifted into; 0 = the model's own.
    """

    method: Method
    mechanism: Mechanism
    trust: Trust
    projection: Projection = "none"
    epsilon: float | None = None
    seed: int = 0
    data: Data = "digits"
    rank: int = 2
    per_class: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        """Names its file, and the run itself in docs/results/privacy-runs.json."""
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


def settings_of(run: PrivacyRun) -> RunSettings:
    """The settings of the run; what it does not name has the default."""
    return RunSettings(
        prompt=RunPrompt(method=run.method, rank=run.rank, evidence=False),
        privacy=RunPrivacy(
            mechanism=run.mechanism,
            trust=run.trust,
            projection=run.projection,
            target_epsilon=run.epsilon,
            noise_multiplier=0.0 if run.epsilon is None else None,
        ),
        rounds=RoundSettings(evaluate_every=100),
    )


def limited(site: SimulatedSite, per_class: int, seed: int) -> SimulatedSite:
    """The site with at most ``per_class`` training images of a class, drawn from the seed."""
    train = site.features.train
    labels, generator = train.labels.numpy(), np.random.default_rng(seed)
    some = [generator.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)]
    features = dataclasses.replace(site.features, train=train.take(np.concatenate(some)))
    return dataclasses.replace(site, features=features)


@functools.cache
def _model() -> DualEncoder:
    return as_dual_encoder(load_backbone("embedded"))


@functools.cache
def _sites(data: Data, seed: int) -> tuple[tuple[str, ...], tuple[SimulatedSite, ...]]:
    settings = DataSettings(source=data, split_seed=seed)
    names = list_classes(settings)
    pool = read_pool(settings, names, None)
    parts = partition_sites(pool.records, names, "pathological", SITES, seed)
    return names, tuple(prepare_sites(parts, names, FeatureCache(None, _model()), site_names(SITES)))


def simulated(run: PrivacyRun) -> dict[str, Any]:
    """``accuracy`` of the personalised prompts, the ``noise_multiplier``, and ``floors`` where it has them."""
    backbone = _model()
    names, every = _sites(run.data, run.seed)
    sites = [limited(site, run.per_class, run.seed) for site in every] if run.per_class else list(every)
    if run.size:
        backbone = lifted_backbone(backbone, run.size)
        sites = [dataclasses.replace(site, features=lifted_features(site.features, run.size)) for site in sites]
    experiment = build_experiment("privacy-table", settings_of(run), backbone, names, sites)
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


def done(run: PrivacyRun, folder: Path) -> Any:
    """The run's result from its file in ``folder``, made first where there is none."""
    return kept(folder / f"{run.name}.json", functools.partial(simulated, run))


@dataclass(frozen=True)
class Table:
    """Attributes: ``rows``: what stands at the left, and a run of the row; ``floors``: below, where there are any."""

    head: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], PrivacyRun], ...]
    epsilons: tuple[float | None, ...] = (None, *EPSILONS)
    floors: bool = False


def _shown(mechanism: str, projection: str) -> str:
    return mechanism if projection == "none" else f"{mechanism}, projection {projection}"


def _few() -> tuple[tuple[tuple[str, ...], PrivacyRun], ...]:
    rows = []
    for per_class in (5, 10, 30, 0):
        for size in (0, 512):
            for mechanism, trust, projection in NARROW:
                if size and mechanism == "per_step":
                    continue  # it does not depend on the dimension
                dimension = "any" if mechanism == "per_step" else str(size or 96)
                labels = (str(per_class or "all, about 130"), mechanism, projection, dimension)
                rows.append((labels, PrivacyRun("dpfpl", mechanism, trust, projection, per_class=per_class, size=size)))
    return tuple(rows)


TABLES: Final[Mapping[str, Table]] = {
    "methods": Table(
        ("method", "mechanism", "trust"),
        tuple(
            ((method, _shown(way[0], way[2]), way[1]), PrivacyRun(method, *way)) for method in METHODS for way in WAYS
        ),
        floors=True,
    ),
    "ranks": Table(
        ("rank", "mechanism", "trust"),
        tuple(
            ((str(rank), way[0], way[1]), PrivacyRun("dpfpl", *way, rank=rank))
            for way in NARROW[:2]
            for rank in (1, 2, 4)
        ),
    ),
    "shapes": Table(
        ("method", "mechanism", "trust"),
        tuple(
            (("dpfpl", _shown(way[0], way[2]), way[1]), PrivacyRun("dpfpl", *way, data="shapes"))
            for way in (WAYS[0], WAYS[2], WAYS[3], WAYS[4])
        ),
        floors=True,
    ),
    "few": Table(("images of a class", "mechanism", "projection", "dimension"), _few(), EPSILONS),
}


def runs_of(tables: Sequence[str]) -> list[PrivacyRun]:
    """All their runs, each once, table after table."""
    every = [
        dataclasses.replace(row, epsilon=epsilon, seed=seed).stands_for
        for name in tables
        for seed in range(SEEDS)
        for epsilon in TABLES[name].epsilons
        for _, row in TABLES[name].rows
    ]
    with_floors = sorted({TABLES[name].rows[0][1].data for name in tables if TABLES[name].floors})
    every += [run for data in with_floors for run in _with_floors(data)]
    return list(dict.fromkeys(every))


def _with_floors(data: Data) -> list[PrivacyRun]:
    runs = [PrivacyRun("dpfpl", "per_step", "local", seed=seed, data=data) for seed in range(SEEDS)]
    assert all(run.has_floors for run in runs)
    return runs


def collected(folder: Path) -> dict[str, Any]:
    """The results of all runs, as privacy-runs.json keeps them: percent, local and neighbour, by run."""
    found: dict[str, Any] = {}
    for run in runs_of(tuple(TABLES)):
        result = done(run, folder)
        found[run.name] = _percent(result["accuracy"])
        if run.has_floors:
            found |= {f"{run.name} {floor}": _percent(result["floors"][floor]) for floor in FLOORS}
    return dict(sorted(found.items()))


def _percent(accuracy: Mapping[str, float]) -> list[float]:
    return [round(100 * accuracy[where], 3) for where in ("local", "neighbour")]


def markdown(name: str, found: Mapping[str, Sequence[float]]) -> str:
    """A table: mean over seeds of local / neighbour accuracy in percent, with the standard deviation over seeds."""
    shown = TABLES[name]
    head = [*shown.head, "seeds", *(f"epsilon {epsilon:g}" if epsilon else "no noise" for epsilon in shown.epsilons)]
    rows = []
    for labels, run in shown.rows:
        cells = [
            [dataclasses.replace(run, epsilon=epsilon, seed=seed).stands_for.name for seed in range(SEEDS)]
            for epsilon in shown.epsilons
        ]
        rows.append([*labels, str(SEEDS), *(_pair([found[each] for each in names]) for names in cells)])
    if not shown.floors:
        return table(head, rows)
    runs = _with_floors(shown.rows[0][1].data)
    floors = [(floor, str(SEEDS), _pair([found[f"{run.name} {floor}"] for run in runs])) for floor in FLOORS]
    return table(head, rows) + "\n\n" + table(("baseline (no noise)", "seeds", "local / neighbour"), floors)


def _pair(results: Sequence[Sequence[float]]) -> str:
    return " / ".join(spread(values) for values in zip(*results, strict=True))


def with_tables(document: str, found: Mapping[str, Sequence[float]]) -> str:
    """The document with every table between its marks, ``<!-- table: NAME -->`` and ``<!-- end -->``, made anew."""

    def made(mark: re.Match[str]) -> str:
        return f"<!-- table: {mark[1]} -->\n{markdown(mark[1], found)}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", made, document, flags=re.DOTALL)


def main() -> None:
    """Make the runs that are missing, then write the tables into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/privacy"), help="folder of the runs' files")
    parser.add_argument("--docs", type=Path, default=Path("docs/results"), help="the folder of accuracy.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    todo = runs_of(tuple(TABLES))
    for number, run in enumerate(todo, start=1):
        done(run, options.out)
        print(f"{number}/{len(todo)} {run.name}", flush=True)
    found = collected(options.out)
    lines = [f"  {json.dumps(name)}: {json.dumps(pair)}" for name, pair in found.items()]
    (options.docs / "privacy-runs.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    document = options.docs / "accuracy.md"
    document.write_text(with_tables(document.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
