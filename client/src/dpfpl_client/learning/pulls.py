"""Terms of the loss that no image enters: functions of the prompts so far, the model and the class names.

The prompts so far are functions of released values, the rest is public, so these gradients are post-processing: they
need no clipping for privacy and no noise. They are held to the length that one example may have, so that neither they
nor what is sent can grow beyond it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dpfpl_client.models.backbone import LabelledFeatures, Scorer
from dpfpl_common.experiment import Experiment

__all__ = ["TEMPERATURE", "Pull", "contrast_cotangents", "public_pull"]

Floats = npt.NDArray[np.float64]

TEMPERATURE = 0.5
"""Of the contrastive term, as published."""


@dataclass(frozen=True)
class Pull:
    """Gradients [num_context, width] to be added to the released ones: of the shared and of the personal context."""

    shared: Floats
    personal: Floats


def public_pull(
    experiment: Experiment, scorer: Scorer, initial: torch.Tensor, shared: torch.Tensor, whole: torch.Tensor
) -> Pull | None:
    """What the experiment's ``retention`` and ``contrast`` add to one step; None if it has neither.

    *Retention*: the loss on the class texts' features under the shared prompt alone, as if they were images: the
    personal part must go on telling all classes apart, also those that its site has no images of.

    *Contrast* (Cui et al. 2024, FedPGP): the shared prompt's class features are drawn towards those of the plain text
    and away from the personalised ones.

    Args:
        experiment: its weights.
        scorer: of the experiment's classes.
        initial: context of the plain text, [num_context, width].
        shared: context without the personal part.
        whole: context with it.
    """
    prompt = experiment.prompt
    if not (prompt.retention or prompt.contrast):
        return None
    longest = experiment.privacy.clipping_norm
    texts = scorer.class_features(shared)
    towards_shared = towards_personal = np.zeros(experiment.context_shape)
    if prompt.retention:
        pseudo = LabelledFeatures(texts, torch.arange(len(texts)))
        gradient = scorer.total_gradient(whole, pseudo, torch.full((len(texts),), 1.0 / len(texts)))
        towards_personal = towards_personal + prompt.retention * _held(gradient, longest)
    if prompt.contrast:
        on_shared, on_whole = contrast_cotangents(texts, scorer.class_features(whole), scorer.class_features(initial))
        # The whole context is a sum, so what pulls it pulls both of its parts.
        of_whole = scorer.feature_gradient(whole, on_whole)
        towards_personal = towards_personal + prompt.contrast * _held(of_whole, longest)
        both = of_whole + scorer.feature_gradient(shared, on_shared)
        towards_shared = towards_shared + prompt.contrast * _held(both, longest)
    return Pull(towards_shared, towards_personal)


def contrast_cotangents(
    shared: torch.Tensor, personal: torch.Tensor, plain: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the contrastive term by the shared and by the personalised class features.

    The term is the mean over classes of ``-log(e^(G.C / t) / (e^(G.C / t) + e^(G.P / t)))`` for unit rows G of the
    shared, C of the plain and P of the personalised prompt.

    Args:
        shared: unit class features [classes, feature_size].
        personal: the same shape.
        plain: the same shape.
    """
    gap = ((shared * personal).sum(dim=1) - (shared * plain).sum(dim=1)) / TEMPERATURE
    push = torch.sigmoid(gap)[:, None] / (TEMPERATURE * len(shared))
    return push * (personal - plain), push * shared


def _held(gradient: torch.Tensor, longest: float) -> Floats:
    found: Floats = gradient.double().numpy()
    return found * min(1.0, longest / max(float(np.linalg.norm(found)), 1e-300))
