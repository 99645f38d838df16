"""Remembers the digests of files that have not changed, so that a restart does not decode every image again."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import PIL
from PIL import features

from dpfpl_client.data.records import DataProblem
from dpfpl_common.durable import write_durably

__all__ = ["DigestIndex"]

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
