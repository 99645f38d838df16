"""Keeps Flower's home small: every distinct bundle leaves an unpacked copy there for good."""

import shutil
from pathlib import Path

__all__ = ["prune_apps"]


def prune_apps(flower_home: Path, keep: int = 3) -> int:
    """Remove all but the newest unpacked bundles; call it only while no Flower process uses the folder.

    Our own bundle is always the same, so that runs add nothing; a new release of it, or another operator's, does.
    Flower unpacks a bundle again where it is missing.

    Returns:
        How many were removed.
    """
    apps = flower_home / "apps"
    if not apps.is_dir():
        return 0
    entries = sorted(
        (path for path in apps.iterdir() if path.is_dir() and not path.is_symlink()), key=_age, reverse=True
    )
    for path in entries[keep:]:
        shutil.rmtree(path, ignore_errors=True)
    return len(entries[keep:])


def _age(path: Path) -> float:
    return path.stat().st_mtime
