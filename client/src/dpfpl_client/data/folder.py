"""Lists a folder of images: ``train/<class>/*`` with ``test/<class>/*``, or ``<class>/*``."""

import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dpfpl_client.data.decode import IMAGE_EXTENSIONS, FileImage
from dpfpl_client.data.records import DataProblem, Listing, SourceItem, problem_per_name
from dpfpl_common.errors import DataError

__all__ = ["inside", "list_folder"]

_IGNORED_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


def list_folder(folder: Path) -> Listing:
    """List every image below the class folders.

    The folder has a split of its own when it holds ``train/`` with class folders in it; without ``test/`` beside it,
    the split of ``train/`` is drawn. Sub-folders of a class belong to the class. Hidden files are ignored. A link is
    followed only to what lies inside the folder.

    Raises:
        DataError: the folder is missing, unreadable or has no class folders.
    """
    walk = _Walk(_open_root(folder))
    top = {entry.name: entry for entry in walk.folders(walk.root)}
    if "train" in top and walk.folders(top["train"]):
        parts = [(top["train"], "train"), (top["test"], "test")] if "test" in top else [(top["train"], None)]
        walk.stray += [name for name in top if name not in ("train", "test")]
    else:
        parts = [(walk.root, None)]
    items = [item for part, split in parts for item in walk.part(part, split)]
    if not walk.images_in:
        raise DataError(
            code="NO_CLASSES",
            message=f"The data folder {str(folder)!r} has no class folders.",
            advice="Put each class's images into a folder of its own: CLASS/* or train/CLASS/* and test/CLASS/*.",
        )
    return Listing(tuple(items), tuple(walk.problems()))


def inside(root: Path, path: Path) -> bool:
    """Whether the path, with every link followed, lies inside the (resolved) root."""
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a link that leads to itself
        return False


def _open_root(folder: Path) -> Path:
    try:
        root = folder.expanduser().resolve(strict=True)
        next(root.iterdir(), None)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "it cannot be resolved"
        raise DataError(
            code="DATA_UNREADABLE",
            message=f"The data folder {str(folder)!r} cannot be read ({reason}).",
            advice="Check [data] path in site.toml, and that this user (or container) may read the folder.",
        ) from None
    return root


@dataclass
class _Walk:
    """One pass over the folder, and what it met on the way."""

    root: Path
    images_in: dict[str, int] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    other_files: Counter[str] = field(default_factory=Counter)
    stray: list[str] = field(default_factory=list)

    def folders(self, part: Path) -> list[Path]:
        return [entry for entry in self._entries(part) if entry.is_dir()]

    def part(self, part: Path, split: str | None) -> Iterator[SourceItem]:
        for entry in self._entries(part):
            if entry.is_dir():
                items = list(self._images(entry, entry.name, split, frozenset({part.resolve()})))
                self.images_in[self._name(entry)] = len(items)
                yield from items
            elif entry.suffix.lower() in IMAGE_EXTENSIONS:
                self.stray.append(self._name(entry))

    def problems(self) -> list[DataProblem]:
        problems = [
            DataProblem(
                "EMPTY_CLASS",
                "warning",
                f"The class folder {name!r} holds no image. Add images, or remove the folder.",
            )
            for name, count in self.images_in.items()
            if count == 0
        ]
        problems += problem_per_name(
            "OUTSIDE_LINK", self.outside, "Copy the images into the data folder if they belong to it."
        )
        problems += problem_per_name("UNREADABLE", self.unreadable, "Check its owner and permissions.")
        problems += problem_per_name(
            "IGNORED_FILE",
            dict.fromkeys(sorted(set(self.stray)), "it is in no class folder that is read"),
            "Move it into a class folder, or remove it.",
        )
        if self.other_files:
            counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.other_files.items()))
            problems.append(
                DataProblem(
                    "UNSUPPORTED_FILES",
                    "warning",
                    f"Files in class folders are skipped, their extension is not an image's: {counts}. "
                    f"Convert them to one of {', '.join(sorted(IMAGE_EXTENSIONS))} if they are images.",
                )
            )
        return problems

    def _images(self, folder: Path, label: str, split: str | None, above: frozenset[Path]) -> Iterator[SourceItem]:
        real = folder.resolve()
        if real in above:  # a link to a folder that contains it
            return
        for entry in self._entries(folder):
            if entry.is_dir():
                yield from self._images(entry, label, split, above | {real})
            elif entry.suffix.lower() in IMAGE_EXTENSIONS:
                yield SourceItem(self._name(entry), label, split, FileImage(entry))
            else:
                self.other_files[entry.suffix.lower() or "without extension"] += 1

    def _entries(self, folder: Path) -> list[Path]:
        """What the folder holds, by name: readable regular files and folders whose target lies inside the root."""
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            self.unreadable[self._name(folder)] = f"the folder cannot be read ({error.strerror})"
            return []
        return [entry for entry in entries if self._belongs(entry)]

    def _belongs(self, entry: Path) -> bool:
        if entry.name.startswith(".") or entry.name.lower() in _IGNORED_NAMES:
            return False
        try:
            if entry.is_symlink() and not inside(self.root, entry):
                self.outside[self._name(entry)] = "the link leads out of the data folder"
                return False
            mode = entry.stat().st_mode
        except OSError as error:
            self.unreadable[self._name(entry)] = f"it cannot be read ({error.strerror})"
            return False
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()
