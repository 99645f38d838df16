"""When two answers count as the same: normalised exact match."""

import unicodedata

__all__ = ["normalised", "same_answer"]


def normalised(answer: str) -> str:
    """Compatible Unicode form, no case, no punctuation around words, single spaces."""
    plain = unicodedata.normalize("NFKC", answer).casefold()
    words = (_stripped(word) for word in plain.split())
    return " ".join(word for word in words if word)


def same_answer(given: str, expected: str) -> bool:
    """Whether both are the same after normalising; an answer of nothing but punctuation never matches."""
    return bool(normalised(expected)) and normalised(given) == normalised(expected)


def _stripped(word: str) -> str:
    start, end = 0, len(word)
    while start < end and unicodedata.category(word[start])[0] == "P":
        start += 1
    while end > start and unicodedata.category(word[end - 1])[0] == "P":
        end -= 1
    return word[start:end]
