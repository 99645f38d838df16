"""The same model in a larger feature space: what ``one_shot`` does when the dimension grows and nothing else.

Image and text features are mapped into R^size by one fixed map with orthonormal columns. All products of two features
stay what they were, so every logit, gradient and accuracy is the original's up to rounding; only class sums, and with
them the noise of ``one_shot``, have more coordinates. What this cannot show: the text features of a real model of that
size fill more of the space, and here noise outside the original space touches no logit.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dpfpl_client.learning.class_scorer import ClassScorer
from dpfpl_client.learning.dual_encoder import DualEncoder
from dpfpl_client.learning.evaluation import LabelledFeatures
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.learning.text_tower import ClassTokens
from dpfpl_client.learning.tower_choice import TextPass
from dpfpl_common.experiment import Experiment

__all__ = ["lifted_backbone", "lifted_features"]

SEED = 7


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
    columns, _ = np.linalg.qr(np.random.default_rng(SEED).normal(size=(size, feature_size)))
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
