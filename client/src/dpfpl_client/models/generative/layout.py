"""How one turn is laid out: ``[head with the picture][context][question and tail][answer][end]``.

The head is the same for every question; only the picture's own rows differ. It comes first, so under a causal mask
nothing in it depends on the context, and what the language model computes for it can be shared and needs no gradient.
Question and answer have the ids that they have in the whole turn: how a word is tokenised depends on what stands before
it.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpfpl_client.models.generative.template import Family, written_turn
from dpfpl_client.models.words import NEIGHBOUR, Words, frame_of
from dpfpl_common.errors import ModelError

__all__ = ["Ends", "Layout", "layout_of"]


@dataclass(frozen=True)
class Ends:
    """What the model's generation_config.json says about the end of an answer.

    Attributes:
        ids: the tokens at which transformers stops.
        derived: they stand in no file of their own, but were made of the model's configuration.
    """

    ids: tuple[int, ...] = ()
    derived: bool = True


@dataclass(frozen=True, eq=False)
class Layout:
    """A turn's fixed parts.

    Attributes:
        head: ids [h] before the context, the picture's as placeholders.
        picture: which of them are the picture's, bool [h].
        words: how questions and answers are read.
        before: the head's text from the last of the picture's tokens on; how a question is tokenised depends on it.
        lead: space between head and question, where the tokenizer makes one token of it and a question's first word.
        tail: text between question and answer.
        gap: text between tail and answer that belongs to the answer, because the model speaks it.
        ends: ids that end an answer; the first is the one that is learned.
    """

    tokenizer: Any
    head: Tensor
    picture: Tensor
    words: Words
    before: str
    lead: str
    tail: str
    gap: str
    ends: tuple[int, ...]

    @functools.lru_cache(maxsize=4096)  # noqa: B019  one layout lives as long as its model
    def question_ids(self, question: str) -> tuple[int, ...]:
        """Ids from the context to the answer.

        Raises:
            ModelError: SPECIAL_TOKEN.
        """
        return tuple(self.words.between(self.before, f"{self.lead}{question}", self.tail))

    @functools.lru_cache(maxsize=4096)  # noqa: B019
    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """Ids of an answer and the end token.

        Raises:
            ModelError: SPECIAL_TOKEN.
        """
        if not answer:
            return (self.end_id,)
        asked = f"{self.before}{self.lead}{NEIGHBOUR}{self.tail}"
        return (*self.words.between(asked, f"{self.gap}{answer}", ""), self.end_id)

    @property
    def end_id(self) -> int:
        """The token that ends a learned answer."""
        return self.ends[0]

    def text_of(self, ids: list[int]) -> str:
        """An answer's text."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def layout_of(
    family: Family,
    tokenizer: Any,
    image_token_id: int,
    picture_tokens: int,
    *,
    rows: int | None = None,
    template: str | None = None,
    ends: Ends | None = None,
) -> Layout:
    """The layout by the model's own chat template, where it has one, else by the family's.

    Args:
        family: of the model.
        tokenizer: the model's own.
        image_token_id: the placeholder of a picture's token.
        picture_tokens: how many a picture has.
        rows: entries of the model's embedding; None: as many as the tokenizer has.
        template: the processor's chat template; None where it has none.
        ends: what generation_config.json says.

    Raises:
        ModelError: as ``written_turn``; or VOCABULARY_TOO_SMALL, the turn has tokens that the model has no vectors for.
    """
    rows, image = len(tokenizer) if rows is None else rows, str(tokenizer.convert_ids_to_tokens(image_token_id))
    written = family.written or image
    turn = written_turn(family, tokenizer, written, template)
    ending = _ending(family, tokenizer, turn.close, ends or Ends(), rows)
    words = Words(tokenizer, rows, {image_token_id, *ending})
    first, last = family.around
    head = turn.head.replace(written, f"{first}{_picture(family, image, picture_tokens)}{last}")
    head, lead = _joint(tokenizer, head)
    written_already = bool(tokenizer.bos_token) and head.startswith(tokenizer.bos_token)
    opening = frame_of(tokenizer).begin if family.opening and not written_already else ()
    row = torch.tensor([*opening, *_ids(tokenizer, head)])
    picture, before = row == image_token_id, head[head.rfind(image) :]
    layout = Layout(tokenizer, row, picture, words, before, lead, turn.tail, turn.gap, ending)
    outside = [token for token in (*row[~picture].tolist(), *layout.question_ids(NEIGHBOUR), *ending) if token >= rows]
    if outside:
        token = tokenizer.convert_ids_to_tokens(outside[0])
        raise ModelError(
            code="VOCABULARY_TOO_SMALL",
            message=f"The model has no vector for {token!r}, which every turn has.",
            advice="Use the tokenizer that belongs to the model.",
        )
    return layout


def _ending(family: Family, tokenizer: Any, close: str, said: Ends, rows: int) -> tuple[int, ...]:
    """Ids at which an answer ends, first the one to learn.

    The model stops where generation_config.json says. Where that file is missing, transformers derives the ids from the
    model's configuration, which may only hold its class's defaults: then they count only if they are special tokens.
    """
    special = set(tokenizer.all_special_ids)
    ends = [token for token in said.ids if token < rows and (not said.derived or token in special)]
    own = tokenizer.get_vocab().get(family.end) if family.end else None
    if own is not None and said.derived:
        ends.append(own)
    if not ends:
        ends.append(int(tokenizer.eos_token_id))
    written = _ids(tokenizer, close.strip())[:1]
    preferred = [token for token in (*written, own, tokenizer.eos_token_id) if token in ends]
    return tuple(dict.fromkeys([*preferred[:1], *ends]))


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Of a text of ours."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _joint(tokenizer: Any, head: str) -> tuple[str, str]:
    """The head, and space at its end that rather belongs to the question's first word."""
    ids, shorter = _ids(tokenizer, head), head.rstrip(" ")
    apart = _ids(tokenizer, f"{head}{NEIGHBOUR}")[: len(ids)] == ids
    return (head, "") if apart else (shorter, head[len(shorter) :])


def _picture(family: Family, image: str, tokens: int) -> str:
    """A picture's tokens, square, with what ends its rows."""
    if family.row_ends is None:
        return image * tokens
    side = math.isqrt(tokens)
    assert side * side == tokens, "pictures are made square where rows are ended"
    between, last = family.row_ends
    return between.join([image * side] * side) + last
