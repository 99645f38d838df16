"""Images that somebody names on the command line, classified one by one: a bad one never stops the others."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dpfpl_client.data.decode import IMAGE_EXTENSIONS, UnreadableImageError, decode_image
from dpfpl_client.prompt import Classifier, Prediction
from dpfpl_common.errors import DataError

__all__ = ["FileResult", "classify_files", "count_skipped", "expand_images"]

BATCH = 64
BATCH_PIXELS = 1 << 26
"""A batch is closed at this many pixels (0.2 GB as RGB), so that many large photos never fill the memory."""


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
            found += sorted(filter(_looked_at, path.rglob("*")))
        else:
            found.append(path)
    if not found:
        raise DataError(
            code="NO_IMAGE",
            message=f"There is no image in {', '.join(str(path) for path in named)}.",
            advice=f"Known are {', '.join(sorted(IMAGE_EXTENSIONS))}.",
        )
    return found


def count_skipped(named: Sequence[Path]) -> int:
    """How many files below the named folders are not looked at: no name of an image, hidden, or no regular file."""
    inside = (path for folder in named if folder.is_dir() for path in folder.rglob("*") if not path.is_dir())
    return sum(not _looked_at(path) for path in inside)


def _looked_at(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".") and path.is_file()


def classify_files(classifier: Classifier, paths: Iterable[Path], top: int) -> Iterator[FileResult]:
    """One result a path, in order; images go through the model in batches."""
    waiting: list[tuple[Path, Image.Image | str]] = []
    count = pixels = 0
    for path in paths:
        read = _read(path)
        waiting.append((path, read))
        if not isinstance(read, str):
            count, pixels = count + 1, pixels + read.width * read.height
        if count >= BATCH or pixels >= BATCH_PIXELS:
            yield from _classify(classifier, waiting, top)
            waiting, count, pixels = [], 0, 0
    yield from _classify(classifier, waiting, top)


def _classify(
    classifier: Classifier, waiting: Sequence[tuple[Path, Image.Image | str]], top: int
) -> Iterator[FileResult]:
    predictions = classifier.classify((read for _, read in waiting if not isinstance(read, str)), top)
    for path, read in waiting:
        if isinstance(read, str):
            yield FileResult(path, error=read)
        else:
            yield FileResult(path, next(predictions))


def _read(path: Path) -> Image.Image | str:
    """The image as RGB, or why it cannot be had."""
    if not path.exists():
        return "it does not exist"
    if not path.is_file():
        return "it is no regular file"
    try:
        return decode_image(path)
    except UnreadableImageError as error:
        return str(error)
