"""Finds the image that a row of a table names, below the table's own folder."""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dpfpl_client.data.folder import inside
from dpfpl_client.data.folder_names import is_derived, printable

__all__ = ["MISSING", "OUTSIDE", "FoundImage", "NoImage", "find_image"]

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
