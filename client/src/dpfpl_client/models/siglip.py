"""SigLIP and SigLIP 2: a text tower that looks both ways, read at its last position, and a sigmoid for every class.

As documented for these models, every text is padded to the model's full length and the padding takes part: all tokens
attend to all, and the last position, usually padding, is what is read. So every class prompt is computed whole, with
its padding; neither a shared prefix nor cutting at the longest name would be exact. What is exact: image features are
computed once, and all classes' prompts make one forward pass whose graph serves every example of a batch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_client.models.files import load_image_processor, load_parts, model_fingerprint
from dpfpl_client.models.text_tower.choice import TextTower
from dpfpl_client.models.text_tower.plain import PlainPass
from dpfpl_client.models.text_tower.states import ClassTokens
from dpfpl_client.models.trial import refuse_differences

__all__ = ["PaddedTextTower", "SiglipBackbone", "load_siglip"]


class PaddedTextTower:
    """Text features of whole, padded class prompts ``[begin][context]<class name>.[end][PAD]...``.

    Args:
        text_model: a loaded ``SiglipTextModel`` or ``Siglip2TextModel``; its head is its projection.
        begin: ids before the context; published models have none.
        pads_left: the padding comes first, as the tokenizer says.
    """

    def __init__(self, text_model: Any, begin: Sequence[int], *, pads_left: bool) -> None:
        self._text_model, self._begin, self._pads_left = text_model, tuple(begin), pads_left

    def __call__(self, context: Tensor, tokens: ClassTokens) -> Tensor:
        """Features [classes, feature size], not normalised, of a context [m, d]; differentiable in it."""
        m, size, count = len(context), tokens.ids.shape[1], len(tokens.ids)
        begin = torch.tensor(self._begin, dtype=torch.long).to(tokens.ids).expand(count, -1)
        ids = torch.cat([begin, tokens.ids[:, :1].expand(-1, m), tokens.ids], dim=1)
        starts = [size - int(length) if self._pads_left else 0 for length in tokens.lengths]
        first, behind = len(self._begin), len(self._begin) + m

        def put_in(module: Any, given: Any, embedded: Tensor) -> Tensor:
            """Padding on the left goes before the begin, the context where its ids stand only to keep the place."""
            rows = [
                torch.cat([row[behind : behind + start], row[:first], context, row[behind + start :]])
                for row, start in zip(embedded, starts, strict=True)
            ]
            return torch.stack(rows)

        handle = self._text_model.embeddings.token_embedding.register_forward_hook(put_in)
        try:
            features: Tensor = self._text_model(input_ids=ids.to(context.device)).pooler_output
        finally:
            handle.remove()
        return features

    def run(self, context: Tensor, tokens: ClassTokens, *, singly: bool = False) -> PlainPass:
        """A forward pass that can be pulled back; ``singly`` means nothing here."""
        with torch.enable_grad():
            leaf = context.detach().requires_grad_(True)
            return PlainPass(leaf, self(leaf, tokens))


class SiglipBackbone(DualEncoder):
    """The head is a sigmoid: ``p(c | x) = sigmoid(tau z_x . T_c + b)``, one decision a class."""

    shortcuts = "image features once; one graph over all padded class texts serves a whole batch"
    context_follows = (
        "what the tokenizer begins a text with; then comes '<class name>.', what it ends a text with, and padding up "
        "to the model's positions"
    )
    adapter_obstacle = "its texts are padded to the model's full length, and the padding takes part"

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, fingerprint: str) -> None:
        super().__init__(model, tokenizer, image_processor, fingerprint, int(model.config.text_config.projection_size))
        self.logit_bias = float(model.logit_bias)

    def tokens_of(self, suffixes: Sequence[Sequence[int]], num_context: int) -> ClassTokens:
        """With padding up to the model's positions."""
        size = self.positions - len(self.frame.begin) - num_context
        ids = torch.full((len(suffixes), size), self._pad_id)
        for row, suffix in zip(ids, suffixes, strict=True):
            row[size - len(suffix) if self._pads_left else 0 :][: len(suffix)] = torch.tensor(suffix, dtype=torch.long)
        return ClassTokens(ids, torch.tensor([len(suffix) for suffix in suffixes]), bos_id=self._pad_id)

    def tokenized(self, sentence: str) -> list[int]:
        """As documented for these models: padded, and cut, to the full length."""
        found = self._tokenizer(sentence, padding="max_length", max_length=self.positions, truncation=True)
        return [int(token) for token in found["input_ids"]]

    def plain_features(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Padded to the full length, where they are not; the padding is seen."""
        pads = [[self._pad_id] * (self.positions - len(row)) for row in rows]
        ids = [[*pad, *row] if self._pads_left else [*row, *pad] for row, pad in zip(rows, pads, strict=True)]
        features: Tensor = self._model.get_text_features(input_ids=torch.tensor(ids, device=self.device)).pooler_output
        return features

    def _make_tower(self, *, coarse: bool) -> TextTower:
        return PaddedTextTower(self._model.text_model, self.frame.begin, pads_left=self._pads_left)

    @property
    def _pads_left(self) -> bool:
        return str(self._tokenizer.padding_side) == "left"

    @property
    def _pad_id(self) -> int:
        return int(self._tokenizer.pad_token_id)


def load_siglip(folder: Path, dtype: torch.dtype, device: torch.device) -> SiglipBackbone:
    """The SigLIP or SigLIP 2 model of a folder."""
    from transformers import AutoModel

    parts = load_parts(folder, AutoModel, load_image_processor, device, attn_implementation="sdpa", dtype=dtype)
    backbone = SiglipBackbone(*parts, model_fingerprint(folder))
    refuse_differences(backbone)
    return backbone
