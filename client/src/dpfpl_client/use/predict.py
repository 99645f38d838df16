"""Predictions as lines, JSON or CSV."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dpfpl_client.data.decode import DEFAULT_RULES, PixelRules, UnreadableImageError, decode_image, image_extensions
from dpfpl_client.data.folder import is_image_file
from dpfpl_client.data.folder_names import is_derived
from dpfpl_common.errors import DataError, StateError
from dpfpl_common.ops.files import write_durably
from dpfpl_common.ops.text import harmless_cell

if TYPE_CHECKING:
    from dpfpl_client.use.prompt import Classifier

__all__ = [
    "FileResult",
    "Prediction",
    "as_json",
    "as_line",
    "classify_files",
    "count_skipped",
    "expand_images",
    "readable",
    "write_csv",
]


# Images that somebody names on the command line, classified one by one: a bad one never stops the others.


BATCH = 64
BATCH_PIXELS = 1 << 26
"""A batch is closed at this many pixels (0.2 GB as RGB), so that many large photos never fill the memory."""


@dataclass(frozen=True)
class Prediction:
    """Attributes: the most probable classes with their probabilities, best first; or one answer to a question."""

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class FileResult:
    """What became of one file: a prediction, or the reason why there is none."""

    path: Path
    prediction: Prediction | None = None
    error: str = ""


def expand_images(named: Sequence[Path]) -> list[Path]:
    """The named files, and the image files below the named folders in a stable order.

    A name that does not exist is kept: it fails by itself, later.

    Raises:
        DataError: there is nothing to look at.
    """
    found: list[Path] = []
    for path in named:
        if path.is_dir():
            found += sorted(inner for inner in path.rglob("*") if _looked_at(path, inner))
        else:
            found.append(path)
    if not found:
        raise DataError(
            code="NO_IMAGE",
            message=f"There is no image in {', '.join(str(path) for path in named)}.",
            advice=f"Known are {', '.join(sorted(image_extensions()))}.",
        )
    return found


def count_skipped(named: Sequence[Path]) -> int:
    """How many files below the named folders are not looked at: no name of an image, hidden,
    a machine's own, or no regular file."""
    inside = ((folder, path) for folder in named if folder.is_dir() for path in folder.rglob("*") if not path.is_dir())
    return sum(not _looked_at(folder, path) for folder, path in inside)


def _looked_at(folder: Path, path: Path) -> bool:
    """Whether a file below the folder is an image, and not one that machines made beside the images."""
    if path.name.startswith(".") or not path.is_file() or not is_image_file(path, image_extensions()):
        return False
    return not any(is_derived(part) for part in path.relative_to(folder).parts[:-1])


def classify_files(
    classifier: "Classifier", paths: Iterable[Path], top: int, rules: PixelRules = DEFAULT_RULES
) -> Iterator[FileResult]:
    """One result a path, in order; images go through the model in batches.

    Args:
        classifier: the prompt.
        paths: the files.
        top: how many classes of each.
        rules: how pixels become RGB, as at the training.
    """
    waiting: list[tuple[Path, Image.Image | str]] = []
    count = pixels = 0
    for path in paths:
        read = _read(path, rules)
        waiting.append((path, read))
        if not isinstance(read, str):
            count, pixels = count + 1, pixels + read.width * read.height
        if count >= BATCH or pixels >= BATCH_PIXELS:
            yield from _classify(classifier, waiting, top)
            waiting, count, pixels = [], 0, 0
    yield from _classify(classifier, waiting, top)


def _classify(
    classifier: "Classifier", waiting: Sequence[tuple[Path, Image.Image | str]], top: int
) -> Iterator[FileResult]:
    predictions = classifier.classify((read for _, read in waiting if not isinstance(read, str)), top)
    for path, read in waiting:
        if isinstance(read, str):
            yield FileResult(path, error=read)
        else:
            yield FileResult(path, next(predictions))


def _read(path: Path, rules: PixelRules) -> Image.Image | str:
    """The image as RGB, or why it cannot be had."""
    if reason := readable(path):
        return reason
    try:
        return decode_image(path, rules)
    except UnreadableImageError as error:
        return str(error)


def readable(path: Path) -> str:
    """Empty, or why there is nothing to read."""
    if not path.exists():
        return "it does not exist"
    return "" if path.is_file() else "it is no regular file"


def as_line(result: FileResult) -> str:
    """``photo.png: cat 93.1%, dog 6.9%`` or ``photo.png: cannot be read: ...``."""
    if result.prediction is None:
        return f"{result.path}: cannot be read: {result.error}"
    p = result.prediction
    best = ", ".join(f"{name} {value:.1%}" for name, value in zip(p.classes, p.probabilities, strict=True))
    return f"{result.path}: {best}"


def as_json(result: FileResult) -> dict[str, Any]:
    """``image`` with ``classes`` and ``probabilities``, or with ``error``."""
    if result.prediction is None:
        return {"image": str(result.path), "error": result.error}
    return {
        "image": str(result.path),
        "classes": result.prediction.classes,
        "probabilities": result.prediction.probabilities,
    }


def write_csv(path: Path, results: Sequence[FileResult]) -> None:
    """Columns ``image, error, class_1, probability_1, class_2, ...``, one row an image.

    A cell that a spreadsheet would take for a formula gets an apostrophe before it. A file name that is not UTF-8 keeps
    its bytes. An older file is replaced whole or not at all.

    Raises:
        StateError: the file cannot be written.
    """
    shown = max((len(r.prediction.classes) for r in results if r.prediction), default=0)
    head = ["image", "error"]
    for rank in range(1, shown + 1):
        head += [f"class_{rank}", f"probability_{rank}"]
    try:
        write_durably(path.absolute(), _rows(head, results).encode("utf-8", errors="surrogateescape"), 0o644)
    except OSError as error:
        raise StateError(
            code="CANNOT_WRITE",
            message=f"{path} cannot be written ({error.strerror}).",
            advice="Give --csv a file in a folder that exists and is yours.",
        ) from None


def _rows(head: Sequence[str], results: Sequence[FileResult]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(head)
    for result in results:
        row: list[object] = [harmless_cell(str(result.path)), harmless_cell(result.error)]
        if result.prediction is not None:
            pairs = zip(result.prediction.classes, result.prediction.probabilities, strict=True)
            row += [value for name, probability in pairs for value in (harmless_cell(name), probability)]
        writer.writerow(row + [""] * (len(head) - len(row)))
    return text.getvalue()
