"""A trial of a loaded model: a few sentences and a picture, through plain transformers and through ours.

Ours puts vectors where a sentence's first words stood, shares what all classes have in common, and cuts what is never
read. Whether that is still the model's own function depends on its tokenizer and its towers, and is not to be believed
of a name: a model whose features differ is refused, with the difference.
"""

import math
from typing import TYPE_CHECKING, Final

import torch
from PIL import Image
from torch import Tensor

from dpfpl_client.models.text_tower.choice import TOLERANCES
from dpfpl_client.models.text_tower.states import ClassTokens
from dpfpl_common.errors import ModelError
from dpfpl_common.ops.text import first_line

if TYPE_CHECKING:
    from dpfpl_client.models.dual_encoder import DualEncoder

__all__ = ["refuse_differences"]

SENTENCES: Final = (
    ("a photo of a", ("cat", "golden retriever")),
    ("an X-ray of", ("Pneumonia (left)", "no finding")),
    ("ein Bild", ("Schäfer", "犬 2")),
)
"""Texts, and names that stand behind them."""

DRAWN: Final = 4
"""So many sentences of random tokens."""

PICTURES: Final = ((64, 48), (48, 64))
"""Sizes of two pictures, width and height, none of them square."""

FOREIGN: Final = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What towers and processors raise over what they were not made for."""


@torch.no_grad()
def refuse_differences(backbone: "DualEncoder") -> None:
    """Refuse a model whose features are not those of plain transformers, or are no numbers.

    Raises:
        ModelError: TEXT_TOWER_UNUSABLE, TOKENIZER_UNUSABLE, PREPROCESSOR_MISMATCH, WEIGHTS_NOT_FINITE.
    """
    if not (math.isfinite(backbone.logit_scale) and backbone.logit_scale > 0):
        raise ModelError(
            code="WEIGHTS_NOT_FINITE",
            message=f"The model's logit_scale gives a temperature of {backbone.logit_scale}.",
            advice="The checkpoint is damaged: download or export it again.",
        )
    try:
        tower = _difference_on_tokens(backbone)
        words = _difference_on_sentences(backbone)
    except FOREIGN as error:
        raise _tower(backbone, f"{type(error).__name__}: {str(error)[:200]}") from None
    tolerance = TOLERANCES.get(backbone.token_embedding.weight.dtype, 0.0)
    if not tower <= tolerance:
        raise _tower(backbone, f"relative difference {tower:.1e} to plain transformers")
    if not words <= tolerance:
        raise _tokenizer(
            f"has sentences laid out otherwise than the model's prompts: relative difference {words:.1e} to plain "
            "transformers"
        )
    _try_pictures(backbone)


def _difference_on_tokens(backbone: "DualEncoder") -> float:
    """Largest relative difference on sentences of tokens drawn from the whole vocabulary, its last one among them."""
    frame, rows = backbone.frame, len(backbone.token_embedding.weight)
    usable = [token for token in range(rows) if token not in backbone.words.control]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(usable), (DRAWN, 3), generator=generator).tolist()
    room = backbone.positions - len(frame.around([]))
    start = [frame.word] * max(1, min(4, room - 3))
    names = [[usable[place] for place in row[: min(room - len(start), 1 + n % 3)]] for n, row in enumerate(drawn)]
    names[0][:1] = usable[-1:]
    expected = backbone.plain_features([frame.around([*start, *name]) for name in names])
    tokens = backbone.tokens_of([[*name, *frame.end] for name in names], len(start))
    return _difference(backbone, start, tokens, expected)


def _difference_on_sentences(backbone: "DualEncoder") -> float:
    """The same on whole sentences, as the tokenizer writes them; 0 where none fits the model's positions.

    Raises:
        ModelError: TOKENIZER_UNUSABLE, every word is unknown; NAME_JOINS_TEXT, no name stands apart from what is before
            it.
    """
    difference, tried, reasons = 0.0, 0, []
    for text, names in SENTENCES:
        try:
            start = backbone.words.ids(text)
            tokens = backbone.class_tokens(names, len(start), text)
        except ModelError as error:
            reasons.append(error)
            continue
        if set(start) <= {backbone.tokenizer.unk_token_id}:
            reasons.append(_tokenizer("knows no word"))
            continue
        rows = [backbone.tokenized(f"{text} {name}.") for name in names]
        difference = max(difference, _difference(backbone, start, tokens, backbone.plain_features(rows)))
        tried += 1
    unusable = [error for error in reasons if error.code != "PROMPT_TOO_LONG"]
    if not tried and unusable:
        joins = unusable[0].code == "NAME_JOINS_TEXT"
        raise unusable[0] if joins else _tokenizer("knows no word of plain sentences")
    return difference


def _difference(backbone: "DualEncoder", start: list[int], tokens: ClassTokens, expected: Tensor) -> float:
    context = backbone.token_embedding(torch.tensor(start, dtype=torch.long, device=backbone.device))
    ours = backbone.text_features(context, tokens.to(backbone.device))
    unit = torch.nn.functional.normalize(expected.to(ours), dim=-1)
    found = float((ours - unit).norm(dim=-1).max())
    some = bool((expected.norm(dim=-1) > 0).all())  # rows of zeros are equal, and say nothing
    return found if found == found and some else math.inf


def _try_pictures(backbone: "DualEncoder") -> None:
    """Two pictures of different proportions: the processor makes one size of them, and the tower takes that."""
    pictures = [Image.new("RGB", size, (90, 120, 150)) for size in PICTURES]
    try:
        pixels = backbone.prepared(pictures)
        if all(_fits(value, backbone.picture_size) for value in pixels.values()):
            return
        rows = list(backbone.image_features(pictures))
        reason = "" if all(bool(torch.isfinite(row).all()) for row in rows) else "features are not finite numbers"
    except FOREIGN as error:
        reason = first_line(error).rstrip(".")
    if reason:
        size = f" of {backbone.picture_size} pixels" if backbone.picture_size else ""
        raise ModelError(
            code="PREPROCESSOR_MISMATCH",
            message=f"preprocessor_config.json does not make pictures as the model's image tower{size} takes them: "
            f"{reason}.",
            advice="Take the preprocessor_config.json that belongs to the model, or set its size and crop_size to the "
            "image_size of config.json.",
        )


def _fits(value: Tensor, edge: int | None) -> bool:
    """Whether pixels [n, 3, edge, edge] are finite and of the tower's size; then the tower need not be asked."""
    if not value.is_floating_point():
        return True
    return edge is not None and value.ndim == 4 and value.shape[-2:] == (edge, edge) and bool(value.isfinite().all())


def _tower(backbone: "DualEncoder", reason: str) -> ModelError:
    return ModelError(
        code="TEXT_TOWER_UNUSABLE",
        message=f"The text tower {backbone.text_tower!r} of this {backbone.family!r} model takes no learned context: "
        f"{reason}.",
        advice="Use a model whose text tower is CLIP's, SigLIP's, BERT's or RoBERTa's, with the tokenizer made for it.",
    )


def _tokenizer(reason: str) -> ModelError:
    return ModelError(
        code="TOKENIZER_UNUSABLE",
        message=f"The model's tokenizer {reason}.",
        advice="Use the tokenizer that belongs to the model; all its files are needed.",
    )
