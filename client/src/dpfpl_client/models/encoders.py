"""Dual encoders with any text encoder: BERT-like towers beside any vision tower, AltCLIP, Chinese CLIP, AIMv2.

A class prompt is ``[begin][context]<class name>.[end]``, begin and end as the model's own tokenizer puts them around a
text. Such towers look both ways or end in ways of their own, so nothing is shared between classes and nothing is cut:
every prompt goes whole through the model's own forward, those of one length together and therefore without padding. One
graph serves all examples of a batch. A trial at loading shows that the context stands for words, exactly.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from dpfpl_client.models.clip import ClipBackbone
from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_client.models.files import load_image_processor, load_parts, model_fingerprint
from dpfpl_client.models.folder import model_type
from dpfpl_client.models.text_tower.choice import TextTower
from dpfpl_client.models.text_tower.plain import PlainPass
from dpfpl_client.models.text_tower.states import ClassTokens
from dpfpl_client.models.trial import refuse_differences

__all__ = ["ENCODER_FAMILIES", "EncoderBackbone", "WholeTextTower", "load_encoder"]

ENCODER_FAMILIES: Final = ("vision-text-dual-encoder", "altclip", "chinese_clip", "aimv2", "metaclip_2")
"""Model types that ``load_encoder`` takes."""

CLIP_TEXT: Final = ("clip_text_model", "metaclip_2_text_model")
"""Text towers that are CLIP's, whatever stands beside them: what ``ClipBackbone`` shares and cuts is for these."""

NEEDS_EAGER: Final = ("aimv2",)
"""With sdpa, transformers 5.23 drops their causal mask where no text of a batch is padded; with this it never does."""


class WholeTextTower:
    """Text features of whole class prompts through the model's own ``get_text_features``.

    Args:
        model: a loaded dual encoder.
        begin: ids before the context.
        filler: the id that stands in the context's places until its vectors are put there; no padding.
    """

    def __init__(self, model: Any, begin: Sequence[int], filler: int) -> None:
        self._model, self._begin, self._filler = model, tuple(begin), filler

    def __call__(self, context: Tensor, tokens: ClassTokens) -> Tensor:
        """Features [classes, feature size], not normalised, of a context [m, d]; differentiable in it."""
        lengths = tokens.lengths.tolist()
        rows: dict[int, Tensor] = {}
        for length in sorted(set(lengths)):
            members = [place for place, each in enumerate(lengths) if each == length]
            rows |= zip(members, self._features(context, tokens.ids[members, :length]), strict=True)
        return torch.stack([rows[place] for place in range(len(lengths))])

    def run(self, context: Tensor, tokens: ClassTokens, *, singly: bool = False) -> PlainPass:
        """A forward pass that can be pulled back; ``singly`` means nothing here."""
        with torch.enable_grad():
            leaf = context.detach().requires_grad_(True)
            return PlainPass(leaf, self(leaf, tokens))

    def _features(self, context: Tensor, suffixes: Tensor) -> Tensor:
        """[n, feature size] for suffixes [n, length] of one length."""
        start, m, count = len(self._begin), len(context), len(suffixes)
        begin = torch.tensor([*self._begin, *[self._filler] * m], dtype=torch.long).expand(count, -1).to(suffixes)
        ids = torch.cat([begin, suffixes], dim=1)

        def put_in(module: Any, given: Any, embedded: Tensor) -> Tensor:
            return torch.cat([embedded[:, :start], context.expand(count, -1, -1), embedded[:, start + m :]], dim=1)

        handle = self._model.text_model.get_input_embeddings().register_forward_hook(put_in)
        try:
            # The mask of ones is not idle: AIMv2 looks ahead where it is given none.
            features: Tensor = self._model.get_text_features(
                input_ids=ids, attention_mask=torch.ones_like(ids)
            ).pooler_output
        finally:
            handle.remove()
        return features


class EncoderBackbone(DualEncoder):
    """A softmax over the classes, as CLIP's; the text tower is whatever encoder the model has."""

    shortcuts = "image features once; one graph over all class texts serves a whole batch"
    context_follows = "what the tokenizer begins a text with; then comes '<class name>.' and what it ends a text with"
    adapter_obstacle = "its text tower is not CLIP's"

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, fingerprint: str) -> None:
        super().__init__(model, tokenizer, image_processor, fingerprint, int(model.config.projection_dim))
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
        most = min(int(self._tokenizer.model_max_length), int(getattr(config, "max_position_embeddings", 2**31)))
        for name, module in tower.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
                unused = 0 if module.padding_idx is None else module.padding_idx + 1
                most = min(most, module.num_embeddings - unused)
        return most


def load_encoder(folder: Path, dtype: torch.dtype, device: torch.device) -> DualEncoder:
    """The dual encoder of a folder; with a CLIP text tower it is served as CLIP is."""
    from transformers import AutoModel

    options = {"attn_implementation": "eager"} if model_type(folder) in NEEDS_EAGER else {}
    model, tokenizer, processor = load_parts(folder, AutoModel, load_image_processor, device, dtype=dtype, **options)
    clip = str(model.config.text_config.model_type) in CLIP_TEXT
    kind = ClipBackbone if clip else EncoderBackbone
    backbone: DualEncoder = kind(model, tokenizer, processor, model_fingerprint(folder))
    refuse_differences(backbone)
    return backbone
