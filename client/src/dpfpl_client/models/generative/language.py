"""The language model behind a picture: what does not depend on the context is computed once, and without a graph.

Two ways, the same function. *Shared*: keys and values of the head (with the picture) come first, without gradients, and
only context, question and answer run with a graph; exact where attention is causal. *Whole*: everything runs at once,
layers recomputed in the backward pass instead of kept. Which one serves a model is decided by a trial, not by its name.
"""

import functools
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from dpfpl_client.models.generative.layout import Layout
from dpfpl_client.models.generative.template import Family

__all__ = ["LanguageModel", "share_of_memory"]

logger = logging.getLogger(__name__)

TOLERANCE: Final = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 5e-2}
"""Largest relative difference, by what is computed in, up to which both ways count as the same function."""

INFLUENCE: Final = 1e-4
"""Most that the head's states may change, relatively, with what stands behind it, in whatever precision: not at all."""

KEPT_BYTES: Final = 256 * 2**20
"""Most that keys and values of pictures take up between steps, in the processor's memory."""

ACTIVATION_BYTES: Final = 2**29
"""Most that the graph of one micro-batch may take there, roughly."""

KeysValues = list[tuple[Tensor, Tensor]]


class LanguageModel:
    """Hidden states of ``[context][question][answer]`` behind a picture.

    Args:
        model: a loaded ``...ForConditionalGeneration``.
        layout: its turn.
        family: its quirks.
        depth: how many vectors a picture's token has: the one in the token's place, and those that Qwen3-VL adds to the
            states behind its first layers.
        grid: [1, 3], the picture's grid, for models that make their positions of it; None elsewhere.
        shared: which way; None decides by a trial.

    Attributes:
        shared: which way serves.
        singly: whether every example is computed by itself. In bfloat16 a matrix product rounds by its shape, so in a
            batch one example more, or a longer one, would move the gradients of the others (test NI10).
        activation_bytes: most that the graph of one micro-batch may take, roughly.
        longest: most tokens of a turn, head and answer included. Beyond it some models' rotary positions change with
            what was computed before, and an example's gradient would no longer depend on that example alone.

    Embeddings and states are on the model's device and in its precision; pictures' rows may be anywhere.
    """

    def __init__(
        self,
        model: Any,
        layout: Layout,
        family: Family,
        *,
        depth: int = 1,
        grid: Tensor | None = None,
        shared: bool | None = None,
    ) -> None:
        self._model, self._layout, self._family, self._depth, self._grid = model, layout, family, depth, grid
        self._decoder = model.model.get_decoder() if hasattr(model.model, "get_decoder") else model.get_decoder()
        self._core = model.model if family.sees_ahead else self._decoder  # who makes the masks of who sees ahead
        self._embedding = model.get_input_embeddings()
        self._output = model.get_output_embeddings()
        text = model.config.get_text_config()
        self.longest = _longest(text)
        self._cap: float | None = getattr(text, "final_logit_softcapping", None) if family.caps_logits else None
        self._kept: OrderedDict[bytes, KeysValues] = OrderedDict()
        self._told_of_memory = False
        self._kept_bytes = 0
        self.width = int(self._embedding.weight.shape[1])
        self._device: torch.device = self._embedding.weight.device
        self.singly = self._embedding.weight.dtype == torch.bfloat16
        self._kept_most = share_of_memory(self._device, KEPT_BYTES)
        self.activation_bytes = share_of_memory(self._device, ACTIVATION_BYTES)
        self.shared = True
        if shared is None:
            self._decide()
        else:
            self.shared = shared

    def examples_within(self, length: int) -> int:
        """How many examples with ``length`` tokens behind the head are computed at once; at least one."""
        if self.singly:
            return 1
        config = self._model.config.get_text_config()
        seen = length + len(self._layout.head)
        tokens = length if self.shared else seen
        inner = int(getattr(config, "intermediate_size", 4 * self.width))
        token = 12 * self.width + 4 * inner + 2 * int(config.num_attention_heads) * seen
        layers = int(config.num_hidden_layers) if self.shared else 2  # whole: recomputed layer by layer
        element = self._embedding.weight.element_size()
        each = element * tokens * layers * token + 4 * length * int(config.vocab_size)
        return max(1, int(self.activation_bytes // each))

    def forget(self) -> None:
        """Hold nothing of the pictures so far."""
        self._kept.clear()
        self._kept_bytes = 0

    def hold(self, size: int) -> None:
        """Keep at most ``size`` bytes of keys and values between steps."""
        self._kept_most, self._told_of_memory = size, False
        self._shorten()

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings [..., width]."""
        rows: Tensor = self._embedding(ids.to(self._device))
        return rows

    def vectors(self, contexts: Tensor) -> Tensor:
        """Contexts as the model takes embeddings; differentiable, so that float32 gradients come back."""
        return contexts.to(self._embedding.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., vocabulary]."""
        found: Tensor = self._output(hidden)
        return found if self._cap is None else self._cap * torch.tanh(found / self._cap)

    def states(self, pictures: Tensor, behind: Tensor, answer: int) -> Tensor:
        """Hidden states [b, L, width] of ``behind`` [b, L, width], which stands behind the head with the pictures.

        Args:
            pictures: rows [b, tokens * depth * width].
            behind: embeddings of context, question and answer; differentiable in it.
            answer: how many of them, the last ones, are the answer's.
        """
        if self.shared:
            hidden, _ = self.continued(self.prefix(pictures), behind)
            return hidden
        return self._turn(pictures, behind, answer)[:, -behind.shape[1] :]

    def prefix(self, pictures: Tensor) -> KeysValues:
        """Keys and values [b, heads, h, e] of the head, by layer; kept for pictures seen before."""
        keys = [hashlib.blake2b(row.numpy().tobytes(), digest_size=16).digest() for row in pictures.float().cpu()]
        missing = [place for place, key in enumerate(keys) if key not in self._kept]
        fresh: dict[bytes, KeysValues] = {}
        at_once = 1 if self.singly else max(1, len(missing))
        for start in range(0, len(missing), at_once):
            places = missing[start : start + at_once]
            with torch.no_grad():
                found = self._headed(pictures[places])
            for number, place in enumerate(places):
                fresh[keys[place]] = [(k[number : number + 1], v[number : number + 1]) for k, v in found]
        rows = [self._kept.get(key) or fresh[key] for key in keys]
        for key, row in fresh.items():
            self._keep(key, row)
        return [
            (torch.cat([row[layer][0] for row in rows]), torch.cat([row[layer][1] for row in rows]))
            for layer in range(len(rows[0]))
        ]

    def continued(self, before: KeysValues, behind: Tensor) -> tuple[Tensor, KeysValues]:
        """Hidden states [b, L, width] behind keys and values, and these with the new ones."""
        from transformers import DynamicCache

        cache, start = DynamicCache(before), before[0][0].shape[2]
        output = self._core(
            inputs_embeds=behind,
            position_ids=self._positions(len(behind), start, start + behind.shape[1]),
            past_key_values=cache,
            use_cache=True,
        )
        return output.last_hidden_state, [(layer.keys, layer.values) for layer in cache.layers]

    def _headed(self, pictures: Tensor) -> KeysValues:
        """Keys and values of the head, for these pictures."""
        from transformers import DynamicCache

        cache, embedded = DynamicCache(), self._head(pictures)
        self._core(
            inputs_embeds=embedded,
            position_ids=self._positions(len(embedded), 0, embedded.shape[1]),
            past_key_values=cache,
            use_cache=True,
            **self._seeing(pictures, embedded.shape[1], 0),
        )
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _turn(self, pictures: Tensor, behind: Tensor, answer: int) -> Tensor:
        """Hidden states of the head and what stands behind it, [b, h + L, width]."""
        embedded = torch.cat([self._head(pictures), behind], dim=1)
        with _Recomputed(self._decoder):
            output = self._core(
                inputs_embeds=embedded,
                position_ids=self._positions(len(embedded), 0, embedded.shape[1]),
                use_cache=False,
                **self._seeing(pictures, embedded.shape[1], answer),
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _head(self, pictures: Tensor) -> Tensor:
        """The head's embeddings [b, h, width] with the pictures' rows in their places."""
        ids = self._layout.head.masked_fill(self._layout.picture, 0)  # the image token may lie outside the vocabulary
        embedded = self.embed(ids).detach()[None].repeat(len(pictures), 1, 1)
        embedded[:, self._layout.picture.to(self._device)] = self._levels(pictures)[:, :, 0].to(embedded)
        return embedded

    def _levels(self, pictures: Tensor) -> Tensor:
        """[b, tokens, depth, width]."""
        return pictures.reshape(len(pictures), -1, self._depth, self.width)

    def _seeing(self, pictures: Tensor, length: int, answer: int) -> dict[str, Any]:
        """What a turn's first ``length`` tokens need beside embeddings: who sees ahead, what deeper layers see."""
        picture = torch.zeros(length, dtype=torch.bool)
        picture[: len(self._layout.picture)] = self._layout.picture[:length]
        given: dict[str, Any] = {}
        if self._family.sees_ahead:
            ahead = torch.arange(length) >= length - answer if self._family.sees_ahead == "prefix" else picture
            given["token_type_ids"] = ahead.long().to(self._device).expand(len(pictures), -1)
        if self._depth > 1:
            levels = self._levels(pictures).to(self._embedding.weight)
            given["visual_pos_masks"] = picture.to(self._device).expand(len(pictures), -1)
            given["deepstack_visual_embeds"] = [levels[:, :, level].flatten(0, 1) for level in range(1, self._depth)]
        return given

    def _positions(self, count: int, start: int, end: int) -> Tensor:
        """Of a turn's tokens from ``start`` to ``end``, for each of ``count`` turns: [b, L], or [3, b, L]."""
        positions = self._all_positions(end)[..., start:]
        return positions.expand(*positions.shape[:-2], count, -1)

    @functools.lru_cache(maxsize=256)  # noqa: B019  lives as long as its model
    def _all_positions(self, length: int) -> Tensor:
        """Positions of the first ``length`` tokens of a turn: [1, length], or [3, 1, length]."""
        if self._grid is None:  # where a family counts from 1, rotary positions give the same
            return torch.arange(length, device=self._device)[None]
        ids = self._layout.head.new_full((1, length), int(self._layout.head[0]))
        size = min(length, len(self._layout.head))
        ids[0, :size] = self._layout.head[:size]
        kinds = torch.zeros_like(ids, dtype=torch.int32)
        kinds[0, :size] = self._layout.picture[:size].int()
        found: Tensor = self._model.model.get_rope_index(ids, kinds, image_grid_thw=self._grid)[0]
        return found.to(self._device)

    def _keep(self, key: bytes, row: KeysValues) -> None:
        size = _size(row)
        if size > self._kept_most:
            return
        self._kept[key] = row
        self._kept_bytes += size
        self._shorten()

    def _shorten(self) -> None:
        if self._kept_bytes > self._kept_most and not self._told_of_memory:
            self._told_of_memory = True
            logger.warning(
                "What is computed of pictures takes more than %d MB, so some of it is computed again at every step; "
                "a larger picture_memory under [compute] in site.toml saves that (one picture takes %.1f MB).",
                self._kept_most >> 20, self._kept_bytes / len(self._kept) / 2**20,
            )  # fmt: skip
        while self._kept_bytes > self._kept_most:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= _size(oldest)

    @torch.no_grad()
    def _decide(self) -> None:
        generator = torch.Generator().manual_seed(0)
        scale = float(self._embedding.weight[:1000].float().std())

        def drawn(*shape: int) -> Tensor:
            return (scale * torch.randn(shape, generator=generator)).to(self._embedding.weight)

        pictures = drawn(1, int(self._layout.picture.sum()) * self._depth * self.width)
        behind = drawn(1, 4, self.width)
        try:
            found = self.states(pictures, behind, 1)
            turn = self._turn(pictures, behind, 1)
            difference = _relative(found, turn[:, -behind.shape[1] :])
            influence, tolerance = 0.0, TOLERANCE[self._embedding.weight.dtype]
            if tolerance > INFLUENCE:  # rounding could hide it
                other = self._turn(pictures, drawn(1, 4, self.width), 1)
                influence = _relative(other[:, : -behind.shape[1]], turn[:, : -behind.shape[1]])
        except (AttributeError, IndexError, TypeError) as error:  # layers whose state is not keys and values
            self._give_up(type(error).__name__)
            return
        finally:
            self.forget()
        if not difference <= tolerance:
            self._give_up(f"relative difference {difference:.1e}")
        elif not influence <= INFLUENCE:
            self._give_up(f"the picture's part depends on what follows, {influence:.1e}")

    def _give_up(self, reason: str) -> None:
        logger.warning("The picture's part cannot be shared in this model (%s); everything is computed whole.", reason)
        self.shared = False


def share_of_memory(device: torch.device, at_least: int) -> int:
    """Bytes that one store may fill: on a GPU a quarter of what is free there now; elsewhere ``at_least``."""
    if device.type != "cuda":
        return at_least
    free, _ = torch.cuda.mem_get_info(device)
    return max(at_least, free // 4)


def _longest(config: Any) -> int:
    """Tokens for which the language model's positions are what they were made for."""
    rope = getattr(config, "rope_parameters", None) or {}
    limits = [int(getattr(config, "max_position_embeddings", None) or 2**31)]
    for each in (rope, *rope.values()):  # Gemma 3 has one for each kind of layer
        if isinstance(each, dict) and each.get("rope_type") == "longrope":
            limits.append(int(each.get("original_max_position_embeddings") or 2**31))
    return min(limits)


def _size(row: KeysValues) -> int:
    """Bytes."""
    return sum(k.numel() * k.element_size() + v.numel() * v.element_size() for k, v in row)


def _relative(found: Tensor, expected: Tensor) -> float:
    """Of the difference's norm to the expected one's, both in float32 or better."""
    wide = torch.promote_types(expected.dtype, torch.float32)
    return float((found.to(wide) - expected.to(wide)).norm() / expected.to(wide).norm())


class _Recomputed:
    """Inside, layers keep no activations for the backward pass but compute them again; dropout stays off."""

    def __init__(self, decoder: Any) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        self._layers: Sequence[Any] = [
            each for each in decoder.modules() if isinstance(each, GradientCheckpointingLayer)
        ]

    def __enter__(self) -> None:
        for layer in self._layers:  # only the layer's own flag: its parts stay in evaluation mode
            layer.gradient_checkpointing = layer.training = True
            layer._gradient_checkpointing_func = functools.partial(
                torch.utils.checkpoint.checkpoint, use_reentrant=False
            )

    def __exit__(self, *exception: object) -> None:
        for layer in self._layers:
            layer.gradient_checkpointing = layer.training = False
