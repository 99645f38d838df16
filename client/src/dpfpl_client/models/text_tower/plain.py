"""The text tower as Hugging Face runs it, whole prompt by whole prompt: slow, and right for every text model."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dpfpl_client.models.text_tower.fast import largest_only
from dpfpl_client.models.text_tower.states import ClassTokens

__all__ = ["PlainTextTower"]


class PlainTextTower:
    """Text features of class prompts through a text model's own forward, the context put in its embeddings' place.

    Args:
        text_model: a loaded ``CLIPTextModel``; its own rule finds the end of a prompt.
        text_projection: its projection to features.
    """

    def __init__(self, text_model: Any, text_projection: Any) -> None:
        self._text_model, self._projection = text_model, text_projection

    def __call__(self, context: Tensor, tokens: ClassTokens) -> Tensor:
        """Features [classes, feature size], not normalised, of a context [m, d]; differentiable in it."""
        count, m = len(tokens.ids), len(context)
        begin = tokens.ids.new_full((count, 1 + m), tokens.bos_id)  # what stands for the context is replaced below
        ids = torch.cat([begin, tokens.ids], dim=1).to(context.device)

        def put_in(module: Any, given: Any, embedded: Tensor) -> Tensor:
            return torch.cat([embedded[:, :1], context.expand(count, -1, -1), embedded[:, 1 + m :]], dim=1)

        handle = self._text_model.embeddings.token_embedding.register_forward_hook(put_in)
        try:
            pooled = self._text_model(input_ids=ids).pooler_output
        finally:
            handle.remove()
        features: Tensor = self._projection(pooled)
        return features

    def run(self, context: Tensor, tokens: ClassTokens, *, singly: bool = False) -> "PlainPass":
        """A forward pass that can be pulled back; ``singly`` means nothing here."""
        with torch.enable_grad():
            leaf = context.detach().requires_grad_(True)
            return PlainPass(leaf, self(leaf, tokens))


class PlainPass:
    """A finished forward pass with its graph.

    Attributes:
        features: [classes, feature size], not normalised.
    """

    def __init__(self, leaf: Tensor, features: Tensor) -> None:
        self._leaf = leaf
        self._unit = functional.normalize(features, dim=-1) if features.requires_grad else features
        self.features = features.detach()

    def pullback(self, cotangents: Tensor) -> Tensor:
        """Gradients [B, m, d] of ``sum(cotangents * unit features)`` for cotangents [B, classes, feature size]."""
        result = cotangents.new_empty((len(cotangents), *self._leaf.shape))
        for row, cotangent in zip(result, cotangents, strict=True):
            row.copy_(torch.autograd.grad(self._unit, self._leaf, cotangent, retain_graph=True)[0])
        return result

    def rank_one_pullback(self, scales: Tensor, directions: Tensor, *, coarse: bool = False, few: int = 0) -> Tensor:
        """The same for cotangents ``scales[b, c] * directions[b]``; never rounded, the ``few`` largest if asked."""
        if few:
            scales = largest_only(scales, few)
        result = scales.new_empty((len(scales), *self._leaf.shape))
        for row, scale, direction in zip(result, scales, directions, strict=True):
            row.copy_(self.pullback(torch.outer(scale, direction)[None])[0])
        return result
