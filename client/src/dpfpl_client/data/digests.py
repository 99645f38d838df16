"""Computes the digests of all images of a listing, in threads, and remembers those of files that have not changed."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Protocol, runtime_checkable

import PIL
from PIL import features

from dpfpl_client.data.decode import DEFAULT_RULES, FileImage, Picture, PixelRules, UnreadableImageError, pixel_digest
from dpfpl_client.data.inspection import Look, look_at
from dpfpl_client.data.records import DataProblem, ImageSource, SourceItem, problem_per_name
from dpfpl_common.ops.files import write_durably

__all__ = ["DigestIndex", "digest_items"]

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_VERSION = 1
_MAX_THREADS = 8


@dataclass
class DigestIndex:
    """Digest by path, valid for one size and modification time.

    Wrong entries cost no privacy and leak nothing across splits: :meth:`ImageRecord.open` compares the pixels with the
    digest. A damaged index, or one written with another decoder (whose pixels may differ in a bit), counts as empty.
    """

    path: Path | None
    rules: PixelRules = DEFAULT_RULES
    _known: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    _seen: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None:
            self._known = _read(self.path, _decoder(self.rules))

    def lookup(self, file: Path, size: int, mtime_ns: int) -> str | None:
        """The digest of the file, if it was last seen with this size and time."""
        entry = self._known.get(str(file))
        if entry is None or entry[:2] != (size, mtime_ns):
            return None
        self._seen[str(file)] = entry
        return entry[2]

    def remember(self, file: Path, size: int, mtime_ns: int, digest: str) -> None:
        """Note the digest that the file had at this size and time."""
        self._seen[str(file)] = (size, mtime_ns, digest)

    def save(self) -> list[DataProblem]:
        """Replace the index, atomically, by what was looked up or noted; a failure is a warning, not an error."""
        if self.path is None or self._seen == self._known:
            return []
        content = {"version": _VERSION, "decoder": _decoder(self.rules), "files": self._seen}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self.path, json.dumps(content).encode())
        except OSError as error:
            text = f"The index {str(self.path)!r} cannot be written ({error.strerror}); every start decodes all images."
            return [DataProblem("INDEX_NOT_WRITTEN", f"{text} Check the state folder's owner and free space.")]
        return []


def _decoder(rules: PixelRules) -> str:
    """What pixels depend on besides the file: the decoders, and the rules where files leave something open."""
    optional = " ".join(f"{name} {_version(name)}" for name in ("pydicom", "pillow-heif"))
    libraries = f"Pillow {PIL.__version__} jpg {features.version('jpg')} webp {features.version('webp')} {optional}"
    return f"{libraries} bits {rules.bits} frames {rules.frames}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _read(path: Path, decoder: str) -> dict[str, tuple[int, int, str]]:
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != _VERSION or content["decoder"] != decoder:
            return {}
        files = {name: (int(entry[0]), int(entry[1]), str(entry[2])) for name, entry in content["files"].items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return {}
    return files if all(_DIGEST.match(entry[2]) for entry in files.values()) else {}


@runtime_checkable
class _Examined(Protocol):
    def examine(self) -> Picture: ...


@dataclass(frozen=True)
class DigestedItems:
    """What became of the images of a listing.

    Attributes:
        items: every readable image with its digest.
        problems: a warning for each unreadable image, with its own code and advice.
        unreadable: the keys of these.
        looks: what was seen of the files that were decoded, by key; not of those whose digest was remembered.
    """

    items: list[tuple[SourceItem, str]]
    problems: list[DataProblem]
    unreadable: tuple[str, ...]
    looks: dict[str, Look]


def digest_items(items: Sequence[SourceItem], index: DigestIndex) -> DigestedItems:
    """Read every image once, unless the index knows its digest."""
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        results = list(pool.map(lambda item: _digest_or_reason(item.source, index), items))
    good: list[tuple[SourceItem, str]] = []
    looks: dict[str, Look] = {}
    unreadable: list[str] = []
    bad: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for item, result in zip(items, results, strict=True):
        if isinstance(result, UnreadableImageError):
            bad[result.code, result.advice][item.key] = str(result)
            unreadable.append(item.key)
            continue
        digest, look = result
        good.append((item, digest))
        if look is not None:
            looks[item.key] = look
    problems: list[DataProblem] = []
    for (code, advice), reasons in sorted(bad.items()):
        problems += problem_per_name(code, reasons, advice)
    return DigestedItems(good, problems, tuple(unreadable), looks)


def _digest_or_reason(source: ImageSource, index: DigestIndex) -> tuple[str, Look | None] | UnreadableImageError:
    """The digest and, where the image was decoded from a file, what it looks like; or why it cannot be read."""
    try:
        if not isinstance(source, _Examined):
            return pixel_digest(source.read()), None
        if not isinstance(source, FileImage):
            return _digest(source)
        status = source.path.stat()
        digest = index.lookup(source.path, status.st_size, status.st_mtime_ns)
        if digest is not None:
            return digest, None
        digest, look = _digest(source)
        index.remember(source.path, status.st_size, status.st_mtime_ns, digest)
        return digest, look
    except UnreadableImageError as error:
        return error
    except OSError as error:
        return UnreadableImageError(
            f"it cannot be read ({error.strerror})", "UNREADABLE", "Check the disk or network drive it lies on."
        )


def _digest(source: _Examined) -> tuple[str, Look]:
    picture = source.examine()
    return pixel_digest(picture.image), look_at(picture)
