"""An experiment's classes as features of a dual encoder: gradients, probabilities and accuracy by products."""

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from dpfpl_client.models.backbone import LabelledFeatures, Predictor, Scorer, no_answers
from dpfpl_client.models.text_tower.choice import TextPass
from dpfpl_client.models.text_tower.states import ClassTokens
from dpfpl_common.experiment import GradientSettings

if TYPE_CHECKING:
    from dpfpl_client.models.dual_encoder import DualEncoder

__all__ = [
    "EXACT",
    "ClassPredictor",
    "ClassScorer",
    "class_probabilities",
    "direction_count",
    "label_against_rivals",
    "loss_scales",
    "per_example_gradients",
]


@torch.no_grad()
def class_probabilities(
    backbone: "DualEncoder", context: Tensor, tokens: ClassTokens, image_features: Tensor
) -> Tensor:
    """p(c | x) [n, classes] of a context [num_context, width] on unit image features [n, feature_size]."""
    return ClassPredictor(backbone, backbone.text_features(context, tokens)).probabilities(image_features)


# Gradients of the loss with respect to the context, one per example.
#
# Exact by default. The cheaper estimates stay functions of one example each, and what an estimate gives is what is
# clipped and summed: they change how well a step points, never the sensitivity.


EXACT: Final = GradientSettings()

COARSE_AT_ONCE: Final = 16
"""Examples of every product that rounds to bfloat16, made up with zeros: rounding depends on a product's shape, so with
as many as there are one example more would change the others' gradients (test NI10)."""


@torch.no_grad()
def per_example_gradients(
    backbone: "DualEncoder",
    context: Tensor,
    tokens: ClassTokens,
    image_features: Tensor,
    labels: Tensor,
    estimate: GradientSettings = EXACT,
) -> Tensor:
    """g_x = d loss_x / d context for every example x.

    The loss is the cross-entropy of ``softmax_c(tau z_x . T_c)``, with a sigmoid head the sum over the classes of the
    binary cross-entropies of ``sigmoid(tau z_x . T_c + b)``. Text features are computed once; each example then
    costs one vector-Jacobian product, whose cotangent has the closed form ``tau (softmax - onehot)_c z_x``. Examples do
    not mix: row x depends on example x alone. Memory is bounded by the tower, whatever the batch and number of classes.

    Args:
        backbone: the frozen model.
        context: [num_context, width].
        tokens: the experiment's classes.
        image_features: [batch, feature_size], unit rows z_x.
        labels: [batch], class indices.
        estimate: with fewer classes, an example's label and its strongest rivals stand for all; with bfloat16, the
            factors of large products are rounded.

    Returns:
        [batch, num_context, width], same dtype as the context; an empty batch gives an empty tensor.
    """
    if len(image_features) == 0:
        return context.new_zeros((0, *context.shape))
    coarse, few, batch = estimate.precision == "bfloat16", estimate.classes, len(image_features)
    text = backbone.text_pass(context, tokens, coarse=coarse, singly=0 < few < len(tokens.lengths))

    def pulled(image_features: Tensor, labels: Tensor) -> Tensor:
        scales = loss_scales(text, backbone.logit_scale, image_features, labels, backbone.logit_bias)
        if 0 < few < scales.shape[1]:
            scales = label_against_rivals(scales, labels, few - 1, balanced=backbone.logit_bias is None)
        return text.rank_one_pullback(scales, image_features, coarse=coarse, few=few)

    if not coarse:
        return pulled(image_features, labels)
    missing = -batch % COARSE_AT_ONCE
    features = torch.split(functional.pad(image_features, (0, 0, 0, missing)), COARSE_AT_ONCE)
    whole = torch.split(functional.pad(labels, (0, missing)), COARSE_AT_ONCE)
    return torch.cat([pulled(*part) for part in zip(features, whole, strict=True)])[:batch]


def loss_scales(
    text: TextPass, logit_scale: float, image_features: Tensor, labels: Tensor, logit_bias: float | None = None
) -> Tensor:
    """tau (probabilities - onehot) [batch, classes]: the loss' derivative towards the cosines.

    The same formula for both heads: softmax without ``logit_bias``, sigmoid with it.
    """
    unit = torch.nn.functional.normalize(text.features, dim=-1)
    logits = logit_scale * image_features @ unit.T
    residual = torch.softmax(logits, dim=1) if logit_bias is None else torch.sigmoid(logits + logit_bias)
    residual[torch.arange(len(labels)), labels] -= 1.0
    return logit_scale * residual


def label_against_rivals(scales: Tensor, labels: Tensor, rivals: int, *, balanced: bool = True) -> Tensor:
    """Of each row of ``loss_scales`` the label's entry and the so many largest others; the rest is zero.

    Balanced, for the softmax's rows, which sum to zero: the label's entry becomes minus the sum of the others kept, so
    that what all text features have in common still cancels. Without this, accuracy suffered
    (docs/results/performance.md).
    """
    of_label = labels[:, None]
    others = scales.scatter(1, of_label, 0.0)
    chosen = others.topk(rivals, dim=1).indices
    kept = torch.zeros_like(scales).scatter(1, chosen, others.gather(1, chosen))
    own = -kept.sum(dim=1, keepdim=True) if balanced else scales.gather(1, of_label)
    return kept.scatter(1, of_label, own)


Floats = npt.NDArray[np.float64]

SEED = 20240229
"""Of the public draw of prompts: the same directions at every site and after every restart."""

REACH = 2.0
"""How far the drawn prompts are from the initial one: standard deviation over the size of a token embedding's entry."""


def direction_count(num_classes: int, feature_size: int) -> int:
    """k: twice the classes, at least 16, at most the whole space."""
    return min(feature_size, max(16, 2 * num_classes))


class ClassPredictor(Predictor):
    """Classes under one context: their text features are computed once.

    Attributes:
        text_features: unit rows [classes, feature_size].
    """

    def __init__(self, backbone: "DualEncoder", text_features: Tensor) -> None:
        self._backbone = backbone
        self.text_features = text_features

    def probabilities(self, features: Tensor) -> Tensor:
        """[n, classes] for unit image features [n, feature_size]: a softmax over the classes, or a sigmoid for each.

        A sigmoid where the model has a bias for it.
        """
        logits, bias = self._backbone.logit_scale * features @ self.text_features.T, self._backbone.logit_bias
        return torch.softmax(logits, dim=1) if bias is None else torch.sigmoid(logits + bias)

    def reply(self, feature: Tensor, question: str) -> tuple[str, float]:
        """There is none."""
        raise no_answers(self._backbone.family)

    def agreement(self, examples: LabelledFeatures) -> Tensor:
        """[n], 1 where an image's class is, among all of the experiment's, the nearest, else 0."""
        if len(examples) == 0:
            return torch.zeros(0, dtype=torch.float64)
        return ((examples.features @ self.text_features.T).argmax(dim=1) == examples.labels).double()


class ClassScorer(Scorer):
    """A dual encoder joined to classes.

    What it is given and gives is on the processor, wherever the model computes.

    Args:
        backbone: the frozen model.
        tokens: the experiment's classes.
    """

    def __init__(self, backbone: "DualEncoder", tokens: ClassTokens) -> None:
        self._backbone, self._tokens, self._device = backbone, tokens.to(backbone.device), backbone.device

    @property
    def logit_scale(self) -> float:
        """The model's own, multiplying cosines."""
        return float(self._backbone.logit_scale)

    def gradients(self, context: Tensor, examples: LabelledFeatures, estimate: GradientSettings) -> Tensor:
        """One gradient [num_context, width] an example."""
        features, labels = examples.features.to(self._device), examples.labels.to(self._device)
        context = context.to(self._device)
        return per_example_gradients(self._backbone, context, self._tokens, features, labels, estimate).cpu()

    @torch.no_grad()
    def total_gradient(self, context: Tensor, examples: LabelledFeatures, weights: Tensor) -> Tensor:
        """``sum_x weights_x g_x`` [num_context, width] at the cost of one example; not for clipping, so not private."""
        features, labels = examples.features.to(self._device), examples.labels.to(self._device)
        weights = weights.to(self._device)
        text = self._backbone.text_pass(context.to(self._device), self._tokens)
        scales = loss_scales(text, self._backbone.logit_scale, features, labels, self._backbone.logit_bias)
        scales, used = scales * weights[:, None], weights != 0
        return text.pullback((scales[used].T @ features[used])[None])[0].cpu()

    def at(self, context: Tensor) -> ClassPredictor:
        """The classes under a context."""
        return ClassPredictor(self._backbone, self.class_features(context))

    def class_features(self, context: Tensor) -> Tensor:
        """Unit text features [classes, feature_size]."""
        return self._backbone.text_features(context.to(self._device), self._tokens).cpu()

    @torch.no_grad()
    def feature_gradient(self, context: Tensor, cotangents: Tensor) -> Tensor:
        """Gradient [num_context, width] of ``sum(cotangents * class features)`` by the context."""
        text = self._backbone.text_pass(context.to(self._device), self._tokens)
        return text.pullback(cotangents[None].to(self._device))[0].cpu()

    def public_directions(self, initial: Tensor, count: int) -> Floats:
        """[count, feature_size] orthonormal rows, the leading directions of the class texts' features.

        From public facts alone. An image's feature z acts on training only through its products with the class texts'
        features: the logits are ``z . T_c``, and the gradient is made of derivatives of T_c by the context. What z has
        outside the space that the T_c sweep while the prompt moves does nothing. That space is found by looking at the
        text features under a few dozen random prompts around the initial one, [num_context, width].
        """
        initial, generator = initial.to(self._device), np.random.default_rng(SEED)
        size = float(initial.square().mean().sqrt())
        stddev = REACH * size if size > 0 else 0.02
        cloud = [self._backbone.text_features(initial, self._tokens)]
        rows = 0
        while rows < 4 * count:
            moved = torch.from_numpy(generator.normal(0.0, stddev, tuple(initial.shape))).to(initial)
            cloud.append(self._backbone.text_features(initial + moved, self._tokens))
            rows += len(cloud[-1])
        _, _, directions = np.linalg.svd(torch.cat(cloud).double().cpu().numpy(), full_matrices=False)
        return np.asarray(directions[:count])
