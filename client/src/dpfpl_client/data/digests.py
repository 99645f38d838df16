"""Computes the digests of all images of a listing, in threads, keeping no pixels."""

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import PIL
from PIL import features

from dpfpl_client.data.decode import FileImage, UnreadableImageError, pixel_digest
from dpfpl_client.data.records import DataProblem, ImageSource, SourceItem, problem_per_name
from dpfpl_common.ops.files import write_durably

__all__ = ["DigestIndex", "digest_items"]


# Remembers the digests of files that have not changed, so that a restart does not decode every image again.


_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_VERSION = 1


@dataclass
class DigestIndex:
    """Digest by path, valid for one size and modification time.

    Wrong entries cost no privacy and leak nothing across splits: :meth:`ImageRecord.open` compares the pixels with the
    digest. A damaged index, or one written with another decoder (whose pixels may differ in a bit), counts as empty.
    """

    path: Path | None
    _known: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    _seen: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None:
            self._known = _read(self.path)

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
        content = {"version": _VERSION, "decoder": _decoder(), "files": self._seen}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self.path, json.dumps(content).encode())
        except OSError as error:
            return [
                DataProblem(
                    "INDEX_NOT_WRITTEN",
                    "warning",
                    f"The index {str(self.path)!r} cannot be written ({error.strerror}); every start decodes "
                    "all images. Check the state folder's owner and free space.",
                )
            ]
        return []


def _decoder() -> str:
    return f"Pillow {PIL.__version__} jpg {features.version('jpg')} webp {features.version('webp')}"


def _read(path: Path) -> dict[str, tuple[int, int, str]]:
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != _VERSION or content["decoder"] != _decoder():
            return {}
        files = {name: (int(entry[0]), int(entry[1]), str(entry[2])) for name, entry in content["files"].items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return {}
    return files if all(_DIGEST.match(entry[2]) for entry in files.values()) else {}


_MAX_THREADS = 8


def digest_items(
    items: Sequence[SourceItem], index: DigestIndex
) -> tuple[list[tuple[SourceItem, str]], list[DataProblem], tuple[str, ...]]:
    """Pair every readable image with its digest.

    Returns:
        The pairs; a ``CORRUPT_IMAGE`` warning for each unreadable image; the keys of these.
    """
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        results = list(pool.map(lambda item: _digest_or_reason(item.source, index), items))
    good = [(item, digest) for item, (digest, _) in zip(items, results, strict=True) if digest]
    bad = {item.key: reason for item, (digest, reason) in zip(items, results, strict=True) if not digest}
    return good, problem_per_name("CORRUPT_IMAGE", bad, "Replace or remove it."), tuple(bad)


def _digest_or_reason(source: ImageSource, index: DigestIndex) -> tuple[str, str]:
    """The digest or, where there is none, the reason."""
    try:
        if not isinstance(source, FileImage):
            return pixel_digest(source.read()), ""
        status = source.path.stat()
        digest = index.lookup(source.path, status.st_size, status.st_mtime_ns)
        if digest is None:
            digest = pixel_digest(source.read())
            index.remember(source.path, status.st_size, status.st_mtime_ns, digest)
    except UnreadableImageError as error:
        return "", str(error)
    except OSError as error:
        return "", f"it cannot be read ({error.strerror})"
    return digest, ""
