"""Lists the images that a CSV file names: a header ``path,label`` and, where wanted, ``split``."""

import csv
import stat
from pathlib import Path

from dpfpl_client.data.decode import FileImage
from dpfpl_client.data.folder import inside
from dpfpl_client.data.records import DataProblem, Listing, SourceItem, problem_per_name
from dpfpl_common.errors import DataError

__all__ = ["list_csv"]

_SPLITS = ("train", "test")


def list_csv(file: Path) -> Listing:
    """List the rows whose image exists below the CSV's own folder.

    Paths are relative to the CSV. A row without a split (no such column, or an empty cell) has its split drawn. Comma
    and semicolon are understood as separators, UTF-8 as encoding.

    Raises:
        DataError: the file is missing, unreadable, not CSV, or lacks a column.
    """
    root = file.expanduser().resolve().parent
    items: list[SourceItem] = []
    skipped: dict[str, str] = {}
    for line, row in _read_rows(file.expanduser()):
        path, label, split = (_cell(row, column) for column in ("path", "label", "split"))
        reason = _refusal(root, path, label, split.lower())
        if reason is None:
            items.append(SourceItem(path, label, split.lower() or None, FileImage(root / path)))
        else:
            skipped[f"line {line}: {path}"] = reason
    problems: list[DataProblem] = problem_per_name("BAD_ROW", skipped, "Correct the line in the CSV file.")
    return Listing(tuple(items), tuple(problems))


def _refusal(root: Path, path: str, label: str, split: str) -> str | None:
    if not path:
        return "its path is empty"
    if not label:
        return "its label is empty"
    if split and split not in _SPLITS:
        return f"its split is {split!r}, expected train or test"
    try:
        mode = (root / path).stat().st_mode
    except (OSError, ValueError) as error:
        return f"the file cannot be found ({getattr(error, 'strerror', None) or error})"
    if not stat.S_ISREG(mode):
        return "it is not a file"
    if not inside(root, root / path):
        return "it lies outside the CSV file's folder"
    return None


def _read_rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            header_line = text.readline()
            text.seek(0)
            delimiter = ";" if ";" in header_line and "," not in header_line else ","
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            _check_header(file, header)
            return [(reader.line_num, dict(zip(header, row, strict=False))) for row in reader if any(row)]
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error), "Check [data] path in site.toml.") from None
    except UnicodeDecodeError:
        raise _unreadable(file, "it is not UTF-8 text", "Save it as CSV in UTF-8.") from None
    except csv.Error as error:
        raise _unreadable(file, f"it is not CSV: {error}", "Save it as CSV in UTF-8.") from None


def _check_header(file: Path, header: list[str]) -> None:
    missing = [column for column in ("path", "label") if column not in header]
    if missing:
        raise DataError(
            code="CSV_COLUMNS",
            message=f"The CSV file {str(file)!r} has no column {missing[0]!r}; its first line says "
            f"{', '.join(header)!r}.",
            advice="Its first line must be path,label or path,label,split.",
        )


def _unreadable(file: Path, reason: str, advice: str) -> DataError:
    return DataError(
        code="DATA_UNREADABLE", message=f"The CSV file {str(file)!r} cannot be read ({reason}).", advice=advice
    )


def _cell(row: dict[str, str], column: str) -> str:
    return row.get(column, "").strip()
