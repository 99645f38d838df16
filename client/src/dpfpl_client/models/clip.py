"""CLIP: a causal text tower read at the end token, a softmax over the classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_client.models.files import load_parts, model_fingerprint
from dpfpl_client.models.text_tower.choice import TextTower, text_tower_of
from dpfpl_client.models.text_tower.states import ClassTokens
from dpfpl_client.models.trial import refuse_differences
from dpfpl_common.errors import ModelError

__all__ = ["ClipBackbone", "load_clip"]


class ClipBackbone(DualEncoder):
    """A class prompt is ``[BOS][context]<class name>.[EOS]``; nothing after EOS is ever computed, exactly."""

    shortcuts = "image features once; begin token and context once for all classes; nothing after a class name"
    context_follows = "the begin token; then comes '<class name>.' and the end token"

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, fingerprint: str) -> None:
        super().__init__(model, tokenizer, image_processor, fingerprint, int(model.config.projection_dim))

    def tokens_of(self, suffixes: Sequence[Sequence[int]], num_context: int) -> ClassTokens:
        """Without any padding that is read."""
        return ClassTokens.build(suffixes, self._bos_id)

    def _make_tower(self, *, coarse: bool) -> TextTower:
        model = self._model
        return text_tower_of(model.text_model, model.text_projection, self._bos_id, self._eos_id, coarse=coarse)

    @property
    def _bos_id(self) -> int:
        if len(self.frame.begin) != 1:
            raise ModelError(
                code="TOKENIZER_UNUSABLE",
                message=f"The tokenizer begins a text with {len(self.frame.begin)} tokens of its own; prompts of a "
                "CLIP text tower begin with one.",
                advice="Use the tokenizer that belongs to the model.",
            )
        return self.frame.begin[0]

    @property
    def _eos_id(self) -> int:
        return self.frame.end[-1] if self.frame.end else int(self._tokenizer.eos_token_id)


def load_clip(folder: Path, dtype: torch.dtype, device: torch.device) -> ClipBackbone:
    """The CLIP model of a folder."""
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    def processor(folder: Path) -> Any:
        return CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)

    parts = load_parts(folder, CLIPModel, processor, device, attn_implementation="sdpa", dtype=dtype)
    backbone = ClipBackbone(*parts, model_fingerprint(folder))
    refuse_differences(backbone)
    return backbone
