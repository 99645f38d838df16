"""Lists questions about images, or captions, from JSON lines: ``{"image": ..., "question": ..., "answer": ...}``."""

import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpfpl_client.data.decode import FileImage
from dpfpl_client.data.folder import inside
from dpfpl_client.data.listing import Listing, SourceItem
from dpfpl_client.data.question_line import KNOWN, LONGEST_NAME, QuestionLine, read_line
from dpfpl_client.data.records import DataProblem, problem_per_name
from dpfpl_client.learning.answers import normalised
from dpfpl_common.errors import DataError

__all__ = ["list_questions"]

NAMED = 20
"""So many ignored fields are named."""


def list_questions(file: Path) -> Listing:
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
        found = read_line(number, text)
        if isinstance(found, str):
            bad[f"line {number}"] = found
        else:
            lines.append(found)
    if bad and not lines:
        raise _nothing_usable(path, *next(iter(bad.items())))
    missing, outside = _without_a_file(root, lines)
    kept, found_twice = _once([line for line in lines if line.number not in missing | outside])
    problems: list[DataProblem] = problem_per_name("BAD_LINE", bad, "Correct the line.")
    problems += _ignored(lines)
    problems += problem_per_name("MISSING_IMAGE", _named(lines, missing), "Put the image there, or correct the line.")
    problems += problem_per_name(
        "OUTSIDE_PATH", _named(lines, outside), "Copy the image into the file's folder if it belongs to the data."
    )
    items = [
        SourceItem(key, line.answer, line.split, FileImage(root / line.image), question=line.question)
        for key, line in _keyed(kept)
    ]
    return Listing(tuple(items), (*problems, *found_twice))


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as text:
            yield from ((number, line) for number, line in enumerate(text, start=1) if line.strip())
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error), "Check [data] path in site.toml.") from None


def _nothing_usable(path: Path, first: str, reason: str) -> DataError:
    if "UTF-8" in reason:
        return _unreadable(path, f"{first}: {reason}", "Save it in UTF-8.")
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
    named = ", ".join(repr(name[:LONGEST_NAME]) for name, _ in names.most_common(NAMED))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    text = f"The fields {named}{more} are ignored. Known are {', '.join(KNOWN)}; correct a misspelt one."
    return [DataProblem("UNKNOWN_FIELDS", "warning", text)]


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


def _without_a_file(root: Path, lines: list[QuestionLine]) -> tuple[dict[int, str], dict[int, str]]:
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


def _named(lines: list[QuestionLine], reasons: dict[int, str]) -> dict[str, str]:
    return {_name(line): reasons[line.number] for line in lines if line.number in reasons}


def _name(line: QuestionLine) -> str:
    return f"line {line.number}: {line.image}"


def _once(lines: Sequence[QuestionLine]) -> tuple[list[QuestionLine], list[DataProblem]]:
    """Of the lines that say the same one; of a question with several answers none.

    Captions in other words are examples of their own. Adding or removing one line so changes what is kept by at most
    one example. That is also why two spellings of one answer count as two answers: to keep either of them would let
    one line put an example in another one's place.
    """
    same: defaultdict[tuple[str, str, str], list[QuestionLine]] = defaultdict(list)
    for line in lines:
        same[line.image, line.question, "" if line.question else line.answer].append(line)
    kept: list[QuestionLine] = []
    repeated: dict[str, str] = {}
    two_sides: dict[str, str] = {}
    contradictory: dict[str, str] = {}
    for group in same.values():
        if len({line.answer for line in group}) > 1:
            one = len({normalised(line.answer) for line in group}) == 1
            reason = f"the same question about it is answered {'in another spelling' if one else 'otherwise'} elsewhere"
            contradictory |= {_name(line): reason for line in group}
            continue
        first = next((line for line in group if line.split), group[0])
        kept.append(first)
        for line in group:
            if line.split and line.split != first.split:
                two_sides[_name(line)] = f"line {first.number} says the same, but puts it into {first.split}"
            elif line is not first:
                repeated[_name(line)] = f"line {first.number} says the same"
    problems = problem_per_name("DUPLICATE_QUESTION", repeated, "It counts once; remove the line.")
    problems += problem_per_name("CONFLICTING_SPLITS", two_sides, "It counts there; remove one of the lines.")
    problems += problem_per_name(
        "CONFLICTING_ANSWERS", contradictory, "None of these lines counts; keep the one whose answer is right."
    )
    return kept, problems


def _unreadable(path: Path, reason: str, advice: str) -> DataError:
    return DataError(
        code="DATA_UNREADABLE", message=f"The file of questions {str(path)!r} cannot be read ({reason}).", advice=advice
    )
