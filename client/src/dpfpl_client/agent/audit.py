"""What was asked of a site, what was decided by which rule, what it cost and what left: one line of JSON each.

Only names, codes, digests and numbers that the operator knows anyway are written, and never an image's name or content.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpfpl_common.errors import StateError
from dpfpl_common.ops.files import make_folder_durably

__all__ = ["AUDIT_FILE", "AuditLog"]

AUDIT_FILE = "audit.jsonl"
MAX_BYTES = 4 << 20
KEPT = 5
"""A full file becomes audit.jsonl.1, that one .2 and so on; the oldest of these is dropped."""


class AuditLog:
    """``audit.jsonl`` in the state folder, this user's alone.

    Args:
        path: the file; None writes nothing, for simulations.
        max_bytes: size of one file.
    """

    def __init__(self, path: Path | None, max_bytes: int = MAX_BYTES) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._lock = threading.Lock()

    def write(self, event: str, *, durable: bool = True, **facts: Any) -> None:
        """Add a line.

        Args:
            event: what happened.
            durable: on disk before this returns; refusals, of which there may be a flood, need not be.
            facts: JSON values.

        Raises:
            StateError: AUDIT_UNWRITABLE; then nothing may leave.
        """
        if self._path is None:
            return
        line = json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **facts})
        try:
            with self._lock:
                self._rotate(self._path, len(line) + 1)
                self._append(self._path, line.encode() + b"\n", durable)
        except OSError as error:
            raise StateError(
                code="AUDIT_UNWRITABLE",
                message=f"The audit log {self._path} cannot be written ({error.strerror}).",
                advice="Free disk space or correct the folder's permissions; until then nothing leaves the site.",
            ) from None

    def lines(self) -> Iterator[dict[str, Any]]:
        """All kept lines, oldest first; a line that a crash cut off is left out."""
        if self._path is None:
            return
        for path in (*(self._old(self._path, number) for number in range(KEPT, 0, -1)), self._path):
            if not path.exists():
                continue
            with path.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    try:
                        yield json.loads(line)
                    except ValueError:
                        continue

    def _append(self, path: Path, line: bytes, durable: bool) -> None:
        if not path.parent.is_dir():
            make_folder_durably(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # a crash cut the last line off
            os.write(descriptor, line)
            if durable:
                os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def _rotate(self, path: Path, more: int) -> None:
        if not path.exists() or path.stat().st_size + more <= self._max_bytes:
            return
        for number in range(KEPT, 0, -1):
            older = path if number == 1 else self._old(path, number - 1)
            if older.exists():
                older.replace(self._old(path, number))

    @staticmethod
    def _old(path: Path, number: int) -> Path:
        return path.with_name(f"{path.name}.{number}")
