"""The text tower written out by hand: features of all classes, and pullbacks for many cotangents at once.

The same function as ``SharedPrefixTextTower``, which is its reference in the tests. What is gained: begin token and
context are computed once for all classes, and the begin token once for ever; classes of different lengths are packed
without padding to the longest; the last layer is computed where it is read; and a pullback keeps no graph: examples
differ in their cotangents alone, so what the forward pass kept serves them all.

Symbols: N rows (the context's m, then R x T of packed classes), d width, H heads of size e, P = 1 + m shared keys, B
cotangents, E ends of classes in a row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpfpl_client.learning.folded_layers import ACTIVATIONS, FoldedLayer, Normed, centred, folded_projection
from dpfpl_client.learning.packing import ROW_LENGTH, PackedClasses, pack
from dpfpl_client.learning.shared_attention import Attention, AttentionGradients, attend
from dpfpl_client.learning.text_tower import ClassTokens

__all__ = ["FastTextTower", "MemoryPlan", "TextPass"]


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
class _LayerState:
    """What the pullback through a layer needs. ``first`` normed rows before attention, ``second`` before the rest."""

    first: Normed
    context: Attention | None
    classes: Attention
    second: Normed
    slope: Tensor


@dataclass(frozen=True)
class _Part:
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
    layers: list[_LayerState]
    final: Normed
    features: Tensor


SharedKeys = list[tuple[Tensor, Tensor]]
"""Of every layer: keys and values [H, P, e] of begin token and context."""

Towards = Callable[[slice, Tensor], Tensor]
"""Gradients [b, c, d] towards the final normed rows of some examples and classes."""


class FastTextTower:
    """Weights of a loaded ``CLIPTextModel``, rearranged.

    Args:
        text_model: with an activation of ``ACTIVATIONS``.
        text_projection: its projection to features.
        bos_id: the begin token.
        coarse: keep bfloat16 weights too, for pullbacks that may be rounded.
        plan: bounds on memory.
    """

    def __init__(
        self,
        text_model: Any,
        text_projection: Any,
        bos_id: int,
        *,
        coarse: bool = False,
        plan: MemoryPlan = MemoryPlan(),
    ) -> None:
        self.plan = plan
        activation = ACTIVATIONS[text_model.config.hidden_act]
        layers = text_model.encoder.layers
        self._embeddings = text_model.embeddings
        self._layers = [
            FoldedLayer(layer, activation, last=index == len(layers) - 1, coarse=coarse)
            for index, layer in enumerate(layers)
        ]
        self._eps = float(text_model.final_layer_norm.eps)
        self._projection = folded_projection(text_projection, text_model.final_layer_norm, coarse=coarse)
        self._begin = self._begin_keys(bos_id)

    @torch.no_grad()
    def __call__(self, context: Tensor, tokens: ClassTokens) -> Tensor:
        """Features [classes, feature size], not normalised, of a context [m, d]."""
        features: Tensor = self.run(context, tokens, keep=False).features
        return features

    @torch.no_grad()
    def run(self, context: Tensor, tokens: ClassTokens, *, keep: bool = True) -> "TextPass":
        """A forward pass; ``keep`` what its pullback needs, as far as it is small enough."""
        packed = pack(tokens, self.plan.row_length)
        count = self._rows_within(self.plan.state_bytes, packed)
        slices = [slice(start, start + count) for start in range(0, len(packed.ids), count)]
        shared: SharedKeys = []
        parts = [self._part(context, packed.part(slices[0]), shared, keep=keep and len(slices) == 1)]
        parts += [self._part(context, packed.part(each), shared, keep=False) for each in slices[1:]]
        return TextPass(self, context, parts, shared, len(tokens.lengths))

    def _rows_within(self, size: int, packed: PackedClasses) -> int:
        """How many packed rows leave states of at most that many bytes; at least one."""
        width = self._projection.inputs
        token = len(self._layers) * width * 12 * int(self._embeddings.position_embedding.weight.element_size())
        return max(1, size // (token * packed.ids.shape[1]))

    def _begin_keys(self, bos_id: int) -> SharedKeys:
        """Keys and values [H, 1, e] of the begin token, which sees nothing but itself."""
        with torch.no_grad():
            weight = self._embeddings.token_embedding.weight
            x = centred(weight[bos_id : bos_id + 1] + self._embeddings.position_embedding.weight[:1])
            keys: SharedKeys = []
            for layer in self._layers:
                normed = Normed.of(x, layer.eps).unit
                product = layer.keys_values or layer.into_attention
                assert product is not None
                key, value = product(normed)[:, -2 * x.shape[1] :].chunk(2, dim=1)
                keys.append((_heads(key[None], layer.heads)[:, 0], _heads(value[None], layer.heads)[:, 0]))
                x, _, _ = layer.half(x + layer.out(value.contiguous()))
        return keys

    def _part(self, context: Tensor, packed: PackedClasses, shared: SharedKeys, *, keep: bool) -> _Part:
        """Forward over packed classes; fills ``shared`` where it is empty, from the context's rows."""
        embed, positions = self._embeddings.token_embedding, self._embeddings.position_embedding.weight
        m, rows = len(context), 0 if shared else len(context)
        x = (embed(packed.ids) + positions[packed.places + 1 + m]).flatten(0, 1)
        x = centred(torch.cat([context + positions[1 : 1 + m], x]) if rows else x)
        fresh = not shared
        states = []
        for index, layer in enumerate(self._layers[:-1]):
            assert layer.into_attention is not None
            first = Normed.of(x, layer.eps)
            queries, keys, values = layer.into_attention(first.unit).chunk(3, dim=1)
            own = None
            if fresh:
                own = self._context_attention(index, queries[:rows], keys[:rows], values[:rows], shared)
            asked, seen, read = (
                _heads(each[rows:].view(*packed.ids.shape, -1), layer.heads) for each in (queries, keys, values)
            )
            classes = attend(asked, seen, read, *shared[index], packed.allowed)
            attended = _rows(classes.output[:, :, None])[0]
            if own is not None:
                attended = torch.cat([_rows(own.output[:, :, None])[0], attended])
            x, second, slope = layer.half(x + layer.out(attended))
            if keep:
                states.append(_LayerState(first, own, classes, second, slope))
        return self._last(x, rows, packed, shared, states, keep=keep)

    def _context_attention(
        self, index: int, queries: Tensor, keys: Tensor, values: Tensor, shared: SharedKeys
    ) -> Attention | None:
        """The context's rows attend to begin token and each other; their keys become the classes' shared ones."""
        begin_keys, begin_values = self._begin[index]
        if not len(keys):
            shared.append((begin_keys, begin_values))
            return None
        heads = self._layers[index].heads
        own_keys, own_values = _heads(keys[None], heads), _heads(values[None], heads)
        shared.append((torch.cat([begin_keys, own_keys[:, 0]], 1), torch.cat([begin_values, own_values[:, 0]], 1)))
        if not len(queries):  # the last layer: only their keys and values are read
            return None
        allowed = torch.ones(len(keys), len(keys), dtype=torch.bool, device=keys.device).tril()[None]
        return attend(_heads(queries[None], heads), own_keys, own_values, begin_keys, begin_values, allowed)

    def _last(
        self, x: Tensor, rows: int, packed: PackedClasses, shared: SharedKeys, states: list[_LayerState], *, keep: bool
    ) -> _Part:
        """The last layer, which only the ends of the classes ask, and the projection."""
        layer, shape = self._layers[-1], packed.ids.shape
        assert layer.queries is not None
        assert layer.keys_values is not None
        first = Normed.of(x, layer.eps)
        keys, values = layer.keys_values(first.unit).chunk(2, dim=1)
        if len(shared) < len(self._layers):
            self._context_attention(len(self._layers) - 1, keys[:0], keys[:rows], values[:rows], shared)
        at = _at_ends(packed, rows)
        ends = x[at]  # [R, E, d]
        allowed = packed.allowed[torch.arange(len(at))[:, None], packed.ends]
        classes = attend(
            _heads(layer.queries(first.unit[at]), layer.heads),
            _heads(keys[rows:].view(*shape, -1), layer.heads),
            _heads(values[rows:].view(*shape, -1), layer.heads),
            *shared[-1],
            allowed,
        )
        attended = _rows(classes.output[:, :, None]).view(ends.shape)
        ends, second, slope = layer.half(ends + layer.out(attended))
        final = Normed.of(ends, self._eps)
        if keep:
            states.append(_LayerState(first, None, classes, second, slope))
        return _Part(rows, packed, states, final, self._projection(final.unit))


class TextPass:
    """A finished forward pass, ready to be pulled back.

    Attributes:
        features: [classes, feature size], not normalised.
    """

    def __init__(
        self, tower: FastTextTower, context: Tensor, parts: list[_Part], shared: SharedKeys, classes: int
    ) -> None:
        self._tower, self._context, self._parts, self._shared = tower, context, parts, shared
        size = tower._projection.outputs
        self.features = parts[0].features.new_empty((classes, size))
        for part in parts:
            real = part.packed.class_of_end >= 0
            self.features[part.packed.class_of_end[real]] = part.features[real]

    @torch.no_grad()
    def pullback(self, cotangents: Tensor) -> Tensor:
        """Gradients [B, m, d] of ``sum(cotangents * unit features)`` for cotangents [B, classes, feature size]."""
        norms = self.features.norm(dim=-1, keepdim=True)
        unit = self.features / norms
        radial = (cotangents * unit).sum(-1, keepdim=True)
        towards = self._tower._projection.pullback((cotangents - radial * unit) / norms)  # [B, classes, d]
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
        along, across = self._tower._projection.pullback(directions), self._tower._projection.pullback(unit)

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
        at_once = max(1, self._tower.plan.gradient_bytes // (largest * self._context.shape[1] * element))
        result = self._context.new_empty((batch, *self._context.shape))
        for examples in _slices(batch, at_once):
            gradients: SharedKeys = []
            for part in reversed(self._parts):  # the part with the context's rows last
                states = part
                if not part.layers:
                    shared = [] if part.rows else self._shared
                    states = self._tower._part(self._context, part.packed, shared, keep=True)
                pulled = _Pullback(self._tower, states, gradients, coarse=coarse)
                outcome = pulled.run(towards, examples)
                if part.rows:
                    result[examples] = outcome
        return result


class _Pullback:
    """One pullback through one part: gradients of all its rows, layer by layer from the last to the first."""

    def __init__(self, tower: FastTextTower, part: _Part, gradients: SharedKeys, *, coarse: bool) -> None:
        self._layers, self._part, self._coarse = tower._layers, part, coarse
        self._chunk_rows = tower.plan.chunk_rows
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
        towards[:, m:, 0] = _by_rows(pulled.keys)
        towards[:, m:, 1] = _by_rows(pulled.values)
        if m:
            keys, values = self._gradients[-1]
            towards[:, :m, 0] = keys[:, chunk, 1:].permute(1, 2, 0, 3)
            towards[:, :m, 1] = values[:, chunk, 1:].permute(1, 2, 0, 3)
        normed = layer.keys_values.pullback(towards.flatten(2), coarse=self._coarse)
        asked = layer.queries.pullback(_by_rows(pulled.queries).flatten(2), coarse=self._coarse)
        at = _at_ends(part.packed, m).flatten()
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
                towards[:, m:, place] = _by_rows(gradient)
        if m:
            assert state.context is not None
            own = state.context.pullback(attended[:, None, :m], shared=False)
            keys, values = self._gradients[index]
            towards[:, :m, 0] = _by_rows(own.queries)
            towards[:, :m, 1] = _by_rows(own.keys).add_(keys[:, chunk, 1:].permute(1, 2, 0, 3))
            towards[:, :m, 2] = _by_rows(own.values).add_(values[:, chunk, 1:].permute(1, 2, 0, 3))
        normed = layer.into_attention.pullback(towards.flatten(2), coarse=self._coarse)
        Normed(state.first.unit[:count], state.first.inverse[:count]).add_pullback(g[:, :count], normed)

    def _share(self, index: int, pulled: AttentionGradients, chunk: slice) -> None:
        keys, values = self._gradients[index]
        keys[:, chunk] += pulled.shared_keys
        values[:, chunk] += pulled.shared_values


def _heads(x: Tensor, heads: int) -> Tensor:
    """[R, T, d] as [H, R, T, e], contiguous."""
    return x.reshape(*x.shape[:2], heads, -1).permute(2, 0, 1, 3).contiguous()


def _by_rows(x: Tensor) -> Tensor:
    """[H, R, B, T, e] as [B, R T, H, e]."""
    return x.permute(2, 1, 3, 0, 4).flatten(1, 2)


def _rows(x: Tensor) -> Tensor:
    """[H, R, B, T, e] as [B, R T, d]."""
    return _by_rows(x).flatten(2)


def _at_ends(packed: PackedClasses, before: int) -> Tensor:
    """[R, E], indices of the ends among all rows when ``before`` others come first."""
    rows, length = packed.ids.shape
    return before + packed.ends + length * torch.arange(rows, device=packed.ends.device)[:, None]


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
