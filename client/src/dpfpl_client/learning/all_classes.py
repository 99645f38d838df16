"""The way back through the text tower, for many cotangents at once and without a graph.

Examples differ in their cotangents alone: what one forward pass kept serves them all, and every large product has all
examples' rows in it. Symbols as in ``fast_tower``: B cotangents, N rows (m of the context, then R x T of classes).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dpfpl_client.learning.folded_layers import Normed
from dpfpl_client.learning.shared_attention import AttentionGradients
from dpfpl_client.learning.tower_states import Part, SharedKeys, Weights, at_ends, slices

__all__ = ["AllClassesPullback", "Towards"]

Towards = Callable[[slice, Tensor], Tensor]
"""Gradients [b, c, d] towards the final normed rows of some examples and classes."""


class AllClassesPullback:
    """One pullback through one part: gradients of all its rows, layer by layer from the last to the first."""

    def __init__(self, weights: Weights, part: Part, gradients: SharedKeys, *, coarse: bool) -> None:
        self._layers, self._part, self._coarse = weights.layers, part, coarse
        self._chunk_rows = weights.plan.chunk_rows
        self._gradients = gradients
        """Towards the shared keys and values [H, B, P, e] of every layer, summed over parts."""

    def run(self, towards: Towards, examples: slice) -> Tensor:
        """Gradients of the context's rows [B, m, d] (no rows where another part has them)."""
        part = self._part
        shape = part.packed.ids.shape
        rows = part.rows + shape[0] * shape[1]
        batch = examples.stop - examples.start
        width = part.final.unit.shape[-1]
        g = part.final.unit.new_zeros((batch, rows, width))
        first_part = not self._gradients
        if first_part:
            self._gradients += self._zeros(batch)
        chunks = list(slices(batch, max(1, self._chunk_rows // rows)))
        classes = part.packed.class_of_end
        for chunk in chunks:
            inside = slice(examples.start + chunk.start, examples.start + chunk.stop)
            w = towards(inside, classes.clamp(min=0).flatten()).view(-1, *classes.shape, width)
            w.masked_fill_((classes < 0)[..., None], 0.0)
            self._last(g[chunk], w, chunk)
        for index in range(len(self._layers) - 2, -1, -1):
            for chunk in chunks:
                self._layer(index, g[chunk], chunk)
        return g[:, : part.rows]

    def _zeros(self, batch: int) -> SharedKeys:
        pairs = []
        for state in self._part.layers:
            heads, shared, size = state.classes.shared_keys.shape
            pairs.append(
                (
                    state.first.unit.new_zeros((heads, batch, shared, size)),
                    state.first.unit.new_zeros((heads, batch, shared, size)),
                )
            )
        return pairs

    def _last(self, g: Tensor, w: Tensor, chunk: slice) -> None:
        """Fills g [b, N, d], zero before, from the gradient w [b, R, E, d] towards the final normed rows."""
        part, layer, state = self._part, self._layers[-1], self._part.layers[-1]
        assert layer.queries is not None
        assert layer.keys_values is not None
        m, (rows, ends) = part.rows, part.packed.ends.shape
        ends_g = torch.zeros_like(w)
        part.final.add_pullback(ends_g, w)
        layer.half_pullback(ends_g, state.second, state.slope, coarse=self._coarse)
        attended = layer.out.pullback(ends_g, coarse=self._coarse)
        pulled = state.classes.pullback(attended.view(len(w), rows, ends, layer.heads, -1))
        self._share(-1, pulled, chunk)
        towards = g.new_empty((len(w), g.shape[1], 2, layer.heads, g.shape[2] // layer.heads))
        for place, gradient in enumerate((pulled.keys, pulled.values)):
            torch.unflatten(towards[:, m:, place], 1, gradient.shape[1:3]).copy_(gradient)
        if m:
            keys, values = self._gradients[-1]
            towards[:, :m, 0] = keys[:, chunk, 1:].permute(1, 2, 0, 3)
            towards[:, :m, 1] = values[:, chunk, 1:].permute(1, 2, 0, 3)
        normed = layer.keys_values.pullback(towards.flatten(2), coarse=self._coarse)
        asked = layer.queries.pullback(pulled.queries.flatten(3).flatten(1, 2), coarse=self._coarse)
        at = at_ends(part.packed, m).flatten()
        normed.index_add_(1, at, asked)
        state.first.add_pullback(g, normed)
        g.index_add_(1, at, ends_g.flatten(1, 2))

    def _layer(self, index: int, g: Tensor, chunk: slice) -> None:
        """Turns g [b, N, d] from the gradient of a layer's rows out into that of its rows in."""
        part, layer, state = self._part, self._layers[index], self._part.layers[index]
        assert layer.into_attention is not None
        m, heads, lowest = part.rows, layer.heads, index == 0
        if lowest and not m and not len(state.classes.keys):
            return
        layer.half_pullback(g, state.second, state.slope, coarse=self._coarse)
        attended = layer.out.pullback(g, coarse=self._coarse).view(*g.shape[:2], heads, -1)
        shape = part.packed.ids.shape
        pulled = state.classes.pullback(attended[:, m:].view(len(g), *shape, heads, -1), own=not lowest)
        self._share(index, pulled, chunk)
        # Below the first layer only the context is differentiated: class names are constants.
        count = m if lowest else g.shape[1]
        if not count:
            return
        towards = g.new_empty((len(g), count, 3, heads, g.shape[2] // heads))
        if not lowest:
            for place, gradient in enumerate((pulled.queries, pulled.keys, pulled.values)):
                torch.unflatten(towards[:, m:, place], 1, shape).copy_(gradient)
        if m:
            assert state.context is not None
            own = state.context.pullback(attended[:, None, :m], shared=False)
            keys, values = self._gradients[index]
            towards[:, :m, 0] = own.queries[:, 0]
            torch.add(own.keys[:, 0], keys[:, chunk, 1:].permute(1, 2, 0, 3), out=towards[:, :m, 1])
            torch.add(own.values[:, 0], values[:, chunk, 1:].permute(1, 2, 0, 3), out=towards[:, :m, 2])
        normed = layer.into_attention.pullback(towards.flatten(2), coarse=self._coarse)
        Normed(state.first.unit[:count], state.first.inverse[:count]).add_pullback(g[:, :count], normed)

    def _share(self, index: int, pulled: AttentionGradients, chunk: slice) -> None:
        keys, values = self._gradients[index]
        keys[:, chunk] += pulled.shared_keys
        values[:, chunk] += pulled.shared_values
