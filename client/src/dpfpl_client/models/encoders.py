"""The families of dual encoders: CLIP, SigLIP, and any text encoder beside any vision tower.

What each shares between classes is what is exact for its text tower; a trial at loading shows that it is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_client.models.files import load_image_processor, load_parts, model_fingerprint
from dpfpl_client.models.folder import model_type
from dpfpl_client.models.text_tower.choice import TextTower, text_tower_of
from dpfpl_client.models.text_tower.plain import PaddedTextTower, WholeTextTower
from dpfpl_client.models.text_tower.states import ClassTokens
from dpfpl_client.models.trial import refuse_differences
from dpfpl_common.errors import ModelError

__all__ = [
    "ENCODER_FAMILIES",
    "ClipBackbone",
    "EncoderBackbone",
    "SiglipBackbone",
    "load_clip",
    "load_encoder",
    "load_siglip",
]

ENCODER_FAMILIES: Final = ("vision-text-dual-encoder", "altclip", "chinese_clip", "aimv2", "metaclip_2")
"""Model types that ``load_encoder`` takes."""

CLIP_TEXT: Final = ("clip_text_model", "metaclip_2_text_model")
"""Text towers that are CLIP's, whatever stands beside them: what ``ClipBackbone`` shares and cuts is for these."""

NEEDS_EAGER: Final = ("aimv2",)
"""With sdpa, transformers 5.23 drops their causal mask where no text of a batch is padded; with this it never does."""


class ClipBackbone(DualEncoder):
    """A causal text tower read at the end token, a softmax over the classes.

    A class prompt is ``[BOS][context]<class name>.[EOS]``; nothing after EOS is ever computed, exactly.
    """

    shortcuts = "image features once; begin token and context once for all classes; nothing after a class name"
    context_follows = "the begin token; then comes '<class name>.' and the end token"

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
        return self.frame.end[-1] if self.frame.end else int(self.tokenizer.eos_token_id)


class SiglipBackbone(DualEncoder):
    """SigLIP and SigLIP 2. The head is a sigmoid: ``p(c | x) = sigmoid(tau z_x . T_c + b)``, one decision a class.

    As documented for these models, every text is padded to the model's full length and the padding takes part: all
    tokens attend to all, and the last position, usually padding, is what is read. So every class prompt is computed
    whole, with its padding; neither a shared prefix nor cutting at the longest name would be exact.
    """

    shortcuts = "image features once; one graph over all padded class texts serves a whole batch"
    context_follows = (
        "what the tokenizer begins a text with; then comes '<class name>.', what it ends a text with, and padding up "
        "to the model's positions"
    )
    adapter_obstacle = "its texts are padded to the model's full length, and the padding takes part"

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, fingerprint: str) -> None:
        super().__init__(model, tokenizer, image_processor, fingerprint)
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
        found = self.tokenizer(sentence, padding="max_length", max_length=self.positions, truncation=True)
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
    def _shared_size(self) -> int:
        return int(self._model.config.text_config.projection_size)

    @property
    def _pads_left(self) -> bool:
        return str(self.tokenizer.padding_side) == "left"

    @property
    def _pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)


class EncoderBackbone(DualEncoder):
    """BERT-like towers beside any vision tower, AltCLIP, Chinese CLIP, AIMv2; a softmax over the classes, as CLIP's.

    A class prompt is ``[begin][context]<class name>.[end]``, begin and end as the model's own tokenizer puts them
    around a text. Such towers look both ways or end in ways of their own, so nothing is shared and nothing is cut.
    """

    shortcuts = "image features once; one graph over all class texts serves a whole batch"
    context_follows = "what the tokenizer begins a text with; then comes '<class name>.' and what it ends a text with"
    adapter_obstacle = "its text tower is not CLIP's"

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, fingerprint: str) -> None:
        super().__init__(model, tokenizer, image_processor, fingerprint)
        self.width = int(self.token_embedding.weight.shape[1])  # ALBERT's are narrower than its hidden states
        if hasattr(model, "max_log_logit_scale"):  # AIMv2 bounds it whenever it is used
            self.logit_scale = float(model.logit_scale.clamp(0.0, model.max_log_logit_scale).exp())

    @property
    def token_embedding(self) -> torch.nn.Embedding:
        """The text tower's frozen token embedding, [vocabulary, width]."""
        embedding: torch.nn.Embedding = self._model.text_model.get_input_embeddings()
        return embedding

    def tokens_of(self, suffixes: Sequence[Sequence[int]], num_context: int) -> ClassTokens:
        """Ragged; those of one length go through the tower together."""
        return ClassTokens.build(suffixes, self.frame.word)

    def _make_tower(self, *, coarse: bool) -> TextTower:
        return WholeTextTower(self._model, self.frame.begin, self.frame.word)

    @property
    def positions(self) -> int:
        """How many tokens a text may have: RoBERTa counts its positions from behind the padding's."""
        config, tower = self._model.config.text_config, self._model.text_model
        most = min(int(self.tokenizer.model_max_length), int(getattr(config, "max_position_embeddings", 2**31)))
        for name, module in tower.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
                unused = 0 if module.padding_idx is None else module.padding_idx + 1
                most = min(most, module.num_embeddings - unused)
        return most


def load_clip(folder: Path, dtype: torch.dtype, device: torch.device) -> DualEncoder:
    """The CLIP model of a folder."""
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    def processor(folder: Path) -> Any:
        return CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)

    parts = load_parts(folder, CLIPModel, processor, device, attn_implementation="sdpa", dtype=dtype)
    return _tried(ClipBackbone(*parts, model_fingerprint(folder)))


def load_siglip(folder: Path, dtype: torch.dtype, device: torch.device) -> DualEncoder:
    """The SigLIP or SigLIP 2 model of a folder."""
    from transformers import AutoModel

    parts = load_parts(folder, AutoModel, load_image_processor, device, attn_implementation="sdpa", dtype=dtype)
    return _tried(SiglipBackbone(*parts, model_fingerprint(folder)))


def load_encoder(folder: Path, dtype: torch.dtype, device: torch.device) -> DualEncoder:
    """The dual encoder of a folder; with a CLIP text tower it is served as CLIP is."""
    from transformers import AutoModel

    options = {"attn_implementation": "eager"} if model_type(folder) in NEEDS_EAGER else {}
    parts = load_parts(folder, AutoModel, load_image_processor, device, dtype=dtype, **options)
    clip = str(parts[0].config.text_config.model_type) in CLIP_TEXT
    return _tried((ClipBackbone if clip else EncoderBackbone)(*parts, model_fingerprint(folder)))


def _tried(backbone: DualEncoder) -> DualEncoder:
    refuse_differences(backbone)
    return backbone
