"""The way back through the text tower for cotangents that are zero but for a few classes of each example.

Each example meets its own classes only, so what the forward pass kept is gathered for every pair of example and class;
from the shared keys and values on, the way is that of all classes. Symbols as in ``fast_tower``; B examples with K
classes each.
"""

import torch
from torch import Tensor

from dpfpl_client.learning.folded_layers import FoldedLayer, Normed
from dpfpl_client.learning.tower_states import LayerState, Part, SharedKeys, Weights, slices

__all__ = ["few_classes_pullback"]


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
