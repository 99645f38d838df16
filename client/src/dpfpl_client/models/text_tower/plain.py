"""Text towers as Hugging Face runs them, whole prompt by whole prompt: slow, and right for every text model.

The context's vectors are put where ids stand only to keep the places. Gradients come by autograd, from one graph that
serves every example of a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dpfpl_client.models.text_tower.fast import largest_only
from dpfpl_client.models.text_tower.states import ClassTokens

__all__ = ["PaddedTextTower", "PlainPass", "PlainTextTower", "WholeTextTower"]


class _AutogradTower:
    """What these towers share: a forward pass with its graph."""

    def __call__(self, context: Tensor, tokens: ClassTokens) -> Tensor:
        """Features [classes, feature size], not normalised, of a context [m, d]; differentiable in it."""
        raise NotImplementedError

    def run(self, context: Tensor, tokens: ClassTokens, *, singly: bool = False) -> "PlainPass":
        """A forward pass that can be pulled back; ``singly`` means nothing here."""
        with torch.enable_grad():
            leaf = context.detach().requires_grad_(True)
            return PlainPass(leaf, self(leaf, tokens))


class PlainTextTower(_AutogradTower):
    """A CLIP-like text model's own forward; its own rule finds the end of a prompt.

    Args:
        text_model: a loaded ``CLIPTextModel``.
        text_projection: its projection to features.
    """

    def __init__(self, text_model: Any, text_projection: Any) -> None:
        self._text_model, self._projection = text_model, text_projection

    def __call__(self, context: Tensor, tokens: ClassTokens) -> Tensor:
        """Features of ``[BOS][context]<class name>.[EOS]``, made up with EOS to the longest."""
        m = len(context)
        begin = tokens.ids.new_full((len(tokens.ids), 1 + m), tokens.bos_id)
        ids = torch.cat([begin, tokens.ids], dim=1).to(context.device)
        with _put_in(self._text_model.embeddings.token_embedding, lambda embedded: _behind(embedded, 1, context)):
            pooled = self._text_model(input_ids=ids).pooler_output
        features: Tensor = self._projection(pooled)
        return features


class PaddedTextTower(_AutogradTower):
    """SigLIP's text model on padded class prompts ``[begin][context]<class name>.[end][PAD]...``.

    Args:
        text_model: a loaded ``SiglipTextModel`` or ``Siglip2TextModel``; its head is its projection.
        begin: ids before the context; published models have none.
        pads_left: the padding comes first, as the tokenizer says.
    """

    def __init__(self, text_model: Any, begin: Sequence[int], *, pads_left: bool) -> None:
        self._text_model, self._begin, self._pads_left = text_model, tuple(begin), pads_left

    def __call__(self, context: Tensor, tokens: ClassTokens) -> Tensor:
        """Features of prompts that are as long as the model's positions."""
        m, size, count = len(context), tokens.ids.shape[1], len(tokens.ids)
        begin = torch.tensor(self._begin, dtype=torch.long).to(tokens.ids).expand(count, -1)
        ids = torch.cat([begin, tokens.ids[:, :1].expand(-1, m), tokens.ids], dim=1)
        starts = [size - int(length) if self._pads_left else 0 for length in tokens.lengths]
        first, behind = len(self._begin), len(self._begin) + m

        def put_in(embedded: Tensor) -> Tensor:
            """Padding on the left goes before the begin."""
            rows = [
                torch.cat([row[behind : behind + start], row[:first], context, row[behind + start :]])
                for row, start in zip(embedded, starts, strict=True)
            ]
            return torch.stack(rows)

        with _put_in(self._text_model.embeddings.token_embedding, put_in):
            features: Tensor = self._text_model(input_ids=ids.to(context.device)).pooler_output
        return features


class WholeTextTower(_AutogradTower):
    """A dual encoder's own ``get_text_features``, prompts of one length together and therefore without padding.

    Args:
        model: a loaded dual encoder.
        begin: ids before the context.
        filler: the id that keeps the context's places; no padding.
    """

    def __init__(self, model: Any, begin: Sequence[int], filler: int) -> None:
        self._model, self._begin, self._filler = model, tuple(begin), filler

    def __call__(self, context: Tensor, tokens: ClassTokens) -> Tensor:
        """Features of ``[begin][context]<class name>.[end]``."""
        lengths = tokens.lengths.tolist()
        rows: dict[int, Tensor] = {}
        for length in sorted(set(lengths)):
            members = [place for place, each in enumerate(lengths) if each == length]
            rows |= zip(members, self._features(context, tokens.ids[members, :length]), strict=True)
        return torch.stack([rows[place] for place in range(len(lengths))])

    def _features(self, context: Tensor, suffixes: Tensor) -> Tensor:
        """[n, feature size] for suffixes [n, length] of one length."""
        start, m, count = len(self._begin), len(context), len(suffixes)
        begin = torch.tensor([*self._begin, *[self._filler] * m], dtype=torch.long).expand(count, -1).to(suffixes)
        ids = torch.cat([begin, suffixes], dim=1)
        embedding = self._model.text_model.get_input_embeddings()
        with _put_in(embedding, lambda embedded: _behind(embedded, start, context)):
            # The mask of ones is not idle: AIMv2 looks ahead where it is given none.
            features: Tensor = self._model.get_text_features(
                input_ids=ids, attention_mask=torch.ones_like(ids)
            ).pooler_output
        return features


@contextmanager
def _put_in(embedding: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, what the embedding gives is changed."""
    handle = embedding.register_forward_hook(lambda module, given, embedded: change(embedded))
    try:
        yield
    finally:
        handle.remove()


def _behind(embedded: Tensor, start: int, context: Tensor) -> Tensor:
    """Embeddings [n, length, d] with the context [m, d] from the place ``start`` on."""
    inside = context.expand(len(embedded), -1, -1)
    return torch.cat([embedded[:, :start], inside, embedded[:, start + len(context) :]], dim=1)


class PlainPass:
    """A finished forward pass with its graph.

    Attributes:
        features: [classes, feature size], not normalised.
    """

    def __init__(self, leaf: Tensor, features: Tensor) -> None:
        self._leaf = leaf
        self._unit = functional.normalize(features, dim=-1) if features.requires_grad else features
        self.features = features.detach()

    def pullback(self, cotangents: Tensor) -> Tensor:
        """As ``TextPass.pullback``, one cotangent after the other."""
        result = cotangents.new_empty((len(cotangents), *self._leaf.shape))
        for row, cotangent in zip(result, cotangents, strict=True):
            row.copy_(torch.autograd.grad(self._unit, self._leaf, cotangent, retain_graph=True)[0])
        return result

    def rank_one_pullback(self, scales: Tensor, directions: Tensor, *, coarse: bool = False, few: int = 0) -> Tensor:
        """As ``TextPass.rank_one_pullback``; never rounded."""
        if few:
            scales = largest_only(scales, few)
        result = scales.new_empty((len(scales), *self._leaf.shape))
        for row, scale, direction in zip(result, scales, directions, strict=True):
            row.copy_(self.pullback(torch.outer(scale, direction)[None])[0])
        return result
