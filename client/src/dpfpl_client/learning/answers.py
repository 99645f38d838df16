"""When two answers count as the same: normalised exact match; how far two captions agree: their words' overlap.

The match forgets how an answer is written and keeps what it says. It forgets case, Unicode's compatible forms, how
many spaces there are, and what punctuates or quotes a sentence: full stops, commas, colons, question marks, quotes,
brackets and dashes around words. It keeps whatever is read aloud or changes a value: letters, digits, symbols
(``+ = < $ °``) and

- marks that stand for a word (``% # & * @ / §`` and the like): ``50%`` is not ``50``, but ``50 %`` is ``50%``;
- a single hyphen that touches a word: ``-5``, ``A-``, ``10-``; hyphen, minus sign and en dash are one;
- the point or comma of a number: ``.5`` is not ``5``;
- a raised figure or a fraction behind a digit: ``10²`` is ``10^2`` and not ``102``, ``1½`` is ``1 1/2``.

An answer of nothing but punctuation is compared as it is.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Final

__all__ = ["normalised", "same_answer", "word_overlap"]

WORDLIKE: Final = frozenset("%‰‱٪؉؊#&*@/\\§¶†‡′")
"""What Unicode calls punctuation and a reader says aloud."""

SAME_SIGN: Final = str.maketrans(dict.fromkeys("\u2010\u2012\u2013\u2212", "-") | {"\u2044": "/"})
"""Hyphen, figure dash, en dash and minus sign are typed for each other; a fraction has a slash of its own."""

SPACE_BEFORE_UNIT: Final = re.compile(r"(?<=\d)\s+(?=[%‰٪°′])")
SIGN_BEFORE: Final = re.compile(r"(?<!-)-$")
SIGN_BEFORE_DIGIT: Final = re.compile(r"(?:(?<!-)-)?(?:(?<![.,])[.,])?$")
SIGN_BEHIND: Final = re.compile(r"-(?!-)")


def normalised(answer: str) -> str:
    """An answer in the form that is compared; see above."""
    plain = SPACE_BEFORE_UNIT.sub("", _compatible(answer).translate(SAME_SIGN).casefold())
    words = plain.split()
    return " ".join(bare for word in words if (bare := _bare(word))) or " ".join(words)


def same_answer(given: str, expected: str) -> bool:
    """Whether both are the same after normalising."""
    return normalised(given) == normalised(expected)


def word_overlap(given: str, expected: str) -> float:
    """F1 of the words, from 0 to 1: twice the words in common, with repetitions, over all words of both.

    1 exactly where both have the same words, in whatever order; 0 where one has none. Words are what spaces separate,
    in Unicode's compatible form, without case and, unlike those of answers, without any punctuation around them. So for
    writing without spaces it is 1 or 0.
    """
    mine, theirs = (Counter(_plain_words(text)) for text in (given, expected))
    common = (mine & theirs).total()
    return 2 * common / (mine.total() + theirs.total()) if common else 0.0


def _compatible(text: str) -> str:
    """Unicode's compatible form, in which figures raised or made a fraction do not grow onto the number before them."""
    pieces: list[str] = []
    before = ""
    for char in text:
        kind = unicodedata.decomposition(char).partition(" ")[0]
        if before.isdecimal() and kind == "<super>" and not unicodedata.normalize("NFKC", char).isalpha():
            pieces.append("^")
        elif before.isdecimal() and kind == "<fraction>":
            pieces.append(" ")
        pieces.append(char)
        before = char
    return unicodedata.normalize("NFKC", "".join(pieces))


def _bare(word: str) -> str:
    """A word without what punctuates it, but with its sign; empty if it is nothing else."""
    start, end = _within(word, lambda char: _is_punctuation(char) and char not in WORDLIKE)
    if start == end:
        return ""
    sign = (SIGN_BEFORE_DIGIT if word[start].isdecimal() else SIGN_BEFORE).search(word[:start])
    behind = SIGN_BEHIND.match(word[end:])
    return f"{sign.group() if sign else ''}{word[start:end]}{behind.group() if behind else ''}"


def _plain_words(text: str) -> list[str]:
    words = unicodedata.normalize("NFKC", text).casefold().split()
    ends = ((word, _within(word, _is_punctuation)) for word in words)
    return [word[start:end] for word, (start, end) in ends if start < end]


def _is_punctuation(char: str) -> bool:
    return unicodedata.category(char)[0] == "P"


def _within(word: str, dropped: Callable[[str], bool]) -> tuple[int, int]:
    """Where the word begins and ends without what is dropped at both its ends."""
    start, end = 0, len(word)
    while start < end and dropped(word[start]):
        start += 1
    while end > start and dropped(word[end - 1]):
        end -= 1
    return start, end
