"""Right answers that are longer than an experiment lets a model answer: no prompt can say them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpfpl_client.models.backbone import Scorer
from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_client.models.text_tower.shared_prefix import ClassTokens
from dpfpl_common.experiment import TaskSettings

__all__ = ["LabelledFeatures", "agreement", "class_probabilities", "head_probabilities", "too_long_answers"]


# Accuracy of prompts on a site's test images.


@dataclass(frozen=True)
class LabelledFeatures:
    """Image rows [n, feature_size] (unit features, where the model compares) and class indices [n].

    ``asked``, where questions are to be answered: question and right answer of every example; labels then mean nothing.
    """

    features: Tensor
    labels: Tensor
    asked: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def none(self) -> "LabelledFeatures":
        """An empty set of the same kind of rows."""
        return LabelledFeatures(self.features[:0], self.labels[:0])

    def take(self, indices: npt.NDArray[np.int64]) -> "LabelledFeatures":
        """Those of these indices."""
        chosen = torch.from_numpy(indices)
        asked = tuple(self.asked[int(index)] for index in indices) if self.asked else ()
        return LabelledFeatures(self.features[chosen], self.labels[chosen], asked)


@torch.no_grad()
def class_probabilities(backbone: DualEncoder, context: Tensor, tokens: ClassTokens, image_features: Tensor) -> Tensor:
    """p(c | x) [n, classes] of a context [num_context, width] on unit image features [n, feature_size]."""
    return head_probabilities(backbone, backbone.text_features(context, tokens), image_features)


def head_probabilities(backbone: DualEncoder, text_features: Tensor, image_features: Tensor) -> Tensor:
    """The model's own head: a softmax over the classes, or a sigmoid for each where the model has a bias for it."""
    logits = backbone.logit_scale * image_features @ text_features.T
    return torch.softmax(logits, dim=1) if backbone.logit_bias is None else torch.sigmoid(logits + backbone.logit_bias)


def agreement(text_features: Tensor, images: LabelledFeatures) -> Tensor:
    """[n], 1 where an image's class is, among all of the experiment's, the nearest, else 0.

    Args:
        text_features: unit rows [classes, feature_size].
        images: with unit features.
    """
    if len(images) == 0:
        return torch.zeros(0, dtype=torch.float64)
    return ((images.features @ text_features.T).argmax(dim=1) == images.labels).double()


def too_long_answers(scorer: Scorer, task: TaskSettings, answers: Sequence[str]) -> str:
    """What a site should know about its answers, with a code; empty where all can be said.

    Args:
        scorer: the model joined to the experiment.
        task: the experiment's.
        answers: the right ones.
    """
    count = scorer.cut_off(answers) if task.in_words else 0
    if not count:
        return ""
    return (
        f"{count} of {len(answers)} answers can never be right: what the model says ends after "
        f"{task.max_answer_tokens} tokens. Shorten them, or have the experiment's task.max_answer_tokens raised. "
        "[ANSWERS_TOO_LONG]"
    )
