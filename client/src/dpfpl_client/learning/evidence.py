"""What a site makes of noised class sums: examples to train on, classifiers, and how right they are on its test images.

``one_shot`` releases one noised sum of image features per class, once; all training after it is post-processing. The
image tower is frozen, so an example enters training only through its unit feature z_x and its label. The sum
``S_c = sum_{x of class c} z_x`` over every class of the public list, each coordinate with Gaussian noise of standard
deviation z, is one Gaussian mechanism of L2 sensitivity 1: adding or removing an example changes one row by a vector of
norm 1. Everything computed from the noised sums costs nothing more, towards anybody.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from dpfpl_client.models.backbone import LabelledFeatures, Scorer
from dpfpl_common.errors import ModelError
from dpfpl_common.evidence import (
    Head,
    Pool,
    class_head,
    directions,
    hidden_energy,
    looks_unlike,
    mix_bonus,
    own_head,
    sharpened,
    summed_pool,
    text_head,
    unpack_moment,
    unpack_pool,
    with_names,
)
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy_plan import class_sums_multiplier, vote_multiplier

__all__ = [
    "OwnRows",
    "Prototypes",
    "SiteHead",
    "accuracies",
    "alone_head",
    "chosen_head",
    "own_rows",
    "pooled_head",
    "prototypes_from",
    "rows_at_site",
    "shares_from",
    "site_head",
    "unpacked",
]

Floats = npt.NDArray[np.float64]

MOST_HIDDEN = 2.0
"""Weight of all classes that were not found, over that of those that were: at most this."""


@dataclass(frozen=True)
class Prototypes:
    """Pseudo-examples to train on.

    Attributes:
        features: [classes, feature_size]: direction of the class mean as far as it is known, of the class's text
            feature otherwise; each of norm at most 1.25.
        weights: [classes], adding up to 1, or all 0 where no class is found in the noise.
    """

    features: Floats
    weights: Floats


def prototypes_from(
    sums: Floats,
    noise_multiplier: float,
    expected: Floats,
    directions: Floats | None = None,
    absent_weight: float = 0.0,
) -> Prototypes:
    """How far to believe the noised sums; decided from them and from public facts alone, so it costs nothing.

    *Which rows.* The squared norm of pure noise in k dimensions exceeds ``z^2 (k + 2 sqrt(k t) + 2 t)`` with chance at
    most ``exp(-t)`` (``dpfpl_common.privacy_plan``). A row above that, t = ln(10^6), is a class that the site has, and
    counts by its signal. Below it a signal of ``z sqrt(2 sqrt(k t) + 2 t)`` may hide: such a class counts
    by that, with its text feature in the image's place, so that the prompt keeps a class that lacks evidence.

    *The absent.* With ever less noise nothing can hide any more, and the classes that a site lacks would cease to
    count: the prompt would be bent towards the site's own classes. ``absent_weight`` is the least share of all weight
    that the classes that were not found have together.

    *How far.* Of a found row the noise's share of the energy is subtracted, which leaves the share w, and what is
    missing is filled up with the class's own text feature: ``w (row / signal) + (1 - w) expected``, a Wiener filter
    whose prior mean is what zero-shot believes. With ever more noise first the rows become the text features, then none
    is found, nothing is learned, and the prompt stays the zero-shot text.

    *Directions.* Given k public ones, the rows are projected onto them first. Isotropic noise in d coordinates,
    projected, has the law of noise drawn in those k coordinates: norm ``z sqrt(k)`` instead of ``z sqrt(d)``.

    Args:
        sums: [classes, feature_size], noised.
        noise_multiplier: z.
        expected: [classes, feature_size], unit text features of the initial prompt.
        directions: [k, feature_size], orthonormal rows; None: all.
        absent_weight: from 0 to below 1.
    """
    size = sums.shape[1]
    if directions is not None:
        sums, size = sums @ directions.T @ directions, len(directions)
    energy = np.sum(sums**2, axis=1)
    pure_noise = noise_multiplier**2 * size
    hiding = hidden_energy(noise_multiplier, size)
    found = energy > pure_noise + hiding
    signal = np.sqrt(np.where(found, np.maximum(energy - pure_noise, 0.0), 0.0))
    norms = np.sqrt(np.maximum(energy, 1e-300))
    shrinking = (signal / norms)[:, None]  # sqrt(w)
    features = shrinking * sums / norms[:, None] + (1.0 - shrinking**2) * expected
    if not found.any():
        return Prototypes(features=features, weights=np.zeros(len(sums)))
    most = MOST_HIDDEN * float(signal.sum()) / max(1, int(np.sum(~found)))
    least = absent_weight / (1.0 - absent_weight) * float(signal.sum()) / max(1, int(np.sum(~found)))
    weights = np.where(found, signal, max(min(math.sqrt(hiding), most), least))
    return Prototypes(features=features, weights=weights / weights.sum())


@dataclass(frozen=True)
class SiteHead:
    """What a site classifies with: ``softmax(scale * x . vectors + bias)``.

    Attributes:
        vectors: [classes, feature_size], last those of names that were added afterwards.
        scale: of the logits.
        own_bias: [classes], the head's own; 0 unless a moment sharpened it.
        shares: how often the site expects each class of the experiment; all 0 where that is not known.
        usual_mix: share of images that are expected from this mix.
    """

    vectors: Floats
    scale: float
    own_bias: Floats
    shares: Floats
    usual_mix: float

    @property
    def mix(self) -> Floats:
        """[classes], of the bias the log of how often a class is expected."""
        return mix_bonus(self.shares, self.usual_mix, len(self.vectors) - len(self.shares))

    @property
    def bias(self) -> Floats:
        """[classes], of the logits."""
        return self.own_bias + self.mix

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """[n, classes] of unit image features [n, feature_size], float64."""
        scores = self.scale * (features.double().numpy() @ self.vectors.T) + self.bias
        return torch.from_numpy(scores)

    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """[n, classes] of unit image features [n, feature_size]."""
        return torch.softmax(self.logits(features), dim=1).float()


OwnRows = Pool | Literal[False] | None
"""Whose rows a site's class vectors come from. A pool: its own rows, with a moment about its own class vectors; False:
the pool of all sites; both by its own decision, for use at the site. None: released values decide."""


def own_rows(
    experiment: Experiment, class_sums: Floats | None, vote: npt.NDArray[np.floating[Any]] | None
) -> Pool | None:
    """What a site released by itself, as a pool of one; None before, and under ``secure``, where only the sums of all
    sites left them.

    Args:
        experiment: whose noise it carries.
        class_sums: [classes, feature_size], noised.
        vote: with the moment, as in ``PersonalState``; or with the one that ``PromptLearner.own_moment`` gives.
    """
    if class_sums is None or experiment.privacy.trust == "secure":
        return None
    alone = summed_pool(class_sums, class_sums_multiplier(experiment), 1)
    if vote is None or len(vote) == 1:
        return alone
    moment, variance = unpack_moment(vote[1:].astype(np.float64)), vote_multiplier(experiment) ** 2
    return dataclasses.replace(alone, moment=moment, moment_variance=variance)


def rows_at_site(experiment: Experiment, class_sums: Floats | None, moment: Floats | None) -> Pool | Literal[False]:
    """What a site itself uses, by its own decision (``PromptLearner.own_moment``). Arguments as of ``own_rows``."""
    return (own_rows(experiment, class_sums, moment) or False) if moment is not None else False


def unpacked(pool: npt.NDArray[np.float32], classes: int, size: int) -> tuple[Pool, Floats]:
    """The pool and the site's weights in it (``unpack_pool``).

    Raises:
        ModelError: it is of another model's features.
    """
    shared, weights = unpack_pool(pool, classes)
    if shared.rows.shape != (classes, size):
        raise ModelError(
            code="OTHER_MODEL",
            message=f"The pool holds rows of {shared.rows.shape[1]} numbers, the model gives {size}.",
            advice="Let every site use the experiment's model.",
        )
    return shared, weights


def pooled_head(
    scorer: Scorer,
    initial: torch.Tensor,
    pool: npt.NDArray[np.float32],
    context: torch.Tensor | None,
    alone: Pool | None = None,
    own: OwnRows = None,
    longer: Scorer | None = None,
) -> Head:
    """Class vectors from the pool, or from a site's own rows with the others' class vectors as prior; sharpened if
    there is a moment, in the directions of the class vectors that it is about.

    Args:
        scorer: of the model and the classes.
        initial: the plain prompt.
        pool: of all sites, packed.
        context: of the texts that are the prior; None: the plain prompt.
        alone: of ``own_rows``, what the site released: its moment is about the pool's class vectors. None: there is
            none.
        own: see ``OwnRows``; at the site ``prefers_own`` decides, on released values ``looks_unlike``.
        longer: of the classes and the names that were added afterwards (``with_names``).

    Raises:
        ModelError: the pool is of another model's features.
    """
    plain = _texts(scorer, initial)
    texts = plain if context is None else _texts(scorer, context)
    names = _names(longer, initial if context is None else context, texts)
    shared, weights = unpacked(pool, *texts.shape)
    scale = scorer.logit_scale
    if own:
        basis = directions(own_head(shared, own, weights, plain, scale))
        return sharpened(own_head(shared, own, weights, texts, scale, names), basis, own)
    basis = directions(class_head(shared, plain, scale))
    if own is None and alone is not None and looks_unlike(shared, alone, weights, texts, scale):
        return sharpened(own_head(shared, alone, weights, texts, scale, names), basis, alone)
    return sharpened(with_names(class_head(shared, texts, scale), texts, names), basis, shared)


def alone_head(texts: Floats, scale: float, alone: Pool, pool: npt.NDArray[np.float32]) -> Head:
    """Class vectors from what one site released, for a comparison. Its moment is about the pool's class vectors, so it
    is read in their directions.

    Args:
        texts: [classes, feature_size] unit text features of the plain prompt.
        scale: the model's own logit scale.
        alone: of ``own_rows``.
        pool: of all sites, packed.
    """
    basis = directions(class_head(unpack_pool(pool, len(texts))[0], texts, scale))
    return sharpened(class_head(alone, texts, scale), basis, alone)


def chosen_head(
    scorer: Scorer,
    initial: torch.Tensor,
    pool: npt.NDArray[np.float32],
    chosen: str,
    context: torch.Tensor | None,
    alone: Pool | None = None,
    own: OwnRows = None,
    longer: Scorer | None = None,
) -> Head:
    """What the votes chose: class vectors (``evidence``, see ``pooled_head``), or the plain text's own head
    (``text``).
    """
    if chosen == "evidence":
        return pooled_head(scorer, initial, pool, context, alone, own, longer)
    texts = _texts(scorer, initial)
    return text_head(np.vstack([texts, _names(longer, initial, texts)]), scorer.logit_scale)


def shares_from(class_sums: Floats, total: Floats, noise_multiplier: float) -> Floats:
    """[classes], from the site's noised class sums, so that they may leave the site; all 0 where nothing stands out.

    Args:
        class_sums: [classes, feature_size], what the site released.
        total: [feature_size], a sum of noised rows; shows the direction that images have in common.
        noise_multiplier: of the class sums.
    """
    held = class_sums @ (total / max(float(np.linalg.norm(total)), 1e-300))
    # Three standard deviations: of the classes that the site lacks, one in 740 is taken for one that it has.
    held = np.where(held > 3.0 * noise_multiplier, held, 0.0)
    return np.asarray(held / held.sum()) if held.sum() > 0 else np.zeros(len(held))


def site_head(head: Head, shares: Floats, usual_mix: float) -> SiteHead:
    """The head with a site's usual mix of classes."""
    return SiteHead(head.vectors, head.scale, head.scale * head.bias, shares, usual_mix)


def accuracies(head: SiteHead, test: LabelledFeatures, others: LabelledFeatures, own: Floats) -> Mapping[str, float]:
    """``local``: on images like the site's own; ``neighbour``: on the others'; ``unseen``: on all images of classes
    that the site has none of; ``all``: mean over all classes, each expected as often as any other, so without the
    site's usual mix. A column without images has no entry. Own and others' classes are a notion of simulations, where
    public data are dealt out: without the others' images there is no ``unseen``, so that no name of a metric tells
    which classes a deployed site trains on.

    Args:
        head: the classifier.
        test: images like the site's own.
        others: the other sites' test images.
        own: [classes], the site's shares of classes.
    """
    result = {}
    for name, images in (("local", test), ("neighbour", others)):
        if len(images):
            result[name] = float((head.logits(images.features).argmax(dim=1) == images.labels).double().mean())
    features, labels = torch.cat([test.features, others.features]), torch.cat([test.labels, others.labels])
    if not len(labels):
        return result
    logits = head.logits(features)
    unseen = torch.from_numpy(own == 0)[labels]
    if len(others) and unseen.any():
        result["unseen"] = float((logits[unseen].argmax(dim=1) == labels[unseen]).double().mean())
    right = (logits - torch.from_numpy(head.mix)).argmax(dim=1) == labels
    of_class = [float(right[labels == label].double().mean()) for label in sorted(set(labels.tolist()))]
    result["all"] = sum(of_class) / len(of_class)
    return result


def _names(longer: Scorer | None, context: torch.Tensor, texts: Floats) -> Floats:
    """[n, feature_size], the texts of the names behind the experiment's classes."""
    return texts[:0] if longer is None else _texts(longer, context)[len(texts) :]


def _texts(scorer: Scorer, context: torch.Tensor) -> Floats:
    texts: Floats = scorer.class_features(context).double().numpy()
    return texts
