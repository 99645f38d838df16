"""A finished forward pass of the fast text tower, ready to be pulled back."""

from collections.abc import Callable

import torch
from torch import Tensor

from dpfpl_client.learning.all_classes import AllClassesPullback, Towards
from dpfpl_client.learning.few_classes import few_classes_pullback
from dpfpl_client.learning.packing import PackedClasses
from dpfpl_client.learning.tower_states import Part, SharedKeys, Weights, slices

__all__ = ["TextPass", "largest_only"]


class TextPass:
    """A finished forward pass, ready to be pulled back.

    Attributes:
        features: [classes, feature size], not normalised.

    Args:
        weights: of the tower that made it.
        context: [m, d].
        parts: the pass over all classes; the first has the context's rows.
        packed: all classes.
        most_rows: of ``packed``, whose states are kept at once.
        again: makes a part anew, with what was not kept; told whether with the context's rows.
    """

    def __init__(
        self,
        weights: Weights,
        context: Tensor,
        parts: list[Part],
        packed: PackedClasses,
        most_rows: int,
        again: Callable[[PackedClasses, bool], Part],
    ) -> None:
        self._weights, self._context, self._parts = weights, context, parts
        self._packed, self._most_rows, self._again = packed, most_rows, again
        # One row more than classes: the padding of ends, class -1, goes into the last one.
        features = parts[0].features.new_empty((packed.classes + 1, weights.projection.outputs))
        for part in parts:
            features[part.packed.class_of_end] = part.features
        self.features = features[: packed.classes]

    @torch.no_grad()
    def pullback(self, cotangents: Tensor) -> Tensor:
        """Gradients [B, m, d] of ``sum(cotangents * unit features)`` for cotangents [B, classes, feature size]."""
        norms = self.features.norm(dim=-1, keepdim=True)
        unit = self.features / norms
        radial = (cotangents * unit).sum(-1, keepdim=True)
        towards = self._weights.projection.pullback((cotangents - radial * unit) / norms)  # [B, classes, d]
        return self._pull(len(cotangents), lambda examples, classes: towards[examples][:, classes], coarse=False)

    @torch.no_grad()
    def rank_one_pullback(self, scales: Tensor, directions: Tensor, *, coarse: bool = False, few: int = 0) -> Tensor:
        """The same for cotangents ``scales[b, c] * directions[b]``, without ever making them.

        Args:
            scales: [B, classes].
            directions: [B, feature size].
            coarse: round the factors of large products to bfloat16.
            few: take each row's so many largest scales, in absolute value, for all of them; 0 takes all.
        """
        if few:
            scales = largest_only(scales, few)
        norms = self.features.norm(dim=-1)
        unit = self.features / norms[:, None]
        scaled = scales / norms
        radial = scaled * (directions @ unit.T)
        along, across = self._weights.projection.pullback(directions), self._weights.projection.pullback(unit)

        def towards(examples: slice, classes: Tensor) -> Tensor:
            straight: Tensor = scaled[examples][:, classes, None] * along[examples, None, :]
            return straight.addcmul_(radial[examples][:, classes, None], across[classes], value=-1.0)

        if 0 < few < scales.shape[1] and self._packed.singly and len(self._context):
            chosen = scales.abs().topk(few, dim=1).indices
            straight = scaled.gather(1, chosen)[:, :, None] * along[:, None, :]
            straight.addcmul_(radial.gather(1, chosen)[:, :, None], across[chosen], value=-1.0)
            return self._pull_few(straight, chosen, coarse=coarse)
        return self._pull(len(scales), towards, coarse=coarse)

    def _pull_few(self, towards: Tensor, chosen: Tensor, *, coarse: bool) -> Tensor:
        """From gradients [B, K, d] towards the final normed rows of the classes ``chosen`` [B, K] to the context."""
        if len(self._parts) == 1 and self._parts[0].layers:
            return few_classes_pullback(self._weights, self._parts[0], towards, chosen, coarse=coarse)
        # Too many classes to keep: each example's few are computed again. How many rows that makes does not depend on
        # which classes they are.
        batch, few = chosen.shape
        result = self._context.new_empty((batch, *self._context.shape))
        for examples in slices(batch, max(1, self._most_rows // few)):
            packed = self._packed.of_rows(chosen[examples].flatten())
            each = torch.arange(len(packed.ids), device=chosen.device).view(-1, few)
            part = self._again(packed, True)
            result[examples] = few_classes_pullback(self._weights, part, towards[examples], each, coarse=coarse)
        return result

    def _pull(self, batch: int, towards: Towards, *, coarse: bool) -> Tensor:
        """From gradients towards the final normed rows, ``towards(examples, classes)`` [b, c, d], to the context."""
        if not len(self._context):
            return self._context.new_zeros((batch, *self._context.shape))
        largest = max(part.rows + part.packed.ids.numel() for part in self._parts)
        element = self._context.element_size()
        at_once = max(1, self._weights.plan.gradient_bytes // (largest * self._context.shape[1] * element))
        result = self._context.new_empty((batch, *self._context.shape))
        for examples in slices(batch, at_once):
            gradients: SharedKeys = []
            for part in reversed(self._parts):  # the part with the context's rows last
                states = part if part.layers else self._again(part.packed, part.rows > 0)
                pulled = AllClassesPullback(self._weights, states, gradients, coarse=coarse)
                outcome = pulled.run(towards, examples)
                if part.rows:
                    result[examples] = outcome
        return result


def largest_only(scales: Tensor, few: int) -> Tensor:
    """Scales [B, classes] with all but the ``few`` largest of each row, in absolute value, set to zero."""
    if few >= scales.shape[1]:
        return scales
    chosen = scales.abs().topk(few, dim=1).indices
    return torch.zeros_like(scales).scatter(1, chosen, scales.gather(1, chosen))
