"""How one turn is laid out: ``[head with the picture][context][question and tail][answer][end]``.

The head is the same for every question; only the picture's own rows differ. It comes first, so under a causal mask
nothing in it depends on the context, and what the language model computes for it can be shared and needs no gradient.
"""

import functools
import json
import math
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import torch
from torch import Tensor

from dpfpl_client.learning.generative.families import Family
from dpfpl_common.errors import ModelError

__all__ = ["Layout", "layout_of"]

DAY: Final = datetime(2025, 1, 1)
"""What a chat template that writes today's date is told: a turn must be the same at every site and on every day."""

TODAY: Final = re.compile(r"""strftime_now\(\s*(["'])([^"']*)\1\s*\)""")

MARK = "DPFPLQUESTION"
"""Where the question goes, while a chat template is rendered; no template contains it."""


@dataclass(frozen=True, eq=False)
class Layout:
    """A turn's fixed parts.

    Attributes:
        head: ids [h] before the context, the picture's as placeholders.
        picture: which of them are the picture's, bool [h].
        tail: text between question and answer.
        end: the token that ends an answer; the tokenizer's end token where empty or unknown to it.
    """

    tokenizer: Any
    head: Tensor
    picture: Tensor
    tail: str
    end: str = ""

    @functools.lru_cache(maxsize=4096)  # noqa: B019  one layout lives as long as its model
    def question_ids(self, question: str) -> tuple[int, ...]:
        """Ids from the context to the answer."""
        return tuple(self.tokenizer(f"{question}{self.tail}", add_special_tokens=False)["input_ids"])

    @functools.lru_cache(maxsize=4096)  # noqa: B019
    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """Ids of an answer and the end token."""
        return (*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.end_id)

    @functools.cached_property
    def end_id(self) -> int:
        """The token that ends an answer."""
        known = self.end and self.end in self.tokenizer.get_vocab()
        return int(self.tokenizer.convert_tokens_to_ids(self.end) if known else self.tokenizer.eos_token_id)

    def text_of(self, ids: list[int]) -> str:
        """An answer's text."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def layout_of(family: Family, tokenizer: Any, image_token_id: int, picture_tokens: int) -> Layout:
    """The layout by the model's own chat template, where it has one, else by the family's.

    Raises:
        ModelError: NO_PICTURE_IN_TEMPLATE, the template does not put one picture before the question.
    """
    image = str(tokenizer.convert_ids_to_tokens(image_token_id))
    written = family.written or image
    if getattr(tokenizer, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": MARK}]
        turn = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=_without_today(tokenizer.get_chat_template()),
                add_generation_prompt=True,
                tokenize=False,
            )
        )
    else:
        turn = family.template.format(image=written, text=MARK, bos=tokenizer.bos_token or "")
    head, found, tail = turn.partition(MARK)
    if not found or head.count(written) != 1:
        raise ModelError(
            code="NO_PICTURE_IN_TEMPLATE",
            message=f"The model's chat template does not write one picture ({written}) before the question.",
            advice="Use a model whose chat template accepts one picture and one text, the picture first.",
        )
    before, after = family.around
    head = head.replace(written, f"{before}{_picture(family, image, picture_tokens)}{after}")
    opening = _opening(tokenizer, head) if family.opening else []
    row = torch.tensor([*opening, *tokenizer(head, add_special_tokens=False)["input_ids"]])
    return Layout(tokenizer, row, row == image_token_id, tail, family.end)


def _without_today(template: str) -> str:
    """A chat template that writes one certain day where it would write today's date.

    Raises:
        ModelError: DATED_TEMPLATE, the date's form is computed, so that it cannot be replaced.
    """
    fixed = TODAY.sub(lambda found: json.dumps(DAY.strftime(found[2])), template)
    if "strftime_now(" in fixed:
        raise ModelError(
            code="DATED_TEMPLATE",
            message="The model's chat template writes today's date, so a turn would be another one every day.",
            advice="Use a model whose chat template writes no date.",
        )
    return fixed


def _picture(family: Family, image: str, tokens: int) -> str:
    """A picture's tokens, square, with what ends its rows."""
    if family.row_ends is None:
        return image * tokens
    side = math.isqrt(tokens)
    assert side * side == tokens, "pictures are made square where rows are ended"
    between, last = family.row_ends
    return between.join([image * side] * side) + last


def _opening(tokenizer: Any, head: str) -> list[int]:
    """What the tokenizer puts before every text, unless the template already wrote it."""
    if tokenizer.bos_token and head.startswith(tokenizer.bos_token):
        return []
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole)):
        if whole[start : start + len(plain)] == plain:
            return list(whole[:start])
    return []
