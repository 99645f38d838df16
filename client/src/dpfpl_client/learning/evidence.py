"""The classifiers a site can use once class sums are pooled, and how right they are on its test images."""

import dataclasses
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
    "SiteHead",
    "accuracies",
    "alone_head",
    "chosen_head",
    "label_shares",
    "own_rows",
    "pooled_head",
    "rows_at_site",
    "shares_from",
    "site_head",
    "unpacked",
]

Floats = npt.NDArray[np.float64]


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


def label_shares(labels: torch.Tensor, classes: int) -> Floats:
    """[classes], exact, of a site's training images: for use at the site alone."""
    counts = np.bincount(labels.numpy(), minlength=classes).astype(np.float64)
    return np.asarray(counts / max(1.0, counts.sum()))


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
