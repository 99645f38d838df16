"""People's words as token ids: what they write never becomes a token that controls the model.

A question, an answer or a class name may spell such a token (``</s>``, ``<image>``). Then it is tokenised as the plain
characters that it is; where a tokenizer cannot do that, it is refused. Words that spell none keep the ids that they
have in running text.
"""

import functools
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dpfpl_common.errors import ModelError

__all__ = ["NEIGHBOUR", "Frame", "Words", "frame_of", "refuse_alike", "repeated_to_the_left"]

NEIGHBOUR = "a"
"""A word that stands for any other, to see how what follows a word is tokenised."""

NEIGHBOURS: Final = (NEIGHBOUR, "photo of", "the", "x")
"""Words to put before a name, until one stays apart from it: joined to the next word it shows nothing."""


@dataclass(frozen=True)
class Frame:
    """What a tokenizer writes around every text.

    Attributes:
        begin: ids before it.
        end: ids behind it.
        word: the id of some ordinary word, to stand where a vector will be put.
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]
    word: int

    def around(self, ids: Iterable[int]) -> list[int]:
        """A whole text's ids."""
        return [*self.begin, *ids, *self.end]


def frame_of(tokenizer: Any) -> Frame:
    """The tokenizer's frame, seen on one word; empty where that word cannot be found in its own text."""
    plain = [int(token) for token in tokenizer(NEIGHBOUR, add_special_tokens=False)["input_ids"]]
    whole = [int(token) for token in tokenizer(NEIGHBOUR)["input_ids"]]
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return Frame(tuple(whole[:start]), tuple(whole[start + len(plain) :]), plain[0])
    return Frame((), (), int(tokenizer.unk_token_id or 0))


def refuse_alike(names: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
    """Refuse names of which two have the same ids: to the model they are one class.

    Raises:
        ModelError: CLASSES_READ_ALIKE.
    """
    seen: dict[tuple[int, ...], str] = {}
    for name, own in zip(names, map(tuple, ids), strict=True):
        if own in seen:
            raise ModelError(
                code="CLASSES_READ_ALIKE",
                message=f"The model reads the class names {seen[own]!r} and {name!r} as the same tokens (its tokenizer "
                "may ignore case, blanks or signs that it does not know), so it can never tell these classes apart.",
                advice="Give the classes names that differ in words, or make them one class.",
            )
        seen[own] = name


class Words:
    """A tokenizer for words of unknown origin.

    Args:
        tokenizer: a Hugging Face tokenizer, fast or slow.
        rows: entries of the model's embedding; ids from there on mean nothing to it.
        more: ids that control the model although the tokenizer does not call them special.

    Attributes:
        control: ids that no words may have. The unknown word's is none of them, unless it is an end or a beginning too;
            no more is an added token that is not called special: such are often words, spaces or line ends.
    """

    def __init__(self, tokenizer: Any, rows: int, more: Iterable[int] = ()) -> None:
        self._tokenizer, self._rows = tokenizer, rows
        self._lock = threading.Lock()  # splitting special tokens or not is a state of fast tokenizers
        special = {int(token) for token in tokenizer.all_special_ids if token is not None}
        special |= {int(token) for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        roles = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
        marks = {getattr(tokenizer, role, None) for role in roles} | set(more)
        if tokenizer.unk_token_id not in marks:
            special.discard(tokenizer.unk_token_id)
        self.control = frozenset(special | set(more))

    def ids(self, text: str) -> list[int]:
        """A text's ids, and nothing around them.

        Raises:
            ModelError: SPECIAL_TOKEN.
        """
        return self.between("", text, "")

    def behind(self, name: str, text: str = "") -> list[int]:
        """Ids of ``<name>.`` as they are behind ``text`` and a blank, in one sentence with it.

        Tokenizers differ in where the blank goes: into the word behind it, into a token of its own, nowhere. So the
        ids are cut from the whole sentence; by themselves they would be those of a text's first word.

        Args:
            name: of a class.
            text: before it; empty: some word, as the ids are the same behind most.

        Raises:
            ModelError: NAME_JOINS_TEXT, the tokenizer makes one token of the text's end and the name's beginning; or
                SPECIAL_TOKEN.
        """
        for before in (text,) if text else NEIGHBOURS:
            start, whole = self.ids(before), self.ids(f"{before} {name}.")
            if start and whole[: len(start)] == start:
                return whole[len(start) :]
        raise ModelError(
            code="NAME_JOINS_TEXT",
            message=f"The model's tokenizer joins the class name {name!r} to the text before it"
            f"{f' ({text!r})' if text else ''}, so no learned vectors can stand there instead.",
            advice="Use another class name or initial text, or a model whose tokenizer keeps words apart.",
        )

    def between(self, before: str, text: str, after: str) -> list[int]:
        """Ids of ``text + after`` as they are where ``before`` stands in front.

        Args:
            before: ours, with the tokens that it spells.
            text: somebody's words.
            after: ours.

        Raises:
            ModelError: SPECIAL_TOKEN, the words spell a token that controls the model, or that it has no vector for,
                and the tokenizer cannot read them as plain text.
        """
        found = self._behind(before, f"{text}{after}")
        if self._controls(found) == self._controls(self._after(before, after)):
            return found
        words = self._behind(before, text, plain=True)
        wrong = self._controls(words)
        if wrong:
            token = self._tokenizer.convert_ids_to_tokens(wrong[0])
            raise ModelError(
                code="SPECIAL_TOKEN",
                message=f"A question, an answer, a name or the initial text spells {token!r}, which this model does "
                "not read as a word: it controls the model, or the model has no vector for it.",
                advice="Write it in other words.",
            )
        return [*words, *self._after(before, after)]

    @functools.lru_cache(maxsize=64)  # noqa: B019  one of these lives as long as its model
    def _after(self, before: str, after: str) -> list[int]:
        return self._behind(f"{before}{NEIGHBOUR}", after) if after else []

    def _behind(self, before: str, text: str, *, plain: bool = False) -> list[int]:
        """As cut from the whole; by themselves where both sides of the joint are one token."""
        whole = self._tokenised(f"{before}{text}", plain)
        start = self._tokenised(before, plain) if before else []
        return whole[len(start) :] if whole[: len(start)] == start else self._tokenised(text, plain)

    def _tokenised(self, text: str, plain: bool) -> list[int]:
        with self._lock:
            found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
        return [int(token) for token in found]

    def _controls(self, ids: Iterable[int]) -> list[int]:
        return [token for token in ids if token in self.control or token >= self._rows]


def repeated_to_the_left(ids: Sequence[int], text: str, num_context: int) -> list[int]:
    """The ids of ``text``, repeated to the left until they fill the context, [num_context]; none for an empty text.

    The text itself always stands whole at the end.

    Raises:
        ModelError: INIT_TEXT_TOO_LONG, the text is longer than the context.
    """
    if len(ids) > num_context:
        raise ModelError(
            code="INIT_TEXT_TOO_LONG",
            message=f"The initial text {text!r} has {len(ids)} tokens, the context only {num_context} vectors.",
            advice="Raise prompt.num_context or shorten prompt.init_text.",
        )
    return [ids[-1 - i % len(ids)] for i in range(num_context)][::-1] if ids else []
