"""Files and folders: written so that a crash does not harm them, errors about them in words, Flower's kept few."""

import errno
import os
import shutil
from pathlib import Path

from dpfpl_common.errors import DeploymentError

__all__ = ["file_error", "fsync_folder", "is_full", "make_folder_durably", "prune_apps", "write_durably"]


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
    """Whether a write failed because the disk is full, so that nothing is wrong once there is space."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def make_folder_durably(folder: Path) -> None:
    """Make ``folder`` and the missing ones above it; each name is on disk before anything is put inside."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_OWNER = "Give a folder that this user may use (ls -ld shows whose it is), or run the command as its owner."
_PATH = "Correct the path: a part of it is missing, is a file where a folder is needed, or the reverse."
_SPACE = "Free some space, then run the command again."
_KNOWN = {
    errno.EACCES: ("NO_ACCESS", _OWNER),
    errno.EPERM: ("NO_ACCESS", _OWNER),
    errno.EROFS: ("NO_ACCESS", "The disk is mounted read-only: give a folder elsewhere."),
    errno.ENOENT: ("WRONG_PATH", _PATH),
    errno.ENOTDIR: ("WRONG_PATH", _PATH),
    errno.EISDIR: ("WRONG_PATH", _PATH),
    errno.EEXIST: ("WRONG_PATH", _PATH),
    errno.ENAMETOOLONG: ("WRONG_PATH", _PATH),
    errno.ENOSPC: ("STORAGE_FULL", _SPACE),
    errno.EDQUOT: ("STORAGE_FULL", _SPACE),
}


def file_error(error: OSError) -> DeploymentError | None:
    """What to tell whoever ran a command; None for an error that is not about a file, or of another kind."""
    known = _KNOWN.get(error.errno or 0)
    if known is None or error.filename is None:
        return None
    code, advice = known
    return DeploymentError(code=code, message=f"{error.filename}: {error.strerror}.", advice=advice)


APPS_KEPT = 3


def prune_apps(flower_home: Path) -> int:
    """Remove all but the newest unpacked bundles; call it only while no Flower process uses the folder.

    Flower keeps every distinct bundle for good. Our own is always the same, so that runs add nothing; a new release of
    it, or another operator's, does. Flower unpacks a bundle again where it is missing.

    Returns:
        How many were removed.
    """
    apps = flower_home / "apps"
    if not apps.is_dir():
        return 0
    entries = [path for path in apps.iterdir() if path.is_dir() and not path.is_symlink()]
    old = sorted(entries, key=lambda path: path.stat().st_mtime)[:-APPS_KEPT]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)
    return len(old)
