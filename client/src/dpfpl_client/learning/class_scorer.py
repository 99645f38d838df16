"""An experiment's classes as features of a dual encoder: gradients, probabilities and accuracy by products."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpfpl_client.learning.dual_encoder import DualEncoder, no_answers
from dpfpl_client.learning.evaluation import LabelledFeatures, accuracy, head_probabilities
from dpfpl_client.learning.gradients import per_example_gradients, total_gradient
from dpfpl_client.learning.public_directions import text_directions
from dpfpl_client.learning.text_tower import ClassTokens

if TYPE_CHECKING:
    from dpfpl_common.experiment import GradientSettings

__all__ = ["ClassPredictor", "ClassScorer"]


class ClassPredictor:
    """Classes under one context: their text features are computed once.

    Attributes:
        text_features: unit rows [classes, feature_size].
    """

    def __init__(self, backbone: DualEncoder, text_features: Tensor) -> None:
        self._backbone = backbone
        self.text_features = text_features

    def probabilities(self, features: Tensor) -> Tensor:
        """[n, classes] by the model's own head, for unit image features [n, feature_size]."""
        return head_probabilities(self._backbone, self.text_features, features)

    def reply(self, feature: Tensor, question: str) -> tuple[str, float]:
        """There is none."""
        raise no_answers(self._backbone.family)

    def accuracy(self, examples: LabelledFeatures) -> float | None:
        """Share of images whose class is the nearest."""
        return accuracy(self.text_features, examples)


class ClassScorer:
    """A dual encoder joined to classes.

    What it is given and gives is on the processor, wherever the model computes.

    Args:
        backbone: the frozen model.
        tokens: the experiment's classes.
    """

    def __init__(self, backbone: DualEncoder, tokens: ClassTokens) -> None:
        self._backbone, self._tokens, self._device = backbone, tokens.to(backbone.device), backbone.device

    def gradients(self, context: Tensor, examples: LabelledFeatures, estimate: "GradientSettings") -> Tensor:
        """One gradient [num_context, width] an example."""
        features, labels = examples.features.to(self._device), examples.labels.to(self._device)
        context = context.to(self._device)
        return per_example_gradients(self._backbone, context, self._tokens, features, labels, estimate).cpu()

    def total_gradient(self, context: Tensor, examples: LabelledFeatures, weights: Tensor) -> Tensor:
        """The weighted sum of the examples' gradients, at the cost of one."""
        context, weights = context.to(self._device), weights.to(self._device)
        features, labels = examples.features.to(self._device), examples.labels.to(self._device)
        return total_gradient(self._backbone, context, self._tokens, features, labels, weights).cpu()

    def at(self, context: Tensor) -> ClassPredictor:
        """The classes under a context."""
        return ClassPredictor(self._backbone, self.class_features(context))

    def too_long(self, num_context: int, question: str, answer: str) -> bool:
        """There are no turns; class names that do not fit are refused at once."""
        return False

    def cut_off(self, answers: Sequence[str]) -> int:
        """None: classes are not said."""
        return 0

    def class_features(self, context: Tensor) -> Tensor:
        """Unit text features [classes, feature_size]."""
        return self._backbone.text_features(context.to(self._device), self._tokens).cpu()

    @torch.no_grad()
    def feature_gradient(self, context: Tensor, cotangents: Tensor) -> Tensor:
        """Gradient [num_context, width] of ``sum(cotangents * class features)`` by the context."""
        text = self._backbone.text_pass(context.to(self._device), self._tokens)
        return text.pullback(cotangents[None].to(self._device))[0].cpu()

    def public_directions(self, initial: torch.Tensor, count: int) -> npt.NDArray[np.float64]:
        """Directions that the class texts' features sweep around the initial context."""
        return text_directions(self._backbone, self._tokens, initial.to(self._device), count)
