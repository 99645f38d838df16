"""One line of a file of questions: what it says, or what is wrong with it."""

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dpfpl_common.task_settings import unprintable

__all__ = ["KNOWN", "LONGEST_NAME", "LONGEST_TEXT", "QuestionLine", "read_line"]

LONGEST_TEXT: Final = 1000
"""Characters of a question or an answer; longer ones are taken for a mistake."""

NEEDED: Final = ("image", "answer")
TEXTS: Final = ("image", "question", "answer")
KNOWN: Final = (*TEXTS, "split")
SPLITS: Final = ("train", "test")

OTHER_NAMES: Final = {
    "question": ("q", "query", "prompt", "instruction", "problem", "input", "text"),
    "split": ("set", "subset", "fold", "partition"),
}
"""What other collections call a field; a line that has one of these instead is not taken to have none."""

LONGEST_NAME: Final = 40
"""So much of a field's name is repeated in a message."""

ALIKE: Final = 0.8
"""From which difflib ratio on a name is a known one, misspelt."""


@dataclass(frozen=True)
class QuestionLine:
    """Attributes: the line's ``number`` in the file; its fields, the question empty for a caption; ``ignored`` ones."""

    number: int
    image: str
    question: str
    answer: str
    split: str | None
    ignored: tuple[str, ...] = ()


class _TwiceError(ValueError):
    """A JSON object names a field twice."""


def read_line(number: int, text: str) -> QuestionLine | str:
    """The line, or what is wrong with it.

    Fields of other names are ignored, unless one looks like a known field that the line does not have: a misspelt
    question would make a caption of it.

    Args:
        number: of the line.
        text: bytes that are no UTF-8 as ``surrogateescape`` leaves them.
    """
    strange = next((char for char in text if "\udc80" <= char <= "\udcff"), "")
    if strange:
        return f"it is not UTF-8 text (byte {ord(strange) - 0xDC00:#04x})"
    try:
        found: Any = json.loads(text, object_pairs_hook=_each_once)
    except _TwiceError as error:
        return str(error)
    except (ValueError, RecursionError):
        return "it is not JSON"
    if not isinstance(found, dict):
        return "it is no JSON object"
    wrong = _wrong(found)
    if wrong:
        return wrong
    question, answer = (" ".join((found.get(name) or "").split()) for name in ("question", "answer"))
    ignored = tuple(name for name in found if name not in KNOWN)
    return QuestionLine(number, found["image"], question, answer, found.get("split") or None, ignored)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = Counter(name for name, _ in pairs)
    repeated = [name for name, times in names.items() if times > 1]
    if repeated:
        raise _TwiceError(f"it has the field {repeated[0][:LONGEST_NAME]!r} twice")
    return dict(pairs)


def _wrong(found: Mapping[str, Any]) -> str:
    """What is wrong with the fields; empty if nothing is."""
    others = [name for name in found if name not in KNOWN]
    for name in KNOWN:
        if found.get(name) is None:
            meant = _meant(name, others)
            if meant or name in NEEDED:
                return f"it has no field {name!r}" + (f", but {meant[:LONGEST_NAME]!r}" if meant else "")
    for name in TEXTS:
        value = found.get(name)
        wrong = "" if value is None else _wrong_text(value)
        if wrong:
            return f"its {name} {wrong}"
    if found.get("split") not in (None, "", *SPLITS):
        return f"its split is {found['split']!r}, expected train or test"
    return ""


def _meant(name: str, others: Iterable[str]) -> str:
    """A field that may be ``name`` under another one; empty if there is none."""
    for other in others:
        plain = other.strip().casefold()
        if plain in OTHER_NAMES.get(name, ()) or difflib.SequenceMatcher(None, plain, name).ratio() >= ALIKE:
            return other
    return ""


def _wrong_text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        return "is no text"
    if len(value) > LONGEST_TEXT:
        return f"is longer than {LONGEST_TEXT} characters"
    strange = unprintable(" ".join(value.split()))
    return f"has the unprintable character U+{ord(strange):04X}" if strange else ""
