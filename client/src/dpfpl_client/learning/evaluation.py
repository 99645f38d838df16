"""Accuracy of prompts on a site's test images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpfpl_client.learning.dual_encoder import DualEncoder
from dpfpl_client.learning.text_tower import ClassTokens

__all__ = ["LabelledFeatures", "accuracy", "class_probabilities", "head_probabilities"]


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


def accuracy(text_features: Tensor, images: LabelledFeatures) -> float | None:
    """Share of images whose class is, among all of the experiment's, the nearest; None without images.

    Args:
        text_features: unit rows [classes, feature_size].
        images: with unit features.
    """
    if len(images) == 0:
        return None
    predicted = (images.features @ text_features.T).argmax(dim=1)
    return float((predicted == images.labels).double().mean())
