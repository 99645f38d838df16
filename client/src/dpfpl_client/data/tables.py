"""Finds the images that a table names, and lists those of a CSV file: ``path,label`` or ``path,label,split``."""

import csv
import os
import re
import stat
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dpfpl_client.data.decode import DEFAULT_RULES, FileImage, PixelRules
from dpfpl_client.data.folder import inside
from dpfpl_client.data.folder_names import is_derived, part_of_row, printable
from dpfpl_client.data.records import Listing, SourceItem, problem_per_name
from dpfpl_common.errors import DataError

__all__ = ["MISSING", "FoundImage", "find_image", "list_csv", "not_opened", "unreadable"]

_CSV = "CSV file"
_TOO_MANY = "\0too many"


def list_csv(file: Path, rules: PixelRules = DEFAULT_RULES) -> Listing:
    """List the rows whose image exists below the CSV's own folder.

    Paths are relative to the CSV. A row without a split (no such column, or an empty cell) has its split drawn;
    validation rows are held back like test rows, whatever other rows say, so that no row moves another one. Comma and
    semicolon are understood as separators, UTF-8 as encoding. Of rows that say the same of an image one counts, of
    rows that differ in label or split none.

    Raises:
        DataError: the file is missing, unreadable, not CSV, or lacks a column.
    """
    root = file.expanduser().resolve().parent
    rows: defaultdict[str, list[tuple[int, SourceItem]]] = defaultdict(list)
    skipped: dict[str, str] = {}
    for line, row in _read_rows(file.expanduser()):
        path, label, split = (_cell(row, column) for column in ("path", "label", "split"))
        found = _image(root, path, label, split, rules) if _TOO_MANY not in row else _cell(row, _TOO_MANY)
        if isinstance(found, str):
            skipped[f"line {line}: {path}"] = found
        else:
            rows[found.key].append((line, found))
    items, twice = _once(rows)
    problems = problem_per_name("BAD_ROW", skipped, "Correct the line in the CSV file.")
    return Listing(tuple(items), (*problems, *problem_per_name("LISTED_TWICE", twice, "Remove one of the lines.")))


def unreadable(what: str, file: Path, reason: str, advice: str) -> DataError:
    """A table that is not what it should be."""
    message = f"The {what} {str(file)!r} cannot be read ({reason})."
    return DataError(code="DATA_UNREADABLE", message=message, advice=advice)


def not_opened(what: str, file: Path, error: OSError) -> DataError:
    """A table that cannot be opened."""
    advice = "Check the path (at a site: [data] path in site.toml)."
    if isinstance(error, PermissionError):
        advice = "Check its owner and permissions: this user (or container) must be able to read it."
    return unreadable(what, file, error.strerror or str(error), advice)


def _image(root: Path, path: str, label: str, split: str, rules: PixelRules) -> SourceItem | str:
    """The row's image, or why it is skipped."""
    if not path:
        return "its path is empty"
    if not label:
        return "its label is empty"
    part = part_of_row(split)
    if split and part is None:
        return f"its split is {split!r}, expected train, test or validation"
    found = find_image(root, path)
    if isinstance(found, NoImage):
        return found.reason
    return SourceItem(found.key, label, part, FileImage(found.path, rules))


def _once(rows: dict[str, list[tuple[int, SourceItem]]]) -> tuple[list[SourceItem], dict[str, str]]:
    """One item an image, and what is wrong with the other rows.

    Rows that do not agree on label and split count nowhere, as copies of a picture do (``dpfpl_client.data.split``): if
    one of them won, one row more would move an image from one part to the other.
    """
    items: list[SourceItem] = []
    twice: dict[str, str] = {}
    for key, listed in rows.items():
        if len({_said(item) for _, item in listed}) > 1:
            for line, item in listed:
                others = ", ".join(f"{_said(o)} in line {n}" for n, o in listed if _said(o) != _said(item))
                twice[f"line {line}: {key}"] = f"it is {_said(item)} here and {others}, so none of these lines is used"
            continue
        (line, item), *rest = listed
        items.append(item)
        twice |= {f"line {other}: {key}": f"line {line} lists it too, and is used" for other, _ in rest}
    return items, twice


def _said(item: SourceItem) -> str:
    return f"{item.label!r} in {item.split}" if item.split else repr(item.label)


def _read_rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            header_line = text.readline()
            text.seek(0)
            delimiter = ";" if ";" in header_line and "," not in header_line else ","
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            _check_header(file, header)
            return [(reader.line_num, _named_cells(header, row)) for row in reader if any(row)]
    except OSError as error:
        raise not_opened(_CSV, file, error) from None
    except UnicodeDecodeError:
        raise unreadable(_CSV, file, "it is not UTF-8 text", "Save it as CSV in UTF-8.") from None
    except csv.Error as error:
        raise unreadable(_CSV, file, f"it is not CSV: {error}", "Save it as CSV in UTF-8.") from None


def _named_cells(header: list[str], row: list[str]) -> dict[str, str]:
    cells = dict(zip(header, row, strict=False))
    if any(cell.strip() for cell in row[len(header) :]):
        cells[_TOO_MANY] = "it has more cells than the first line has columns; a label with a comma goes in quotes"
    return cells


def _check_header(file: Path, header: list[str]) -> None:
    twice = [column for column in ("path", "label", "split") if header.count(column) > 1]
    if twice:
        raise DataError(
            code="CSV_COLUMNS",
            message=f"The CSV file {str(file)!r} has the column {twice[0]!r} twice.",
            advice="Remove one of them.",
        )
    missing = [column for column in ("path", "label") if column not in header]
    if missing:
        raise DataError(
            code="CSV_COLUMNS",
            message=f"The CSV file {str(file)!r} has no column {missing[0]!r}; its first line says "
            f"{', '.join(header)!r}.",
            advice="Its first line must be path,label or path,label,split.",
        )


def _cell(row: dict[str, str], column: str) -> str:
    return row.get(column, "").strip()


MISSING, OUTSIDE = "missing", "outside"

_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


@dataclass(frozen=True)
class FoundImage:
    """Attributes: ``key``, its path relative to the table, the same for every way to write it; ``path`` to open it."""

    key: str
    path: Path


@dataclass(frozen=True)
class NoImage:
    """Attributes: ``kind``, ``MISSING`` or ``OUTSIDE``; ``reason``, for the site's administrator."""

    kind: str
    reason: str


def find_image(root: Path, named: str) -> FoundImage | NoImage:
    """The file that a table means by a path.

    Backslashes between folders are taken as Windows writes them, unless a file is really called so.

    Args:
        root: the table's folder, resolved.
        named: as the row has it.
    """
    text = named
    try:
        if "\\" in named and not os.path.lexists(root / named):
            if _WINDOWS.match(named):
                return NoImage(OUTSIDE, "it is a path on a Windows drive; paths are relative to the table's folder")
            text = named.replace("\\", "/")
        path = Path(os.path.normpath(root / text))
        mode = (root / text).stat().st_mode
    except PermissionError:
        return NoImage(MISSING, "this user may not look into its folder; check owner and permissions")
    except (OSError, ValueError) as error:
        reason = f"the file cannot be found ({getattr(error, 'strerror', None) or error})"
        return NoImage(MISSING, reason + _otherwise_spelled(root, text))
    if not stat.S_ISREG(mode):
        return NoImage(MISSING, "it is not a file")
    if not inside(root, root / text):
        return NoImage(OUTSIDE, "it lies outside the table's folder")
    key = path.relative_to(root).as_posix() if path.is_relative_to(root) else text
    for part in PurePosixPath(key).parts[:-1]:
        if is_derived(part):
            return NoImage(OUTSIDE, f"it lies in {part!r}, a folder of thumbnails, copies or deleted files")
    return FoundImage(printable(key), path if path.is_relative_to(root) else root / text)


def _otherwise_spelled(root: Path, text: str) -> str:
    """Names the file that differs in capital letters alone, where there is one."""
    here = root
    for part in PurePosixPath(text).parts:
        try:
            exact = here / part
            alike = [exact] if exact.exists() else [e for e in here.iterdir() if e.name.casefold() == part.casefold()]
        except (OSError, ValueError):
            return ""
        if len(alike) != 1 or not alike[0].resolve().is_relative_to(root):
            return ""
        here = alike[0]
    return f"; there is {here.relative_to(root).as_posix()!r}: capital letters count"
