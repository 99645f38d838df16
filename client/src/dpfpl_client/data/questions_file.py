"""Lists questions about images, or captions, from JSON lines: ``{"image": ..., "question": ..., "answer": ...}``."""

import json
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpfpl_client.data.decode import FileImage
from dpfpl_client.data.folder import inside
from dpfpl_client.data.listing import Listing, SourceItem
from dpfpl_client.data.records import DataProblem, problem_per_name
from dpfpl_common.errors import DataError

__all__ = ["LONGEST_TEXT", "list_questions"]

LONGEST_TEXT = 1000
"""Characters of a question or an answer; longer ones are taken for a mistake."""

NEEDED = ("image", "answer")
TEXTS = ("image", "question", "answer")
KNOWN = (*TEXTS, "split")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class _Line:
    number: int
    image: str
    question: str
    answer: str
    split: str | None

    @property
    def key(self) -> str:
        return f"{self.image}: {self.question}" if self.question else self.image


def list_questions(file: Path) -> Listing:
    """List the lines whose image exists below the file's own folder.

    Paths are relative to the file. A line without a split has its split drawn by its image, so that all questions about
    one image fall on one side. One example is one line: (image, question, answer), or (image, answer) for a caption.

    Raises:
        DataError: the file is missing or unreadable (DATA_UNREADABLE), or no line of it is usable as it stands
            (JSONL_FIELDS), which is a mistake of the whole file rather than of a line.
    """
    path = file.expanduser()
    root = path.resolve().parent
    lines: list[_Line] = []
    bad: dict[str, str] = {}
    for number, text in _numbered(path):
        parsed = _parsed(number, text)
        if isinstance(parsed, str):
            bad[f"line {number}"] = parsed
        else:
            lines.append(parsed)
    if bad and not lines:
        first, reason = next(iter(bad.items()))
        raise DataError(
            code="JSONL_FIELDS",
            message=f"No line of {str(file)!r} can be used; {first}: {reason}.",
            advice='Every line must be one JSON object such as {"image": "1.png", "question": "...", "answer": "..."}.',
        )
    missing, outside = _without_a_file(root, lines)
    kept, repeated, contradictory = _once([line for line in lines if line.number not in missing | outside])
    problems: list[DataProblem] = problem_per_name("BAD_LINE", bad, "Correct the line.")
    problems += problem_per_name("MISSING_IMAGE", _named(lines, missing), "Put the image there, or correct the line.")
    problems += problem_per_name(
        "OUTSIDE_PATH", _named(lines, outside), "Copy the image into the file's folder if it belongs to the data."
    )
    problems += problem_per_name("DUPLICATE_QUESTION", repeated, "It counts once; remove the line.")
    problems += problem_per_name("CONFLICTING_ANSWERS", contradictory, "Keep the line whose answer is right.")
    items = [
        SourceItem(line.key, line.answer, line.split, FileImage(root / line.image), question=line.question)
        for line in kept
    ]
    return Listing(tuple(items), tuple(problems))


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as text:
            yield from ((number, line) for number, line in enumerate(text, start=1) if line.strip())
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error), "Check [data] path in site.toml.") from None
    except UnicodeDecodeError:
        raise _unreadable(path, "it is not UTF-8 text", "Save it in UTF-8.") from None


def _parsed(number: int, text: str) -> _Line | str:
    """The line, or what is wrong with it."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return "it is not JSON"
    if not isinstance(found, dict):
        return "it is no JSON object"
    for name in TEXTS:
        value = found.get(name)
        if value is None and name in NEEDED:
            return f"it has no field {name!r}"
        if value is None:
            continue
        if not isinstance(value, str) or not value.strip():
            return f"its {name} is no text"
        if len(value) > LONGEST_TEXT or any(not char.isprintable() and not char.isspace() for char in value):
            return f"its {name} is longer than {LONGEST_TEXT} characters or has unprintable ones"
    unknown = sorted(set(found) - set(KNOWN))
    if unknown:
        return f"it has the unknown field {unknown[0]!r}; known are {', '.join(KNOWN)}"
    split = found.get("split")
    if split not in (None, "", *SPLITS):
        return f"its split is {split!r}, expected train or test"
    question, answer = (" ".join((found.get(name) or "").split()) for name in ("question", "answer"))
    return _Line(number, found["image"], question, answer, split or None)


def _without_a_file(root: Path, lines: list[_Line]) -> tuple[dict[int, str], dict[int, str]]:
    """Numbers of the lines whose image is missing, and of those whose image lies elsewhere, with the reason."""
    missing: dict[int, str] = {}
    outside: dict[int, str] = {}
    for line in lines:
        path = root / line.image
        if not inside(root, path):
            outside[line.number] = "its image lies outside the file's folder"
            continue
        try:
            regular = stat.S_ISREG(path.stat().st_mode)
        except (OSError, ValueError) as error:
            missing[line.number] = f"its image cannot be found ({getattr(error, 'strerror', None) or error})"
            continue
        if not regular:
            missing[line.number] = "its image is not a file"
    return missing, outside


def _named(lines: list[_Line], reasons: dict[int, str]) -> dict[str, str]:
    return {f"line {line.number}: {line.image}": reasons[line.number] for line in lines if line.number in reasons}


def _once(lines: list[_Line]) -> tuple[list[_Line], dict[str, str], dict[str, str]]:
    """One line for each image and question; none of those that contradict each other."""
    same: defaultdict[str, list[_Line]] = defaultdict(list)
    for line in lines:
        same[line.key].append(line)
    kept: list[_Line] = []
    repeated: dict[str, str] = {}
    contradictory: dict[str, str] = {}
    for first, *others in same.values():
        if len({(line.answer, line.split) for line in (first, *others)}) > 1:
            contradictory |= {
                f"line {line.number}: {line.image}": "the same question about it is answered otherwise elsewhere"
                for line in (first, *others)
            }
        else:
            kept.append(first)
            repeated |= {f"line {line.number}: {line.image}": f"line {first.number} says the same" for line in others}
    return kept, repeated, contradictory


def _unreadable(path: Path, reason: str, advice: str) -> DataError:
    return DataError(
        code="DATA_UNREADABLE", message=f"The file of questions {str(path)!r} cannot be read ({reason}).", advice=advice
    )
