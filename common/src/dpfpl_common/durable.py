"""Writes files and makes folders so that after a crash or a loss of power they are there, whole, or not at all."""

import errno
import os
from pathlib import Path

__all__ = ["fsync_folder", "is_full", "make_folder_durably", "write_durably"]


def write_durably(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` by ``content``: temporary file, fsync, rename, fsync of the folder.

    Raises:
        OSError: it failed; before the rename the old file is there and the temporary one is not left on a full disk.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of space, so that nothing is wrong with the disk once there is some."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def make_folder_durably(folder: Path, mode: int = 0o700) -> None:
    """Make ``folder`` and the missing ones above it; each name is on disk before anything is put inside."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=mode, exist_ok=True)
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
