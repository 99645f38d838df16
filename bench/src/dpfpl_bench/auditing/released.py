"""Membership inference on prompts that a run released: which of these images was it trained on?

The attacker has a site's prompt, the model and images with their labels. Members are training images, the others
test images of the same classes from the same draw, whose side was decided image by image. Members are thinned until
both are equally likely, so what is left are fair coins and the one-run bound applies. The score is how much surer
of the label the prompt is than the plain text, which takes out that some images are easy for everybody.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dpfpl_bench.auditing.bounds import one_run_bound
from dpfpl_bench.auditing.membership import Guesses, rates
from dpfpl_client.learning.dual_encoder import DualEncoder
from dpfpl_client.learning.evaluation import LabelledFeatures, class_probabilities
from dpfpl_client.learning.text_tower import ClassTokens

__all__ = ["ReleasedPrompt", "attack_released", "log_odds"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ReleasedPrompt:
    """A site's prompt, and the images whose membership is asked about.

    Attributes:
        prompt: the whole context [num_context, width] that the site's recipient holds.
        plain: the initial text's context, which is public.
        train, test: images of the site's classes, in and out of its training.
    """

    prompt: torch.Tensor
    plain: torch.Tensor
    train: LabelledFeatures
    test: LabelledFeatures


def attack_released(
    backbone: DualEncoder,
    tokens: ClassTokens,
    prompts: list[ReleasedPrompt],
    delta: float,
    generator: np.random.Generator,
) -> tuple[float, Guesses]:
    """The largest bound over the sites, each with its share of the error of 5 %, and success over all of them."""
    bounds, truths, scores = [], [], []
    for released in prompts:
        members = _thinned(released.train, released.test, generator)
        truth = np.repeat([True, False], [len(members), len(released.test)])
        found = np.concatenate([_surer(backbone, tokens, released, part) for part in (members, released.test)])
        confidence = 1 - 0.05 / len(prompts)
        bounds.append(one_run_bound(truth, found, delta, confidence))
        truths.append(truth)
        scores.append(found)
    return max(bounds), rates(np.concatenate(truths), np.concatenate(scores))


def _thinned(train: LabelledFeatures, test: LabelledFeatures, generator: np.random.Generator) -> LabelledFeatures:
    """Each member stays with the chance that makes a member as likely as another, whatever its class."""
    chance = min(1.0, len(test) / max(1, len(train)))
    return train.take(np.flatnonzero(generator.random(len(train)) < chance))


def _surer(backbone: DualEncoder, tokens: ClassTokens, released: ReleasedPrompt, part: LabelledFeatures) -> Floats:
    after, before = (
        log_odds(class_probabilities(backbone, context, tokens, part.features), part.labels)
        for context in (released.prompt, released.plain)
    )
    return after - before


def log_odds(probabilities: torch.Tensor, labels: torch.Tensor) -> Floats:
    """Log-odds of the labels [n] under probabilities [n, classes]."""
    right = probabilities.double().numpy()[np.arange(len(labels)), labels.numpy()]
    right = np.clip(right, 1e-9, 1 - 1e-9)
    odds: Floats = np.log(right) - np.log1p(-right)
    return odds
