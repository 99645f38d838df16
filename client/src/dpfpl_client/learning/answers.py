"""When two answers count as the same: normalised exact match; how far two captions agree: their words' overlap."""

import unicodedata
from collections import Counter

__all__ = ["normalised", "same_answer", "word_overlap"]


def normalised(answer: str) -> str:
    """Compatible Unicode form, no case, no punctuation around words, single spaces."""
    plain = unicodedata.normalize("NFKC", answer).casefold()
    words = (_stripped(word) for word in plain.split())
    return " ".join(word for word in words if word)


def same_answer(given: str, expected: str) -> bool:
    """Whether both are the same after normalising; an answer of nothing but punctuation never matches."""
    return bool(normalised(expected)) and normalised(given) == normalised(expected)


def word_overlap(given: str, expected: str) -> float:
    """F1 of the normalised words, from 0 to 1: twice the words in common, with repetitions, over all words of both.

    1 exactly where both have the same words, in whatever order; 0 where one has none. Words are what spaces separate,
    so for writing without spaces it is the exact match.
    """
    mine, theirs = (Counter(normalised(text).split()) for text in (given, expected))
    common = (mine & theirs).total()
    return 2 * common / (mine.total() + theirs.total()) if common else 0.0


def _stripped(word: str) -> str:
    start, end = 0, len(word)
    while start < end and unicodedata.category(word[start])[0] == "P":
        start += 1
    while end > start and unicodedata.category(word[end - 1])[0] == "P":
        end -= 1
    return word[start:end]
