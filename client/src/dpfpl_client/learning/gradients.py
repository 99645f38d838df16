"""Gradients of the loss with respect to the context, one per example.

Exact by default. The cheaper estimates stay functions of one example each, and what an estimate gives is what is
clipped and summed: they change how well a step points, never the sensitivity.
"""

from typing import Final

import torch
from torch import Tensor

from dpfpl_client.learning.dual_encoder import DualEncoder
from dpfpl_client.learning.text_tower import ClassTokens
from dpfpl_client.learning.tower_choice import TextPass
from dpfpl_common.experiment import GradientSettings

__all__ = ["EXACT", "label_against_rivals", "loss_scales", "per_example_gradients", "total_gradient"]

EXACT: Final = GradientSettings()


@torch.no_grad()
def per_example_gradients(
    backbone: DualEncoder,
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
    coarse, few = estimate.precision == "bfloat16", estimate.classes
    text = backbone.text_pass(context, tokens, coarse=coarse, singly=0 < few < len(tokens.lengths))
    scales = loss_scales(text, backbone.logit_scale, image_features, labels, backbone.logit_bias)
    if 0 < few < scales.shape[1]:
        scales = label_against_rivals(scales, labels, few - 1, balanced=backbone.logit_bias is None)
    result = text.rank_one_pullback(scales, image_features, coarse=coarse, few=few)
    assert len(result) == len(labels)
    return result


@torch.no_grad()
def total_gradient(
    backbone: DualEncoder,
    context: Tensor,
    tokens: ClassTokens,
    image_features: Tensor,
    labels: Tensor,
    weights: Tensor,
) -> Tensor:
    """``sum_x weights_x g_x`` [num_context, width] at the cost of one example; not for clipping, so not private.

    Args:
        weights: [batch]; an example of weight 0 counts as absent.
        backbone, context, tokens, image_features, labels: as in ``per_example_gradients``.
    """
    text = backbone.text_pass(context, tokens)
    scales = loss_scales(text, backbone.logit_scale, image_features, labels, backbone.logit_bias) * weights[:, None]
    used = weights != 0
    return text.pullback((scales[used].T @ image_features[used])[None])[0]


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
    that what all text features have in common still cancels. Without this, accuracy suffered (docs/performance.md).
    """
    of_label = labels[:, None]
    others = scales.scatter(1, of_label, 0.0)
    chosen = others.topk(rivals, dim=1).indices
    kept = torch.zeros_like(scales).scatter(1, chosen, others.gather(1, chosen))
    own = -kept.sum(dim=1, keepdim=True) if balanced else scales.gather(1, of_label)
    return kept.scatter(1, of_label, own)
