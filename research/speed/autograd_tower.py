"""The text tower under autograd, as it was before it was written out by hand: what a round used to cost."""

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from dpfpl_client.models.text_tower.shared_prefix import ClassTokens, SharedPrefixTextTower

__all__ = ["AutogradPass", "AutogradTower"]

AT_ONCE: Final = 64


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
