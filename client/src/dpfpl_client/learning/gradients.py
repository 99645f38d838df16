"""Exact gradients of the loss with respect to the context, one per example."""

import torch
from torch import Tensor

from dpfpl_client.learning.backbone import ClipBackbone
from dpfpl_client.learning.text_tower import ClassTokens

__all__ = ["per_example_gradients"]


@torch.no_grad()
def per_example_gradients(
    backbone: ClipBackbone,
    context: Tensor,
    tokens: ClassTokens,
    image_features: Tensor,
    labels: Tensor,
) -> Tensor:
    """g_x = d loss_x / d context for every example x.

    The loss is the cross-entropy of ``softmax_c(tau z_x . T_c)``. Text features are computed once; each example then
    costs one vector-Jacobian product, whose cotangent has the closed form ``tau (softmax - onehot)_c z_x``. Examples do
    not mix: row x depends on example x alone. Memory is bounded by the tower, whatever the batch and number of classes.

    Args:
        backbone: the frozen model.
        context: [num_context, width].
        tokens: the experiment's classes.
        image_features: [batch, feature_size], unit rows z_x.
        labels: [batch], class indices.

    Returns:
        [batch, num_context, width], same dtype as the context; an empty batch gives an empty tensor.
    """
    if len(image_features) == 0:
        return context.new_zeros((0, *context.shape))
    text = backbone.text_pass(context, tokens)
    unit = torch.nn.functional.normalize(text.features, dim=-1)
    residual = torch.softmax(backbone.logit_scale * image_features @ unit.T, dim=1)  # [B, C]
    residual[torch.arange(len(labels)), labels] -= 1.0
    result = text.rank_one_pullback(backbone.logit_scale * residual, image_features)
    assert len(result) == len(labels)
    return result
