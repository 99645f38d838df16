"""The text tower written out by hand: features of all classes, and pullbacks for many cotangents at once.

The same function as the model's own forward (``PlainTextTower``), up to rounding. What is gained:

- context and begin token are computed once for all classes, the begin token only once in all;
- classes of different lengths are packed without padding to the longest;
- the last layer is computed only where it is read;
- a pullback keeps no graph: examples differ in their cotangents alone, so the states of one forward pass serve all.

Symbols: N rows (the context's m, then R x T of packed classes), d width, H heads of size e, P = 1 + m shared keys, B
cotangents, E ends of classes in a row.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dpfpl_client.models.text_tower.attention import Attention, attend
from dpfpl_client.models.text_tower.layers import ACTIVATIONS, FoldedLayer, Normed, centred, folded_projection
from dpfpl_client.models.text_tower.pullbacks import AllClassesPullback, Towards, few_classes_pullback
from dpfpl_client.models.text_tower.states import (
    ClassTokens,
    LayerState,
    MemoryPlan,
    PackedClasses,
    Part,
    SharedKeys,
    Weights,
    at_ends,
    by_rows,
    pack,
    slices,
)

__all__ = ["FastTextTower", "MemoryPlan", "TextPass", "largest_only"]


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
        again: makes a part again, with what was not kept; its argument says whether with the context's rows.
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
        """As ``choice.TextPass.pullback``."""
        norms = self.features.norm(dim=-1, keepdim=True)
        unit = self.features / norms
        radial = (cotangents * unit).sum(-1, keepdim=True)
        towards = self._weights.projection.pullback((cotangents - radial * unit) / norms)  # [B, classes, d]
        return self._pull(len(cotangents), lambda examples, classes: towards[examples][:, classes], coarse=False)

    @torch.no_grad()
    def rank_one_pullback(self, scales: Tensor, directions: Tensor, *, coarse: bool = False, few: int = 0) -> Tensor:
        """As ``choice.TextPass.rank_one_pullback``, without ever making the cotangents."""
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
        plan: MemoryPlan | None = None,
    ) -> None:
        self._plan = plan or MemoryPlan()
        activation = ACTIVATIONS[text_model.config.hidden_act]
        layers = text_model.encoder.layers
        self._embeddings = text_model.embeddings
        self._layers = [
            FoldedLayer(layer, activation, last=index == len(layers) - 1, coarse=coarse)
            for index, layer in enumerate(layers)
        ]
        self._eps = float(text_model.final_layer_norm.eps)
        self._projection = folded_projection(text_projection, text_model.final_layer_norm)
        self._weights = Weights(self._layers, self._projection, self._plan)
        self._begin = self._begin_keys(bos_id)

    @torch.no_grad()
    def __call__(self, context: Tensor, tokens: ClassTokens) -> Tensor:
        """Features [classes, feature size], not normalised, of a context [m, d]."""
        features: Tensor = self.run(context, tokens, keep=False).features
        return features

    @torch.no_grad()
    def run(self, context: Tensor, tokens: ClassTokens, *, keep: bool = True, singly: bool = False) -> TextPass:
        """A forward pass; ``keep`` what its pullback needs, as far as it is small enough.

        ``singly`` lays classes out one by one, which pullbacks for a few classes of each example need to be faster.
        """
        packed = pack(tokens, self._plan.row_length, singly=singly)
        count = self._rows_within(self._plan.state_bytes * (4 if singly else 1), packed)
        slices = [slice(start, start + count) for start in range(0, len(packed.ids), count)]
        shared: SharedKeys = []
        parts = [self._part(context, packed.part(slices[0]), shared, keep=keep and len(slices) == 1)]
        parts += [self._part(context, packed.part(each), shared, keep=False) for each in slices[1:]]

        def again(packed: PackedClasses, first: bool) -> Part:
            return self._part(context, packed, [] if first else shared, keep=True)

        return TextPass(self._weights, context, parts, packed, count, again)

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

    def _part(self, context: Tensor, packed: PackedClasses, shared: SharedKeys, *, keep: bool) -> Part:
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
            attended = by_rows(classes.output)
            if own is not None:
                attended = torch.cat([by_rows(own.output), attended])
            x, second, slope = layer.half(x + layer.out(attended))
            if keep:
                states.append(LayerState(first, own, classes, second, slope))
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
        self, x: Tensor, rows: int, packed: PackedClasses, shared: SharedKeys, states: list[LayerState], *, keep: bool
    ) -> Part:
        """The last layer, which only the ends of the classes ask, and the projection."""
        layer, shape = self._layers[-1], packed.ids.shape
        assert layer.queries is not None
        assert layer.keys_values is not None
        first = Normed.of(x, layer.eps)
        keys, values = layer.keys_values(first.unit).chunk(2, dim=1)
        if len(shared) < len(self._layers):
            self._context_attention(len(self._layers) - 1, keys[:0], keys[:rows], values[:rows], shared)
        at = at_ends(packed, rows)
        ends = x[at]  # [R, E, d]
        allowed = packed.allowed[torch.arange(len(at), device=at.device)[:, None], packed.ends]
        classes = attend(
            _heads(layer.queries(first.unit[at]), layer.heads),
            _heads(keys[rows:].view(*shape, -1), layer.heads),
            _heads(values[rows:].view(*shape, -1), layer.heads),
            *shared[-1],
            allowed,
        )
        attended = by_rows(classes.output).view(ends.shape)
        ends, second, slope = layer.half(ends + layer.out(attended))
        final = Normed.of(ends, self._eps)
        if keep:
            states.append(LayerState(first, None, classes, second, slope))
        return Part(rows, packed, states, final, self._projection(final.unit))


def _heads(x: Tensor, heads: int) -> Tensor:
    """[R, T, d] as [H, R, T, e], contiguous."""
    return x.reshape(*x.shape[:2], heads, -1).permute(2, 0, 1, 3).contiguous()
