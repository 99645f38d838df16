"""Which text tower serves a loaded model: the fast one where it is exact, the model's own forward elsewhere."""

import logging
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from dpfpl_client.models.text_tower.fast import FastTextTower
from dpfpl_client.models.text_tower.layers import ACTIVATIONS
from dpfpl_client.models.text_tower.plain import PlainTextTower
from dpfpl_client.models.text_tower.states import ClassTokens

__all__ = ["TOLERANCES", "TextPass", "TextTower", "text_tower_of"]

logger = logging.getLogger(__name__)

TOLERANCES: Final = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest relative difference, features or gradients, up to which two towers count as the same function."""


class TextPass(Protocol):
    """A forward pass that can be pulled back. ``features`` [classes, feature size] are not normalised."""

    features: Tensor

    def pullback(self, cotangents: Tensor) -> Tensor:
        """Gradients [B, m, d] of ``sum(cotangents * unit features)`` for cotangents [B, classes, feature size]."""
        ...

    def rank_one_pullback(self, scales: Tensor, directions: Tensor, *, coarse: bool = False, few: int = 0) -> Tensor:
        """The same for cotangents ``scales[b, c] * directions[b]``.

        Args:
            scales: [B, classes].
            directions: [B, feature size].
            coarse: the factors of large products may be rounded to bfloat16.
            few: take each row's so many largest scales, in absolute value, for all of them; 0 takes all.
        """
        ...


class TextTower(Protocol):
    """Class prompts to features."""

    def __call__(self, context: Tensor, tokens: ClassTokens) -> Tensor:
        """Features [classes, feature size], not normalised, of a context [m, d]."""
        ...

    def run(self, context: Tensor, tokens: ClassTokens, *, singly: bool = False) -> TextPass:
        """The same, ready to be pulled back to the context; ``singly`` where a few classes each will be asked for."""
        ...


def text_tower_of(
    text_model: Any, text_projection: Any, bos_id: int, eos_id: int, *, coarse: bool = False
) -> TextTower:
    """The fast tower if it gives this very model's features and gradients on a trial, else the model's own forward.

    The trial decides, not a list of model names: attention that looks ahead, another activation or another way to find
    a prompt's end make the shortcut inexact, and then it is not used. ``coarse``: able to round to bfloat16.
    """
    plain = PlainTextTower(text_model, text_projection)
    reason = f"activation {text_model.config.hidden_act}"
    if text_model.config.hidden_act in ACTIVATIONS:
        fast = FastTextTower(text_model, text_projection, bos_id, coarse=coarse)
        difference = _difference(fast, plain, text_model, bos_id, eos_id)
        if difference <= TOLERANCES.get(text_projection.weight.dtype, 0.0):
            return fast
        reason = f"relative difference {difference:.1e}"
    logger.warning("The fast text tower is not exact for this model (%s); its own forward is used, slower.", reason)
    return plain


def _difference(fast: FastTextTower, plain: PlainTextTower, text_model: Any, bos_id: int, eos_id: int) -> float:
    """Largest relative difference of features and of one gradient, on random prompts of the whole vocabulary."""
    weight = text_model.embeddings.token_embedding.weight
    generator = torch.Generator().manual_seed(0)
    others = [token for token in range(len(weight)) if token not in (bos_id, eos_id)]
    room = text_model.config.max_position_embeddings - 2
    lengths = [length for length in (1, 3, 2) if length <= room - 1] or [0]
    chosen = [[others[int(torch.randint(len(others), (), generator=generator))] for _ in range(n)] for n in lengths]
    if chosen[0]:
        chosen[0][0] = others[-1]  # older models take the largest id for a prompt's end
    tokens = ClassTokens.build([[*name, eos_id] for name in chosen], bos_id).to(weight.device)
    m = max(0, min(4, room - max(lengths)))
    scale = float(weight.float().std())
    context = (scale * torch.randn((m, weight.shape[1]), generator=generator)).to(weight)
    ours, theirs = fast.run(context, tokens), plain.run(context, tokens)
    pairs = [(ours.features, theirs.features)]
    if m:
        cotangents = torch.randn((1, *theirs.features.shape), generator=generator).to(weight)
        pairs.append((ours.pullback(cotangents), theirs.pullback(cotangents)))
    differences = [float((a - b).norm() / b.norm()) for a, b in pairs]
    return max(differences) if all(value == value for value in differences) else float("inf")
