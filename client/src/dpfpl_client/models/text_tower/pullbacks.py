"""The ways back through the text tower, for many cotangents at once and without a graph.

Examples differ in their cotangents alone: what one forward pass kept serves them all, and every large product has all
examples' rows in it. Where a cotangent is zero but for a few classes of each example, what was kept is gathered for
every pair of example and class; from the shared keys and values on, the way is that of all classes.

Symbols as in ``fast``: B cotangents, N rows (m of the context, then R x T of classes); B examples with K classes each.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dpfpl_client.models.text_tower.attention import AttentionGradients
from dpfpl_client.models.text_tower.layers import FoldedLayer, Normed
from dpfpl_client.models.text_tower.states import LayerState, Part, SharedKeys, Weights, at_ends, slices

__all__ = ["AllClassesPullback", "Towards", "few_classes_pullback"]

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


def few_classes_pullback(weights: Weights, part: Part, towards: Tensor, chosen: Tensor, *, coarse: bool) -> Tensor:
    """Gradients [B, m, d] towards the context.

    Args:
        weights: of the tower.
        part: a pass over all classes, one class a row, with the context's rows.
        towards: [B, K, d], gradients towards the final normed rows of the chosen classes.
        chosen: [B, K], rows of the chosen classes in ``part``.
        coarse: round the factors of large products to bfloat16.
    """
    batch, few, width = towards.shape
    length = part.packed.ids.shape[1]
    heads = weights.layers[0].heads
    shape = (heads, batch, 1 + part.rows, width // heads)
    gradients: SharedKeys = [(towards.new_zeros(shape), towards.new_zeros(shape)) for _ in weights.layers]
    at_once = max(1, weights.plan.chunk_rows // (few * length))
    g = towards.new_zeros((batch, few, length, width))
    for index in range(len(weights.layers) - 1, -1, -1):
        layer, state = weights.layers[index], part.layers[index]
        for chunk in slices(batch, at_once):
            rows = chosen[chunk].flatten()
            pairs = g[chunk].flatten(0, 1)[None]  # [1, b K, T, d]; a view
            keys, values = gradients[index]
            if layer.queries is not None:
                final = Normed(part.final.unit[rows], part.final.inverse[rows])
                ends = towards.new_zeros((1, len(rows), 1, width))
                final.add_pullback(ends, towards[chunk].reshape(1, len(rows), 1, width))
                pulled = _last(layer, state, part, rows, ends, pairs, len(chosen[chunk]), coarse=coarse)
            else:
                pulled = _layer(layer, state, part, rows, pairs, len(chosen[chunk]), lowest=index == 0, coarse=coarse)
            keys[:, chunk], values[:, chunk] = pulled
    return _through_context(weights, part, gradients, batch, coarse=coarse)


def _layer(
    layer: FoldedLayer,
    state: LayerState,
    part: Part,
    rows: Tensor,
    g: Tensor,
    batch: int,
    *,
    lowest: bool,
    coarse: bool,
) -> tuple[Tensor, Tensor]:
    """Turns g [1, n, T, d] from gradients of rows out into those of rows in; gives the shared keys' and values'."""
    assert layer.into_attention is not None
    second, slope = _of_classes(state.second, part, rows), _class_rows(state.slope, part)[rows]
    layer.half_pullback(g, second, slope, coarse=coarse)
    attended = layer.out.pullback(g, coarse=coarse).view(*g.shape[:3], layer.heads, -1)
    pulled = state.classes.of_rows(rows).pullback(attended, own=not lowest, groups=batch)
    if not lowest:
        towards = torch.stack([pulled.queries, pulled.keys, pulled.values], dim=3)
        normed = layer.into_attention.pullback(towards.flatten(3), coarse=coarse)
        _of_classes(state.first, part, rows).add_pullback(g, normed)
    return pulled.shared_keys, pulled.shared_values


def _last(
    layer: FoldedLayer,
    state: LayerState,
    part: Part,
    rows: Tensor,
    ends: Tensor,
    g: Tensor,
    batch: int,
    *,
    coarse: bool,
) -> tuple[Tensor, Tensor]:
    """Fills g [1, n, T, d], zero before, from gradients ``ends`` [1, n, 1, d] of the last layer's rows out."""
    assert layer.queries is not None
    assert layer.keys_values is not None
    layer.half_pullback(
        ends, Normed(state.second.unit[rows], state.second.inverse[rows]), state.slope[rows], coarse=coarse
    )
    attended = layer.out.pullback(ends, coarse=coarse).view(*ends.shape[:3], layer.heads, -1)
    pulled = state.classes.of_rows(rows).pullback(attended, groups=batch)
    towards = torch.stack([pulled.keys, pulled.values], dim=3)
    normed = layer.keys_values.pullback(towards.flatten(3), coarse=coarse)
    asked = layer.queries.pullback(pulled.queries.flatten(3), coarse=coarse)
    pairs, places = torch.arange(len(rows), device=rows.device), part.packed.ends[rows, 0]
    normed[0, pairs, places] += asked[0, :, 0]
    _of_classes(state.first, part, rows).add_pullback(g, normed)
    g[0, pairs, places] += ends[0, :, 0]
    return pulled.shared_keys, pulled.shared_values


def _through_context(weights: Weights, part: Part, gradients: SharedKeys, batch: int, *, coarse: bool) -> Tensor:
    """Gradients [B, m, d] of the context's rows from those of the shared keys and values of every layer."""
    m, width = part.rows, part.final.unit.shape[-1]
    g = part.final.unit.new_zeros((batch, m, width))
    at_once = max(1, weights.plan.chunk_rows // m)
    for index in range(len(weights.layers) - 1, -1, -1):
        layer, state = weights.layers[index], part.layers[index]
        for chunk in slices(batch, at_once):
            keys, values = (each[:, chunk, 1:].permute(1, 2, 0, 3) for each in gradients[index])
            if layer.keys_values is not None:
                towards, product = torch.stack([keys, values], dim=2), layer.keys_values
            else:
                assert layer.into_attention is not None
                assert state.context is not None
                half = Normed(state.second.unit[:m], state.second.inverse[:m])
                layer.half_pullback(g[chunk], half, state.slope[:m], coarse=coarse)
                attended = layer.out.pullback(g[chunk], coarse=coarse).view(-1, 1, m, layer.heads, width // layer.heads)
                own = state.context.pullback(attended, shared=False)
                towards = torch.stack([own.queries[:, 0], own.keys[:, 0] + keys, own.values[:, 0] + values], dim=2)
                product = layer.into_attention
            normed = product.pullback(towards.flatten(2), coarse=coarse)
            Normed(state.first.unit[:m], state.first.inverse[:m]).add_pullback(g[chunk], normed)
    return g


def _of_classes(normed: Normed, part: Part, rows: Tensor) -> Normed:
    return Normed(_class_rows(normed.unit, part)[rows], _class_rows(normed.inverse, part)[rows])


def _class_rows(x: Tensor, part: Part) -> Tensor:
    """[N, ...] without the context's rows, as [R, T, ...]."""
    return x[part.rows :].view(*part.packed.ids.shape, -1)
