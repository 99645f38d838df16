"""The study behind docs/results/class-vectors.md: ``python -m research.evidence.study --out runs/evidence``.

Sites are simulated from cached features with the product's own functions (``dpfpl_common.evidence``); noise is seeded.
Photos are given by folders: ``--model FOLDER --photos FOLDER``. Every seed deals the images anew. Features of a set are
computed once and kept as .npz.
"""

import argparse
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dpfpl_client.agent.features import FeatureCache, site_features
from dpfpl_client.data import DataSettings, list_classes, partition_sites, read_pool
from dpfpl_client.data.builtin import list_shapes
from dpfpl_client.models.class_scorer import ClassScorer
from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.config import build
from dpfpl_common.evidence import (
    Head,
    Pool,
    class_head,
    directions,
    evidence_wins,
    mix_bonus,
    moment_pays,
    own_head,
    pool_rows,
    prefers_own,
    residuals,
    sharpened,
    summed_pool,
    unpack_moment,
    votes,
)
from dpfpl_common.privacy.accounting import calibrate_noise_multiplier
from dpfpl_common.privacy.noise import SeededNoise
from dpfpl_common.privacy.one_shot import noised_class_sums, noised_moment, noised_vote, shared_out
from research.writing import table

Floats = npt.NDArray[np.float64]
Parts = list[npt.NDArray[np.int64]]
Views = Mapping[str, Callable[[Sequence[str]], Sequence[str]]]
"""Names of a set, and how its classes are called there."""
EPSILONS = (None, 8.0, 2.0, 1.0)
MIXES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
DELTA = 1e-5
WAYS = {
    "text": "zero-shot with mix",
    "pooled": "federated, `local`",
    "secure": "federated, `secure`",
    "alone": "alone",
    "alone_evidence": "alone, vectors",
}
AT_EQUAL_OTHERS = ("text", "pooled", "alone_evidence")
INIT_TEXT, NUM_CONTEXT = "a photo of a", 4


@dataclass(frozen=True)
class StudySet:
    """Attributes: unit features [n, e] and labels [n] for training and testing, unit texts [C, e], logit scale."""

    name: str
    features: Floats
    labels: npt.NDArray[np.int64]
    test_features: Floats
    test_labels: npt.NDArray[np.int64]
    texts: Floats
    scale: float


def built_in(name: str, cache: Path) -> list[StudySet]:
    """``digits``, ``shapes``, or ``shapes-more`` with twice as many drawings, under the embedded model."""
    data = _more_shapes(cache / name) if name == "shapes-more" else build(DataSettings, {"source": name}, "")
    return _sets("embedded", data, cache / f"{name}.npz", {name: lambda names: names})


def _more_shapes(folder: Path, per_class: int = 300) -> DataSettings:
    for item in list_shapes(per_class).items:
        path = folder / f"{item.key.partition('/')[2]}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            item.source.read().save(path)
    return DataSettings("folder", str(folder))


def photos(model: str, folder: str, cache: Path) -> list[StudySet]:
    """A folder of photos three times: as its classes are named, half of them renamed to codes, and all of them."""
    name = Path(folder).name
    views = {name: lambda names: names, f"{name}-half": _half_renamed, f"{name}-renamed": _renamed}
    return _sets(model, DataSettings("folder", folder), cache / f"{name}.npz", views)


def _renamed(names: Sequence[str]) -> Sequence[str]:
    return [f"class-{number:02d}" for number in range(1, len(names) + 1)]


def _half_renamed(names: Sequence[str]) -> Sequence[str]:
    codes, chosen = _renamed(names), np.random.default_rng(5).permutation(len(names))[: len(names) // 2]
    return [codes[number] if number in chosen else name for number, name in enumerate(names)]


def _sets(model: str, data: DataSettings, cache: Path, views: Views) -> list[StudySet]:
    if not cache.exists():
        _compute(model, data, cache, views)
    with np.load(cache) as kept:
        arrays = dict(kept)
    common = (_unit(arrays["features"]), arrays["labels"], _unit(arrays["test_features"]), arrays["test_labels"])
    return [StudySet(name, *common, _unit(arrays[f"texts {name}"]), float(arrays["scale"])) for name in views]


def _compute(model: str, data: DataSettings, cache: Path, views: Views) -> None:
    backbone = load_backbone(model)
    assert isinstance(backbone, DualEncoder)
    classes = list_classes(data)
    (site,) = partition_sites(read_pool(data, classes).records, classes, "none", 1, 0)
    features = site_features(FeatureCache(None, backbone), site, classes)
    initial = backbone.text_embeddings(INIT_TEXT, NUM_CONTEXT)
    texts: dict[str, Any] = {}
    for name, view in views.items():
        with torch.no_grad():
            scorer = ClassScorer(backbone, backbone.class_tokens(tuple(view(classes)), NUM_CONTEXT))
            texts[f"texts {name}"] = scorer.class_features(initial).numpy()
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        cache,
        features=features.train.features.numpy(),
        labels=features.train.labels.numpy(),
        test_features=features.test.features.numpy(),
        test_labels=features.test.labels.numpy(),
        scale=np.array(backbone.logit_scale),
        **texts,
    )


def _unit(rows: npt.NDArray[np.float32]) -> Floats:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))


def disjoint(labels: npt.NDArray[np.int64], classes: int, rng: np.random.Generator, sites: int) -> Parts:
    """No class at two sites."""
    owner = np.empty(classes, dtype=int)
    owner[rng.permutation(classes)] = np.arange(classes) % sites
    return [np.flatnonzero(owner[labels] == site) for site in range(sites)]


def dirichlet(labels: npt.NDArray[np.int64], classes: int, rng: np.random.Generator, sites: int) -> Parts:
    """Shares of every class drawn from Dirichlet(0.3)."""
    parts: list[list[int]] = [[] for _ in range(sites)]
    for label in range(classes):
        own = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(np.cumsum(rng.dirichlet(np.full(sites, 0.3))) * len(own)).astype(int)[:-1]
        for part, piece in zip(parts, np.split(own, cuts), strict=True):
            part.extend(piece.tolist())
    return [np.array(part) for part in parts if part]


def iid(labels: npt.NDArray[np.int64], classes: int, rng: np.random.Generator, sites: int, size: int = 50) -> Parts:
    """Sites of ``size`` images of any class, as many as there are images for."""
    order = rng.permutation(len(labels))
    return [order[i * size : (i + 1) * size] for i in range(min(sites, len(labels) // size))]


def few(labels: npt.NDArray[np.int64], classes: int, rng: np.random.Generator, sites: int) -> Parts:
    """Three classes with eight images each."""
    free = {label: rng.permutation(np.flatnonzero(labels == label)).tolist() for label in range(classes)}
    parts = []
    for _ in range(sites):
        drawn = [free[label].pop() for label in rng.choice(classes, 3, replace=False) for _ in range(8) if free[label]]
        parts.append(np.array(drawn, dtype=np.int64))
    return [part for part in parts if len(part)]


def regimes(study: StudySet) -> dict[str, Any]:
    """Partitions by name."""
    many = len(study.texts) > 20
    found: dict[str, Any] = {
        "disjoint": functools.partial(disjoint, sites=8 if many else 4),
        "dirichlet 16": functools.partial(dirichlet, sites=16),
        "iid 20": functools.partial(iid, sites=20, size=len(study.labels) // 20),
        "iid 20 x 50": functools.partial(iid, sites=20),
    }
    return found | ({"20 x 3 x 8": functools.partial(few, sites=20)} if many else {})


class Release(NamedTuple):
    """Multipliers of one site's class sums and of its vote and moment, and whether there is a moment."""

    sums: float
    vote: float
    moment: bool


class Decision(NamedTuple):
    """Logits of the sharpened head, and whether the votes choose it."""

    logits: Floats
    wins: bool


class Case:
    """One division of one set under one epsilon: what the federation and each site alone would classify with."""

    def __init__(self, study: StudySet, parts: Parts, epsilon: float | None, rng: np.random.Generator) -> None:
        self.study, self.parts = study, parts
        z = 0.0 if epsilon is None else calibrate_noise_multiplier(epsilon, DELTA, 1.0, 1)
        local = self._release(z, len(parts))
        self.noise = SeededNoise(rng)
        sums = [self._released(part, local.sums) for part in parts]
        self.text = study.scale * study.test_features @ study.texts.T
        pool, weights = pool_rows(sums, local.sums)
        federated = self._decided(pool, weights, parts, local)
        self.wins = federated.wins
        alone = [summed_pool(own, local.sums, 1) for own in sums]
        at_sites = [self._at_site(pool, federated, local, *site)
                    for site in zip(parts, alone, weights, strict=True)]  # fmt: skip
        self.own = float(np.mean([logits is not federated.logits for logits in at_sites]))
        self.pooled = at_sites if self.wins else self.text
        self.secure = self._summed(z)
        decided = [self._decided(*pool_rows([own], local.sums), [part], local)
                   for own, part in zip(sums, parts, strict=True)]  # fmt: skip
        self.alone_evidence = [site.logits for site in decided]
        self.alone = [site.logits if site.wins else self.text for site in decided]

    def _release(self, z: float, noises: float, share: float = 1.0) -> Release:
        """What one site's part of a release of multiplier z is noised with, and whether a moment is in it."""
        images, classes = sum(map(len, self.parts)), len(self.study.texts)
        moment = moment_pays(classes, images, shared_out(z, moment=False)[1], noises)
        sums, vote = shared_out(z, moment=moment)
        return Release(share * sums, share * vote, moment)

    def _released(self, part: npt.NDArray[np.int64], noise_multiplier: float) -> Floats:
        features, labels = self.study.features[part].astype(np.float32), self.study.labels[part]
        return noised_class_sums(features, labels, len(self.study.texts), self.noise, noise_multiplier)

    def _decided(self, pool: Pool, weights: Floats, parts: Parts, release: Release) -> Decision:
        study, told, moments = self.study, 0.0, []
        head = class_head(pool, study.texts, study.scale)
        for part, own in zip(parts, weights, strict=True):
            features, labels = study.features[part], study.labels[part]
            each = votes(head, pool, study.texts, features, labels, own)
            told += noised_vote(each, self.noise, release.vote)
            moments.append(unpack_moment(noised_moment(residuals(head, features, labels), self.noise, release.vote)))
        wins = evidence_wins(told, sum(map(len, parts)), release.vote, len(parts))
        whole = np.sum(moments, axis=0), len(parts) * release.vote**2
        return Decision(self._sharp(head, pool, release, *whole), wins)

    def _sharp(self, head: Head, pool: Pool, release: Release, moment: Floats, variance: float) -> Floats:
        """Logits of the head, sharpened if the release has a moment."""
        if release.moment:
            known = dataclasses.replace(pool, moment=moment, moment_variance=variance)
            head = sharpened(head, directions(head), known)
        return head.logits(self.study.test_features)

    def _at_site(
        self,
        pool: Pool,
        federated: Decision,
        release: Release,
        part: npt.NDArray[np.int64],
        alone: Pool,
        weights: Floats,
    ) -> Floats:
        """The logits that a site uses where the votes chose class vectors."""
        known = (pool, alone, weights, self.study.texts, self.study.scale)
        features, labels = self.study.features[part], self.study.labels[part]
        if not prefers_own(*known, features, labels):
            return federated.logits
        own = own_head(*known)
        moment = unpack_moment(noised_moment(residuals(own, features, labels), self.noise, release.vote))
        return self._sharp(own, alone, release, moment, release.vote**2)

    def _summed(self, z: float) -> Floats:
        """What the federation classifies with under secure trust, with the same epsilon: sums of share-noised rows,
        votes and moments, one colluder and no drop-out tolerated. The masks cancel bit by bit, so none are made here.
        """
        parts = self.parts
        honest = max(1, len(parts) - 1)
        release = self._release(z, len(parts) / honest, 1.0 / math.sqrt(honest))
        rows = np.sum([self._released(part, release.sums) for part in parts], axis=0)
        pool = summed_pool(rows, release.sums, len(parts))
        decided = self._decided(pool, np.ones((len(parts), len(rows))), parts, release)
        return decided.logits if decided.wins else self.text

    def columns(self, logits: Floats | list[Floats], usual_mix: float = 0.5) -> tuple[float, float, float]:
        """Own, others' and all classes, in percent, class means, averaged over sites; all without the sites' mix."""
        study, rows = self.study, []
        for number, part in enumerate(self.parts):
            scores = logits[number] if isinstance(logits, list) else logits
            shares = np.bincount(study.labels[part], minlength=len(study.texts)) / max(1, len(part))
            mixed = (scores + mix_bonus(shares, usual_mix)).argmax(axis=1)
            plain = scores.argmax(axis=1)
            own = shares > 0
            rows.append((self._mean(mixed, own), self._mean(mixed, ~own), self._mean(plain, np.ones_like(own))))
        own_mean, others, every = (100 * _mean_of(column) for column in zip(*rows, strict=True))
        return own_mean, others, every

    def own_at(self, logits: Floats | list[Floats], others: float) -> float:
        """Best own accuracy over the usual mix at which the others' is at least ``others``; nan where there is none."""
        points = [self.columns(logits, mix)[:2] for mix in MIXES]
        return max((own for own, there in points if there >= others), default=math.nan)

    def _mean(self, predicted: npt.NDArray[np.int64], which: npt.NDArray[np.bool_]) -> float:
        right = predicted == self.study.test_labels
        found = [right[self.study.test_labels == label].mean() for label in np.flatnonzero(which)]
        return float(np.mean(found)) if found else math.nan


def _mean_of(values: Sequence[float]) -> float:
    """Of those there are; nan where there is none, as the others' classes where every site has all."""
    there = [value for value in values if not math.isnan(value)]
    return float(np.mean(there)) if there else math.nan


def measured(study: StudySet, seeds: Sequence[int], only: str = "") -> list[dict[str, Any]]:
    """One row for every regime and epsilon, means over seeds."""
    found = []
    for regime, deal in ((name, deal) for name, deal in regimes(study).items() if only in name):
        for epsilon in EPSILONS:
            rows = [_measured(study, deal, epsilon, np.random.default_rng([seed, 77])) for seed in seeds]
            means = {key: round(_mean_of([row.get(key, math.nan) for row in rows]), 2) for key in rows[0]}
            found.append({"set": study.name, "regime": regime, "epsilon": epsilon, "seeds": len(seeds), **means})
    return found


def _measured(study: StudySet, deal: Any, epsilon: float | None, rng: np.random.Generator) -> dict[str, float]:
    """Of one division, in percent."""
    case = Case(study, deal(study.labels, len(study.texts), rng), epsilon, rng)
    row = {"wins": 100.0 * case.wins, "own": 100 * case.own}
    for way in WAYS:
        for column, value in zip(("own", "others", "all"), case.columns(getattr(case, way)), strict=True):
            row[f"{way} {column}"] = value
    level = case.columns(case.text, 0.0)[1] - 2.0
    if not math.isnan(level):
        row |= {f"{way} own at": case.own_at(getattr(case, way), level) for way in AT_EQUAL_OTHERS}
    return row


def study_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, own / others' / all classes."""

    def cells(row: dict[str, Any]) -> Iterator[str]:
        yield from (row["set"], row["regime"], "none" if row["epsilon"] is None else f"{row['epsilon']:g}")
        for way in WAYS:
            yield " / ".join(f"{row[f'{way} {column}']:.1f}" for column in ("own", "others", "all"))
        yield f"{row['wins']:.0f} %"

    return table(("set", "sites", "epsilon", *WAYS.values(), "votes chose vectors"), map(cells, rows))


def asked_for(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[StudySet]]:
    """What the command line asks for, and the sets that it names; ``parser`` brings the program's own options."""
    parser.add_argument("--out", type=Path, required=True, help="folder for features, tables and pictures")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--model", help="folder of the photos' model")
    parser.add_argument("--photos", action="append", default=[], help="folder of photos; repeat")
    parser.add_argument("--sets", default="digits,shapes", help="built-in sets")
    asked = parser.parse_args()
    studies = [study for name in asked.sets.split(",") if name for study in built_in(name, asked.out)]
    for folder in asked.photos:
        studies += photos(asked.model, folder, asked.out)
    return asked, studies


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--regime", default="", help="only those whose name holds this")
    parser.add_argument("--first", type=int, default=0, help="first seed; others confirm what one lot shows")
    asked, studies = asked_for(parser)
    seeds = range(asked.first, asked.first + asked.seeds)
    rows = [row for study in studies for row in measured(study, seeds, asked.regime)]
    (asked.out / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
    (asked.out / "table.md").write_text(study_table(rows) + "\n")
    print(study_table(rows))


if __name__ == "__main__":
    main()
