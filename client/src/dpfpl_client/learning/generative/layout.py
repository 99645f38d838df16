"""How one turn is laid out: ``[head with the picture][context][question and tail][answer][end]``.

The head is the same for every question; only the picture's own rows differ. It comes first, so under a causal mask
nothing in it depends on the context, and what the language model computes for it can be shared and needs no gradient.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpfpl_client.learning.generative.families import Family
from dpfpl_common.errors import ModelError

__all__ = ["Layout", "layout_of"]

MARK = "DPFPLQUESTION"
"""Where the question goes, while a chat template is rendered; no template contains it."""


@dataclass(frozen=True, eq=False)
class Layout:
    """A turn's fixed parts.

    Attributes:
        head: ids [h] before the context, the picture's as placeholders.
        picture: which of them are the picture's, bool [h].
        tail: text between question and answer.
    """

    tokenizer: Any
    head: Tensor
    picture: Tensor
    tail: str

    @functools.lru_cache(maxsize=4096)  # noqa: B019  one layout lives as long as its model
    def question_ids(self, question: str) -> tuple[int, ...]:
        """Ids from the context to the answer."""
        return tuple(self.tokenizer(f"{question}{self.tail}", add_special_tokens=False)["input_ids"])

    @functools.lru_cache(maxsize=4096)  # noqa: B019
    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """Ids of an answer and the end token."""
        return (*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.end_id)

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        return int(self.tokenizer.eos_token_id)

    def text_of(self, ids: list[int]) -> str:
        """An answer's text."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def layout_of(family: Family, tokenizer: Any, image_token_id: int, picture_tokens: int) -> Layout:
    """The layout by the model's own chat template, where it has one, else by the family's.

    Raises:
        ModelError: NO_PICTURE_IN_TEMPLATE, the template does not put one picture before the question.
    """
    image = str(tokenizer.convert_ids_to_tokens(image_token_id))
    if getattr(tokenizer, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": MARK}]
        turn = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        )
    else:
        turn = family.template.format(image=image, text=MARK)
    head, found, tail = turn.partition(MARK)
    if not found or head.count(image) != 1:
        raise ModelError(
            code="NO_PICTURE_IN_TEMPLATE",
            message=f"The model's chat template does not write one picture ({image}) before the question.",
            advice="Use a model whose chat template accepts one picture and one text, the picture first.",
        )
    head = head.replace(image, family.around[0] + image * picture_tokens + family.around[1])
    ids = [*_opening(tokenizer, head), *tokenizer(head, add_special_tokens=False)["input_ids"]]
    row = torch.tensor(ids)
    return Layout(tokenizer, row, row == image_token_id, tail)


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
