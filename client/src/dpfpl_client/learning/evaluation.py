"""Accuracy of prompts on a site's test images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpfpl_client.learning.backbone import ClipBackbone
from dpfpl_client.learning.text_tower import ClassTokens

__all__ = ["LabelledFeatures", "accuracy", "class_probabilities"]


@dataclass(frozen=True)
class LabelledFeatures:
    """Unit image features [n, feature_size] and class indices [n]."""

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.int64]) -> "LabelledFeatures":
        """Those of these indices."""
        chosen = torch.from_numpy(indices)
        return LabelledFeatures(self.features[chosen], self.labels[chosen])


@torch.no_grad()
def class_probabilities(backbone: ClipBackbone, context: Tensor, tokens: ClassTokens, image_features: Tensor) -> Tensor:
    """p(c | x) [n, classes] of a context [num_context, width] on unit image features [n, feature_size]."""
    text_features = backbone.text_features(context, tokens)
    return torch.softmax(backbone.logit_scale * image_features @ text_features.T, dim=1)


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
