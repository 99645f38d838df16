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
from dpfpl_client.models.files import load_image_processor, load_parts, model_fingerprint, model_type
from dpfpl_client.models.text_tower.choice import TOLERANCES, TextTower
from dpfpl_client.models.text_tower.plain import PlainPass
from dpfpl_client.models.text_tower.shared_prefix import ClassTokens
from dpfpl_common.errors import ModelError

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
        self._begin, self._end, self._filler = _around(tokenizer)
        super().__init__(model, tokenizer, image_processor, fingerprint, int(model.config.projection_dim))
        self.width = int(self.token_embedding.weight.shape[1])  # ALBERT's are narrower than its hidden states
        if hasattr(model, "max_log_logit_scale"):  # AIMv2 bounds it whenever it is used
            self.logit_scale = float(model.logit_scale.clamp(0.0, model.max_log_logit_scale).exp())
        self._try()

    @property
    def token_embedding(self) -> torch.nn.Embedding:
        """The text tower's frozen token embedding, [vocabulary, width]."""
        embedding: torch.nn.Embedding = self._model.text_model.get_input_embeddings()
        return embedding

    def class_tokens(self, class_names: Sequence[str], num_context: int) -> ClassTokens:
        """Token ids of ``<class name>.`` and the end, for every class."""
        suffixes = self._suffixes(class_names, num_context, self._positions() - len(self._begin))
        return ClassTokens.build(suffixes, self._filler)

    def _suffix(self, name: str) -> list[int]:
        """As the name is written in running text: some tokenizers write a text's first word otherwise."""
        before = self._plain_ids("a")
        whole = self._plain_ids(f"a {name}.")
        found = whole[len(before) :] if whole[: len(before)] == before else self._plain_ids(f"{name}.")
        return [*found, *self._end]

    def _make_tower(self, *, coarse: bool) -> TextTower:
        return WholeTextTower(self._model, self._begin, self._filler)

    def _positions(self) -> int:
        """How many tokens a text may have: RoBERTa counts its positions from behind the padding's."""
        config, tower = self._model.config.text_config, self._model.text_model
        most = min(int(self._tokenizer.model_max_length), int(getattr(config, "max_position_embeddings", 2**31)))
        for name, module in tower.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
                unused = 0 if module.padding_idx is None else module.padding_idx + 1
                most = min(most, module.num_embeddings - unused)
        return most

    @torch.no_grad()
    def _try(self) -> None:
        """Refuse a model in which vectors in the words' places do not give what the words give."""
        words = torch.tensor(self._plain_ids("a photo of a"), device=self.device)
        tokens = ClassTokens.build([self._suffix("photo"), self._suffix("a photo")], self._filler).to(self.device)
        try:
            ours = self._tower(self.token_embedding(words), tokens)
            theirs = []
            for row, length in zip(tokens.ids, tokens.lengths.tolist(), strict=True):
                ids = torch.cat([torch.tensor(self._begin, dtype=torch.long).to(row), words, row[:length]])[None]
                theirs.append(self._model.get_text_features(ids, attention_mask=torch.ones_like(ids)).pooler_output)
            expected = torch.cat(theirs)
            difference = float((ours - expected).norm() / expected.norm())
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise _unusable(self._model, f"{type(error).__name__}: {str(error)[:200]}") from None
        if not difference <= TOLERANCES.get(ours.dtype, 0.0):
            raise _unusable(self._model, f"relative difference {difference:.1e}")


def load_encoder(folder: Path, dtype: torch.dtype, device: torch.device) -> DualEncoder:
    """The dual encoder of a folder; with a CLIP text tower it is served as CLIP is."""
    from transformers import AutoModel

    options = {"attn_implementation": "eager"} if model_type(folder) in NEEDS_EAGER else {}
    model, tokenizer, processor = load_parts(folder, AutoModel, load_image_processor, device, dtype=dtype, **options)
    clip = str(model.config.text_config.model_type) in CLIP_TEXT
    return (ClipBackbone if clip else EncoderBackbone)(model, tokenizer, processor, model_fingerprint(folder))


def _around(tokenizer: Any) -> tuple[list[int], list[int], int]:
    """What the tokenizer puts before and behind every text, and a word's id."""
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :], plain[0]
    return [], [], int(tokenizer.unk_token_id or 0)


def _unusable(model: Any, reason: str) -> ModelError:
    tower = f"{model.config.text_config.model_type!r} of this {model.config.model_type!r} model"
    return ModelError(
        code="TEXT_TOWER_UNUSABLE",
        message=f"The text tower {tower} takes no learned context: {reason}.",
        advice="Use a model whose text tower is CLIP's, BERT's or RoBERTa's.",
    )
