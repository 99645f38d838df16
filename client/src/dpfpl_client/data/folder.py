"""Lists a folder of images: ``train/<class>/*`` with ``test/<class>/*``, or ``<class>/*``."""

import contextlib
import errno
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from dpfpl_client.data.decode import DEFAULT_RULES, OPTIONAL_EXTENSIONS, FileImage, PixelRules, image_extensions
from dpfpl_client.data.folder_names import find_parts, is_derived, printable, role_of
from dpfpl_client.data.records import DataProblem, Listing, SourceItem, listed, problem_per_name
from dpfpl_common.errors import DataError

__all__ = ["inside", "is_image_file", "list_folder"]

_IGNORED_NAMES = frozenset({"thumbs.db", "desktop.ini", "dicomdir"})
_DICOM_MARK = slice(128, 132)


class _Skip(Enum):
    """Why something is left out: code and advice, in the order in which they are told."""

    OUTSIDE = (
        "OUTSIDE_LINK",
        "Links are followed inside the data folder only: move or copy the images there, or mount their folder there "
        "(mount --bind, or a volume of the container).",
    )
    BROKEN = "BROKEN_LINK", "Restore what it points to, or remove the link."
    NOT_UTF8 = (
        "NOT_UTF8",
        "Rename the folder; if all names come from one older system: convmv -f latin1 -t utf8 --notest -r FOLDER.",
    )
    REFUSED = "UNREADABLE", "Check its owner and permissions."
    FAILING = "UNREADABLE", "Check the disk or network drive it lies on."
    STRAY = "IGNORED_FILE", "Move it into a class folder, or remove it."
    PART = "IGNORED_PART", "Move its images into a class folder of the training or test part if they should count."


def list_folder(folder: Path, rules: PixelRules = DEFAULT_RULES) -> Listing:
    """List every image below the class folders.

    The folder has a split of its own when it holds ``train/`` with class folders in it, in any usual spelling; without
    ``test/`` beside it, the split of ``train/`` is drawn. Sub-folders of a class belong to the class. Hidden files are
    ignored, and folders that machines make. A link is followed only to what lies inside the folder.

    Raises:
        DataError: the folder is missing or unreadable, has no class folders, or may be split or not (SPLIT_UNCLEAR).
    """
    walk = _Walk(_open_root(folder), rules, image_extensions())
    top = {entry.name: entry for entry in walk.folders(walk.root)}
    roles = walk.parts(top)
    parts: list[tuple[Path, str | None]] = [
        (top[name], role if len(roles) > 1 else None) for name, role in roles.items()
    ]
    if parts:
        for name in top:
            if name not in roles and role_of(name):
                walk.skip(_Skip.PART, top[name], "it is a further part of the split, or holds no class folders")
            elif name not in roles:
                walk.skip_stray(top[name])
    else:
        parts = [(walk.root, None)]
    items = [item for part, split in parts for item in walk.part(part, split)]
    if not walk.images_in:
        found = [problem.message for problem in walk.problems()[:3]]
        raise DataError(
            code="NO_CLASSES",
            message=f"The data folder {str(folder)!r} has no class folders that can be read.",
            advice=" ".join(found)
            or "Put each class's images into a folder of its own: CLASS/* or train/CLASS/* and test/CLASS/*.",
        )
    return Listing(tuple(items), tuple(walk.problems()))


def is_image_file(path: Path, extensions: frozenset[str]) -> bool:
    """Whether a file is an image by its extension or, where it has none or a number, begins as DICOM does."""
    suffix = path.suffix.lower()
    if suffix in extensions:
        return True
    if (suffix and not suffix[1:].isdigit()) or ".dcm" not in extensions:
        return False
    try:
        with path.open("rb") as file:
            return file.read(_DICOM_MARK.stop)[_DICOM_MARK] == b"DICM"
    except OSError:
        return False


def inside(root: Path, path: Path) -> bool:
    """Whether the path, with every link followed, lies inside the (resolved) root."""
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a link that leads to itself
        return False


def _is_folder(path: Path) -> bool:
    """Whether it is a folder that can be looked at."""
    try:
        return path.is_dir()
    except OSError:
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
            advice="Check the path (at a site: [data] path in site.toml), and that this user (or container) may read "
            "the folder.",
        ) from None
    return root


@dataclass
class _Walk:
    """One pass over the folder, and what it met on the way."""

    root: Path
    rules: PixelRules
    extensions: frozenset[str]
    images_in: dict[str, int] = field(default_factory=dict)
    skipped: defaultdict[_Skip, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    derived: set[str] = field(default_factory=set)
    other_files: Counter[str] = field(default_factory=Counter)

    def folders(self, part: Path) -> list[Path]:
        return [entry for entry in self._entries(part) if entry.is_dir()]

    def parts(self, top: dict[str, Path]) -> dict[str, str]:
        """The parts of a split among the top folders; empty if these are the classes."""
        inner = {name: [entry.name for entry in self.folders(path)] for name, path in top.items()}
        images = {name for name, path in top.items() if any(map(self._is_image, self._entries(path)))}
        try:
            return find_parts(inner, images)
        except DataError as error:
            met = [problem.message for problem in self.problems()[:2]]
            raise DataError(code=error.code, message=error.message, advice=" ".join([error.advice, *met])) from None

    def part(self, part: Path, split: str | None) -> Iterator[SourceItem]:
        for entry in self._entries(part):
            if entry.is_dir():
                if printable(entry.name) != entry.name:
                    self.skip(_Skip.NOT_UTF8, entry, "its name is not UTF-8, so it cannot be a class's")
                    continue
                items = list(self._images(entry, entry.name, split, frozenset({part.resolve()})))
                self.images_in[self._name(entry)] = len(items)
                yield from items
            elif self._is_image(entry):
                self.skip_stray(entry)

    def skip(self, why: _Skip, path: Path, reason: str) -> None:
        self.skipped[why][self._name(path)] = reason

    def skip_stray(self, path: Path) -> None:
        self.skip(_Skip.STRAY, path, "it is in no class folder that is read")

    def problems(self) -> list[DataProblem]:
        unread = self.skipped[_Skip.REFUSED] | self.skipped[_Skip.FAILING]
        problems = [
            DataProblem("EMPTY_CLASS", f"The class folder {name!r} holds no image. Add images, or remove the folder.")
            for name, count in self.images_in.items()
            if count == 0 and name not in unread
        ]
        for why in _Skip:
            code, advice = why.value
            problems += problem_per_name(code, self.skipped[why], advice)
        return [*problems, *self._derived(), *self._unsupported()]

    def _derived(self) -> list[DataProblem]:
        if not self.derived:
            return []
        counts = Counter(path.rpartition("/")[2] for path in self.derived)
        named = [repr(name) + (f" ({count} times)" if count > 1 else "") for name, count in sorted(counts.items())]
        text = f"Hidden folders and folders that machines make are left out: {listed(named)}. "
        advice = "They hold thumbnails, copies or deleted files. Rename one if its pictures are yours to use."
        return [DataProblem("DERIVED_FOLDERS", text + advice)]

    def _unsupported(self) -> list[DataProblem]:
        problems = []
        for extra in sorted(set(OPTIONAL_EXTENSIONS.values())):
            suffixes = [suffix for suffix, needs in OPTIONAL_EXTENSIONS.items() if needs == extra]
            count = sum(self.other_files.pop(suffix, 0) for suffix in suffixes)
            if count:
                text = f"{count} files in class folders are skipped ({', '.join(suffixes)}): what reads them is not "
                text += f"installed. To read them: pip install 'dpfpl-client[{extra}]'."
                problems.append(DataProblem(f"{extra.upper()}_MISSING", text))
        if self.other_files:
            counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.other_files.items()))
            text = f"Files in class folders are skipped, their extension is not an image's: {counts}. "
            text += f"Convert them to one of {', '.join(sorted(self.extensions))} if they are images."
            problems.append(DataProblem("UNSUPPORTED_FILES", text))
        return problems

    def _images(self, folder: Path, label: str, split: str | None, above: frozenset[Path]) -> Iterator[SourceItem]:
        real = folder.resolve()
        if real in above:  # a link to a folder that contains it
            return
        for entry in self._entries(folder, inside_a_class=True):
            if entry.is_dir():
                yield from self._images(entry, label, split, above | {real})
            elif self._is_image(entry):
                yield SourceItem(self._name(entry), label, split, FileImage(entry, self.rules))
            else:
                self.other_files[printable(entry.suffix.lower()) or "without extension"] += 1

    def _is_image(self, entry: Path) -> bool:
        return is_image_file(entry, self.extensions) and not entry.is_dir()

    def _entries(self, folder: Path, *, inside_a_class: bool = False) -> list[Path]:
        """What the folder holds, by name: readable regular files and folders whose target lies inside the root."""
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            self._note(folder, error)
            return []
        return [entry for entry in entries if self._belongs(entry, inside_a_class)]

    def _belongs(self, entry: Path, inside_a_class: bool) -> bool:
        name = entry.name.lower()
        if is_derived(name, inside_a_class=inside_a_class) and _is_folder(entry):
            self.derived.add(self._name(entry))
            return False
        if name.startswith("."):
            if self._holds_images(entry):
                self.derived.add(self._name(entry))
            return False
        if name in _IGNORED_NAMES:
            return False
        try:
            if entry.is_symlink() and not self._leads_inside(entry):
                return False
            mode = entry.stat().st_mode
        except OSError as error:
            self._note(entry, error)
            return False
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)

    def _holds_images(self, hidden: Path) -> bool:
        if hidden.is_symlink() or not _is_folder(hidden):
            return False
        with contextlib.suppress(OSError):
            return any(path.suffix.lower() in self.extensions for path in hidden.iterdir())
        return False

    def _leads_inside(self, link: Path) -> bool:
        try:
            link.stat()
        except OSError as error:
            if error.errno == errno.ELOOP:
                self.skip(_Skip.BROKEN, link, "the link leads to itself")
                return False
            if error.errno == errno.ENOENT:
                target = printable(str(link.readlink()))
                self.skip(_Skip.BROKEN, link, f"the link leads to {target!r}, which does not exist")
                return False
            raise
        if not inside(self.root, link):
            self.skip(_Skip.OUTSIDE, link, "the link leads out of the data folder")
            return False
        return True

    def _note(self, path: Path, error: OSError) -> None:
        what = "the folder" if _is_folder(path) else "it"
        why = _Skip.REFUSED if isinstance(error, PermissionError) else _Skip.FAILING
        self.skip(why, path, f"{what} cannot be read ({error.strerror})")

    def _name(self, path: Path) -> str:
        return printable(path.relative_to(self.root).as_posix())
