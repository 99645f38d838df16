"""The way back through the text tower, for many cotangents at once and without a graph.

Examples differ in their cotangents alone: what one forward pass kept serves them all, and every large product has all
examples' rows in it. Symbols as in ``fast_tower``: B cotangents, N rows (m of the context, then R x T of classes).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dpfpl_client.learning.folded_layers import FoldedLayer, Normed
from dpfpl_client.learning.packing import ROW_LENGTH, PackedClasses
from dpfpl_client.learning.products import FrozenProduct
from dpfpl_client.learning.shared_attention import Attention, AttentionGradients

__all__ = ["LayerState", "MemoryPlan", "Part", "SharedKeys", "TextPass", "Weights", "at_ends", "by_rows"]


@dataclass(frozen=True)
class MemoryPlan:
    """Bounds on memory; they change no result.

    Attributes:
        chunk_rows: rows of one product in a pullback: enough for full speed, few enough to stay in the cache.
        state_bytes: about how much a forward pass keeps for its pullback; more classes are computed again by parts.
        gradient_bytes: about how large the gradients of all rows get; more cotangents are pulled back by parts.
        row_length: preferred tokens of a packed row.
    """

    chunk_rows: int = 512
    state_bytes: int = 2**27
    gradient_bytes: int = 2**26
    row_length: int = ROW_LENGTH


@dataclass(frozen=True)
class LayerState:
    """What the pullback through a layer needs. ``first`` normed rows before attention, ``second`` before the rest."""

    first: Normed
    context: Attention | None
    classes: Attention
    second: Normed
    slope: Tensor


@dataclass(frozen=True)
class Part:
    """A forward pass over some of the classes, with the context's rows or without.

    Attributes:
        rows: of the context, 0 where another part has them.
        packed: the classes.
        layers: kept states; empty if not kept.
        final: normed rows at the ends, [R, E, d].
        features: at the ends, [R, E, feature size], not normalised.
    """

    rows: int
    packed: PackedClasses
    layers: list[LayerState]
    final: Normed
    features: Tensor


SharedKeys = list[tuple[Tensor, Tensor]]
"""Of every layer: keys and values [H, P, e] of begin token and context."""

Towards = Callable[[slice, Tensor], Tensor]
"""Gradients [b, c, d] towards the final normed rows of some examples and classes."""


@dataclass(frozen=True)
class Weights:
    """What a pullback needs of the tower: ``layers``, the ``projection`` behind them, the ``plan`` for memory."""

    layers: list[FoldedLayer]
    projection: FrozenProduct
    plan: MemoryPlan


class TextPass:
    """A finished forward pass, ready to be pulled back.

    Attributes:
        features: [classes, feature size], not normalised.

    Args:
        weights: of the tower that made it.
        context: [m, d].
        parts: the pass over all classes; the first has the context's rows.
        classes: how many there are.
        again: makes a part anew, with what was not kept; told whether with the context's rows.
    """

    def __init__(
        self,
        weights: Weights,
        context: Tensor,
        parts: list[Part],
        classes: int,
        again: Callable[[PackedClasses, bool], Part],
    ) -> None:
        self._weights, self._context, self._parts, self._again = weights, context, parts, again
        self.features = parts[0].features.new_empty((classes, weights.projection.outputs))
        for part in parts:
            real = part.packed.class_of_end >= 0
            self.features[part.packed.class_of_end[real]] = part.features[real]

    @torch.no_grad()
    def pullback(self, cotangents: Tensor) -> Tensor:
        """Gradients [B, m, d] of ``sum(cotangents * unit features)`` for cotangents [B, classes, feature size]."""
        norms = self.features.norm(dim=-1, keepdim=True)
        unit = self.features / norms
        radial = (cotangents * unit).sum(-1, keepdim=True)
        towards = self._weights.projection.pullback((cotangents - radial * unit) / norms)  # [B, classes, d]
        return self._pull(len(cotangents), lambda examples, classes: towards[examples][:, classes], coarse=False)

    @torch.no_grad()
    def rank_one_pullback(self, scales: Tensor, directions: Tensor, *, coarse: bool = False) -> Tensor:
        """The same for cotangents ``scales[b, c] * directions[b]``, without ever making them.

        Args:
            scales: [B, classes].
            directions: [B, feature size].
            coarse: round the factors of large products to bfloat16.
        """
        norms = self.features.norm(dim=-1)
        unit = self.features / norms[:, None]
        scaled = scales / norms
        radial = scaled * (directions @ unit.T)
        along, across = self._weights.projection.pullback(directions), self._weights.projection.pullback(unit)

        def towards(examples: slice, classes: Tensor) -> Tensor:
            straight: Tensor = scaled[examples][:, classes, None] * along[examples, None, :]
            return straight.addcmul_(radial[examples][:, classes, None], across[classes], value=-1.0)

        return self._pull(len(scales), towards, coarse=coarse)

    def _pull(self, batch: int, towards: Towards, *, coarse: bool) -> Tensor:
        """From gradients towards the final normed rows, ``towards(examples, classes)`` [b, c, d], to the context."""
        if not len(self._context):
            return self._context.new_zeros((batch, *self._context.shape))
        largest = max(part.rows + part.packed.ids.numel() for part in self._parts)
        element = self._context.element_size()
        at_once = max(1, self._weights.plan.gradient_bytes // (largest * self._context.shape[1] * element))
        result = self._context.new_empty((batch, *self._context.shape))
        for examples in _slices(batch, at_once):
            gradients: SharedKeys = []
            for part in reversed(self._parts):  # the part with the context's rows last
                states = part if part.layers else self._again(part.packed, part.rows > 0)
                pulled = _Pullback(self._weights, states, gradients, coarse=coarse)
                outcome = pulled.run(towards, examples)
                if part.rows:
                    result[examples] = outcome
        return result


class _Pullback:
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
        chunks = list(_slices(batch, max(1, self._chunk_rows // rows)))
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
        towards[:, m:, 0] = by_rows(pulled.keys)
        towards[:, m:, 1] = by_rows(pulled.values)
        if m:
            keys, values = self._gradients[-1]
            towards[:, :m, 0] = keys[:, chunk, 1:].permute(1, 2, 0, 3)
            towards[:, :m, 1] = values[:, chunk, 1:].permute(1, 2, 0, 3)
        normed = layer.keys_values.pullback(towards.flatten(2), coarse=self._coarse)
        asked = layer.queries.pullback(by_rows(pulled.queries).flatten(2), coarse=self._coarse)
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
                towards[:, m:, place] = by_rows(gradient)
        if m:
            assert state.context is not None
            own = state.context.pullback(attended[:, None, :m], shared=False)
            keys, values = self._gradients[index]
            towards[:, :m, 0] = by_rows(own.queries)
            towards[:, :m, 1] = by_rows(own.keys).add_(keys[:, chunk, 1:].permute(1, 2, 0, 3))
            towards[:, :m, 2] = by_rows(own.values).add_(values[:, chunk, 1:].permute(1, 2, 0, 3))
        normed = layer.into_attention.pullback(towards.flatten(2), coarse=self._coarse)
        Normed(state.first.unit[:count], state.first.inverse[:count]).add_pullback(g[:, :count], normed)

    def _share(self, index: int, pulled: AttentionGradients, chunk: slice) -> None:
        keys, values = self._gradients[index]
        keys[:, chunk] += pulled.shared_keys
        values[:, chunk] += pulled.shared_values


def by_rows(x: Tensor) -> Tensor:
    """[H, R, B, T, e] as [B, R T, H, e]."""
    return x.permute(2, 1, 3, 0, 4).flatten(1, 2)


def at_ends(packed: PackedClasses, before: int) -> Tensor:
    """[R, E], indices of the ends among all rows when ``before`` others come first."""
    rows, length = packed.ids.shape
    return before + packed.ends + length * torch.arange(rows, device=packed.ends.device)[:, None]


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
