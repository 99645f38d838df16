"""The text tower under autograd, as it was before it was written out by hand: what a round used to cost."""

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from dpfpl_client.models.text_tower.states import ClassTokens

__all__ = ["AutogradPass", "AutogradTower", "SharedPrefixTextTower"]

AT_ONCE: Final = 64


class SharedPrefixTextTower:
    """Text features of class prompts from a context, through the weights of a loaded ``CLIPTextModel``.

    Under the causal mask nothing before a class name depends on it, so keys and values of begin token and context are
    computed once, and every class adds only its own few tokens. Exact up to rounding.
    """

    def __init__(self, text_model: Any, text_projection: Any) -> None:
        self._embeddings = text_model.embeddings
        self._layers = text_model.encoder.layers
        self._final_norm = text_model.final_layer_norm
        self._projection = text_projection

    def __call__(self, context: Tensor, tokens: ClassTokens) -> Tensor:
        """Projected, not normalised, features [classes, feature_size] of a context [num_context, width]."""
        embed, positions = self._embeddings.token_embedding, self._embeddings.position_embedding.weight
        begin = embed(torch.tensor([tokens.bos_id], device=context.device))
        prefix_length = context.shape[0] + 1
        suffix_length = tokens.ids.shape[1]
        prefix = (torch.cat([begin, context]) + positions[:prefix_length])[None]  # [1, 1 + m, d]
        suffix = embed(tokens.ids) + positions[prefix_length : prefix_length + suffix_length]  # [C, L, d]
        prefix_mask = _causal(prefix_length, 0, prefix)
        suffix_mask = _causal(suffix_length, prefix_length, prefix)
        for layer in self._layers:
            prefix, keys, values = _layer(layer, prefix, None, None, prefix_mask)
            suffix, _, _ = _layer(layer, suffix, keys, values, suffix_mask)
        ends = suffix[
            torch.arange(len(suffix), device=suffix.device), tokens.lengths - 1
        ]  # [C, d], hidden state at EOS
        features: Tensor = self._projection(self._final_norm(ends))
        return features


def _layer(
    layer: Any, hidden: Tensor, shared_keys: Tensor | None, shared_values: Tensor | None, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One encoder layer on ``hidden`` [C, L, d], attending also to shared keys and values [1, heads, P, d / heads]."""
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden)
    shape = (*hidden.shape[:-1], -1, attention.head_dim)
    query = attention.q_proj(normed).view(shape).transpose(1, 2)
    keys = attention.k_proj(normed).view(shape).transpose(1, 2)
    values = attention.v_proj(normed).view(shape).transpose(1, 2)
    all_keys, all_values = keys, values
    if shared_keys is not None and shared_values is not None:
        all_keys = torch.cat([shared_keys.expand(len(hidden), -1, -1, -1), keys], dim=2)
        all_values = torch.cat([shared_values.expand(len(hidden), -1, -1, -1), values], dim=2)
    weights = functional.softmax(query @ all_keys.transpose(-1, -2) * attention.scale + mask, dim=-1)
    attended = (weights @ all_values).transpose(1, 2).reshape(hidden.shape)
    hidden = hidden + attention.out_proj(attended)
    hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return hidden, keys, values


def _causal(length: int, before: int, like: Tensor) -> Tensor:
    """Additive mask [length, before + length]: every position sees all ``before`` shared ones and its own past."""
    mask = like.new_full((length, before + length), float("-inf"))
    return mask.triu(diagonal=before + 1)


class AutogradTower(SharedPrefixTextTower):
    """Begin token and context once for all classes; per-example gradients by autograd, some examples at a time."""

    def run(self, context: Tensor, tokens: ClassTokens, *, singly: bool = False) -> "AutogradPass":
        """A forward pass that can be pulled back; ``singly`` means nothing here."""
        with torch.enable_grad():
            leaf = context.detach().requires_grad_(True)
            return AutogradPass(leaf, self(leaf, tokens))


class AutogradPass:
    """A finished forward pass with its graph; ``features`` [classes, feature size] are not normalised."""

    def __init__(self, leaf: Tensor, features: Tensor) -> None:
        self._leaf = leaf
        self._unit = functional.normalize(features, dim=-1)
        self.features = features.detach()

    def pullback(self, cotangents: Tensor) -> Tensor:
        """Gradients [B, m, d] of ``sum(cotangents * unit features)`` for cotangents [B, classes, feature size]."""
        parts: list[Any] = []
        for part in torch.split(cotangents, AT_ONCE):
            parts += torch.autograd.grad(self._unit, self._leaf, part, is_grads_batched=True, retain_graph=True)
        return torch.cat(parts)

    def rank_one_pullback(self, scales: Tensor, directions: Tensor, *, coarse: bool = False, few: int = 0) -> Tensor:
        """The same for cotangents ``scales[b, c] * directions[b]``; there were no estimates."""
        return self.pullback(scales[:, :, None] * directions[:, None])
