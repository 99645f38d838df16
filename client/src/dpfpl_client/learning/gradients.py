"""Exact gradients of the loss with respect to the context, one per example."""

import torch
from torch import Tensor

from dpfpl_client.learning.backbone import ClipBackbone
from dpfpl_client.learning.text_tower import ClassTokens

__all__ = ["per_example_gradients"]


def per_example_gradients(
    backbone: ClipBackbone,
    context: Tensor,
    tokens: ClassTokens,
    image_features: Tensor,
    labels: Tensor,
    chunk_size: int = 64,
) -> Tensor:
    """g_x = d loss_x / d context for every example x.

    The loss is the cross-entropy of ``softmax_c(tau z_x . T_c)``. Text features are computed once; each example then
    costs one vector-Jacobian product, whose cotangent has the closed form ``tau (softmax - onehot)_c z_x``. Examples do
    not mix: row x depends on example x alone.

    Args:
        backbone: the frozen model.
        context: [num_context, width].
        tokens: the experiment's classes.
        image_features: [batch, feature_size], unit rows z_x.
        labels: [batch], class indices.
        chunk_size: examples per vectorised product; bounds memory, does not change the result.

    Returns:
        [batch, num_context, width], same dtype as the context; an empty batch gives an empty tensor.
    """
    if len(image_features) == 0:
        return context.new_zeros((0, *context.shape))
    leaf = context.detach().requires_grad_(True)
    text_features = backbone.text_features(leaf, tokens)  # [C, e]
    with torch.no_grad():
        logits = backbone.logit_scale * image_features @ text_features.T  # [B, C]
        residual = torch.softmax(logits, dim=1)
        residual[torch.arange(len(labels)), labels] -= 1.0
        scaled = backbone.logit_scale * residual
    chunks = []
    for start in range(0, len(labels), chunk_size):
        part = slice(start, start + chunk_size)
        cotangents = scaled[part, :, None] * image_features[part, None, :]  # [b, C, e]
        (gradient,) = torch.autograd.grad(
            text_features, leaf, grad_outputs=cotangents, is_grads_batched=True, retain_graph=True
        )
        chunks.append(gradient)
    result = torch.cat(chunks)
    assert len(result) == len(labels)
    return result
