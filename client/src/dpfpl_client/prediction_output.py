"""Predictions as lines, JSON or CSV."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpfpl_client.images import FileResult
from dpfpl_common.durable import write_durably
from dpfpl_common.errors import StateError

__all__ = ["as_json", "as_line", "write_csv"]

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet would run a cell that starts with one of these; class names come from the operator."""


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
        row: list[object] = [_cell(str(result.path)), result.error]
        if result.prediction is not None:
            pairs = zip(result.prediction.classes, result.prediction.probabilities, strict=True)
            row += [value for name, probability in pairs for value in (_cell(name), probability)]
        writer.writerow(row + [""] * (len(head) - len(row)))
    return text.getvalue()


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
