"""Lists questions about images, or captions, from JSON lines: ``{"image": ..., "question": ..., "answer": ...}``."""

import difflib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from dpfpl_client.data.decode import DEFAULT_RULES, FileImage, PixelRules
from dpfpl_client.data.folder_names import part_of_row
from dpfpl_client.data.records import DataProblem, Listing, SourceItem, listed, problem_per_name
from dpfpl_client.data.tables import MISSING, FoundImage, find_image, not_opened, unreadable
from dpfpl_common.errors import DataError
from dpfpl_common.experiment import unprintable

__all__ = ["list_questions", "normalised", "same_answer", "word_overlap"]


# When two answers count as the same: normalised exact match; how far two captions agree: their words' overlap.
#
# The match forgets how an answer is written and keeps what it says. It forgets case, Unicode's compatible forms, how
# many spaces there are, and what punctuates or quotes a sentence: full stops, commas, colons, question marks, quotes,
# brackets and dashes around words. It keeps whatever is read aloud or changes a value: letters, digits, symbols
# (``+ = < $ °``) and
#
# - marks that stand for a word (``% # & * @ / §`` and the like): ``50%`` is not ``50``, but ``50 %`` is ``50%``;
# - a single hyphen that touches a word: ``-5``, ``A-``, ``10-``; hyphen, minus sign and en dash are one;
# - the point or comma of a number: ``.5`` is not ``5``;
# - a raised figure or a fraction behind a digit: ``10²`` is ``10^2`` and not ``102``, ``1½`` is ``1 1/2``.
#
# An answer of nothing but punctuation is compared as it is.


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


# One line of a file of questions: what it says, or what is wrong with it.


LONGEST_TEXT: Final = 1000
"""Characters of a question or an answer; longer ones are taken for a mistake."""

NEEDED: Final = ("image", "answer")
TEXTS: Final = ("image", "question", "answer")
KNOWN: Final = (*TEXTS, "split")

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
    return QuestionLine(number, found["image"], question, answer, part_of_row(found.get("split")), ignored)


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
    if found.get("split") and part_of_row(found["split"]) is None:
        return f"its split is {found['split']!r}, expected train, test or validation"
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


_WHAT = "file of questions"


def list_questions(file: Path, rules: PixelRules = DEFAULT_RULES) -> Listing:
    """List the lines whose image exists below the file's own folder.

    Paths are relative to the file. A line without a split has its split drawn by its image, so that all questions about
    one image fall on one side. One example is one line: (image, question, answer), or (image, answer) for a caption.

    Raises:
        DataError: the file is missing, unreadable or in another encoding than UTF-8 (DATA_UNREADABLE), or no line of it
            is usable as it stands (JSONL_FIELDS), which is a mistake of the whole file rather than of a line.
    """
    path = file.expanduser()
    root = path.resolve().parent
    lines: list[QuestionLine] = []
    bad: dict[str, str] = {}
    for number, text in _numbered(path):
        read = read_line(number, text)
        if isinstance(read, str):
            bad[f"line {number}"] = read
        else:
            lines.append(read)
    if bad and not lines:
        raise _nothing_usable(path, *next(iter(bad.items())))
    paths: dict[int, Path] = {}
    named: list[QuestionLine] = []
    missing: dict[str, str] = {}
    outside: dict[str, str] = {}
    for line in lines:
        found = find_image(root, line.image)
        if isinstance(found, FoundImage):
            paths[line.number] = found.path
            named.append(replace(line, image=found.key))
        else:
            (missing if found.kind == MISSING else outside)[_name(line)] = found.reason
    kept, found_twice = _once(named)
    problems: list[DataProblem] = problem_per_name("BAD_LINE", bad, "Correct the line.")
    problems += _ignored(lines)
    problems += problem_per_name("MISSING_IMAGE", missing, "Put the image there, or correct the line.")
    problems += problem_per_name(
        "OUTSIDE_PATH", outside, "Copy the image into the file's folder if it belongs to the data."
    )
    items = [
        SourceItem(key, line.answer, line.split, FileImage(paths[line.number], rules), question=line.question)
        for key, line in _keyed(kept)
    ]
    return Listing(tuple(items), (*problems, *found_twice))


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as text:
            yield from ((number, line) for number, line in enumerate(text, start=1) if line.strip())
    except OSError as error:
        raise not_opened(_WHAT, path, error) from None


def _nothing_usable(path: Path, first: str, reason: str) -> DataError:
    if "UTF-8" in reason:
        return unreadable(_WHAT, path, f"{first}: {reason}", "Save it in UTF-8.")
    return DataError(
        code="JSONL_FIELDS",
        message=f"No line of {str(path)!r} can be used; {first}: {reason}.",
        advice='Every line must be one JSON object such as {"image": "1.png", "question": "...", "answer": "..."}.',
    )


def _ignored(lines: Sequence[QuestionLine]) -> list[DataProblem]:
    """One warning for all fields that nothing reads."""
    names = Counter(name for line in lines for name in line.ignored)
    if not names:
        return []
    named = listed([repr(name[:LONGEST_NAME]) for name, _ in names.most_common()])
    text = f"The fields {named} are ignored. Known are {', '.join(KNOWN)}; correct a misspelt one."
    return [DataProblem("UNKNOWN_FIELDS", text)]


def _keyed(lines: Sequence[QuestionLine]) -> Iterator[tuple[str, QuestionLine]]:
    """Every line with a name of its own: its image, its question, and a number where others are called so too."""
    taken: set[str] = set()
    times: Counter[str] = Counter()
    for line in lines:
        name = key = f"{line.image}: {line.question}" if line.question else line.image
        while key in taken:
            times[name] += 1
            key = f"{name} ({times[name] + 1})"
        taken.add(key)
        yield key, line


def _name(line: QuestionLine) -> str:
    return f"line {line.number}: {line.image}"


def _once(lines: Sequence[QuestionLine]) -> tuple[list[QuestionLine], list[DataProblem]]:
    """Of the lines that say the same on the same side one; of a question with several answers none.

    Captions in other words are examples of their own. What is kept goes on to ``split_items``, which holds it against
    copies of the picture under other names and on the other side. One line more adds or removes at most one line here,
    and one line more there adds or removes at most one example. That is also why two spellings of one answer count as
    two answers: to keep either of them would let one line put an example in another one's place.
    """
    same: defaultdict[tuple[str, str, str, str], list[QuestionLine]] = defaultdict(list)
    for line in lines:
        same[line.image, line.question, "" if line.question else line.answer, line.split or ""].append(line)
    kept: list[QuestionLine] = []
    repeated: dict[str, str] = {}
    contradictory: dict[str, str] = {}
    for group in same.values():
        if len({line.answer for line in group}) > 1:
            one = len({normalised(line.answer) for line in group}) == 1
            reason = f"the same question about it is answered {'in another spelling' if one else 'otherwise'} elsewhere"
            contradictory |= {_name(line): reason for line in group}
            continue
        kept.append(group[0])
        repeated |= {_name(line): f"line {group[0].number} says the same" for line in group[1:]}
    problems = problem_per_name("DUPLICATE_QUESTION", repeated, "It counts once; remove the line.")
    problems += problem_per_name(
        "CONFLICTING_ANSWERS", contradictory, "None of these lines counts; keep the one whose answer is right."
    )
    return kept, problems
