"""A file of feature vectors by content, that grows at its end, is read through memory mapping, and never goes bad.

Records have one size: a key, a checksum, a vector. A reader takes whole records with a right checksum and nothing
else, so what a killed writer leaves, at the end or after a power cut in the middle, is only missing. Writers take turns
by a lock; a file that grew too large is replaced by a new one, and readers of the old one keep it until they are done.
"""

import fcntl
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dpfpl_common.durable import make_folder_durably, write_durably

__all__ = ["KEY_BYTES", "FeatureFile"]

KEY_BYTES = 32
Vector = npt.NDArray[np.float32]


class FeatureFile:
    """One model's features in ``path``.

    Args:
        path: the file; a lock file lies beside it.
        size: length of a vector.
        max_bytes: the file is cut to three quarters of this, the newest records, when it grows beyond.
    """

    def __init__(self, path: Path, size: int, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._record = np.dtype([("key", f"V{KEY_BYTES}"), ("check", "<u4"), ("vector", "<f4", (size,))])
        self._rows: npt.NDArray[np.void] = np.zeros(0, self._record)
        self._index: dict[bytes, int] = {}
        self._inode: int | None = None
        self.refresh()

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def __getitem__(self, key: bytes) -> Vector:
        """A copy of the vector [size]."""
        vector: Vector = np.array(self._rows[self._index[key]]["vector"], dtype=np.float32)
        return vector

    def refresh(self) -> None:
        """See what other processes added; a missing or unreadable file is an empty one."""
        seen = len(self._rows)
        try:
            status = self._path.stat()
            count = status.st_size // self._record.itemsize
            rows = np.memmap(self._path, self._record, "r", shape=(count,)) if count else self._rows[:0]
        except (OSError, ValueError):
            status, count, rows = None, 0, np.zeros(0, self._record)
        if status is None or status.st_ino != self._inode or count < seen:
            self._index, seen = {}, 0
        self._inode = status.st_ino if status else None
        self._rows = rows
        for place in range(seen, count):
            if _checksum(rows[place]) == rows[place]["check"]:
                self._index[bytes(rows[place]["key"])] = place

    def add(self, vectors: Mapping[bytes, Vector]) -> None:
        """Append vectors [size] by their keys; whole after this returns, whatever happens to the process."""
        records = np.zeros(len(vectors), self._record)
        for record, (key, vector) in zip(records, vectors.items(), strict=True):
            record["key"], record["vector"] = np.void(key), vector
            record["check"] = _checksum(record)
        make_folder_durably(self._path.parent)
        with self._turn():
            self._append(records.tobytes())
            if self._path.stat().st_size > self._max_bytes:
                self._shorten()
        self.refresh()

    def _append(self, content: bytes) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            whole = size - size % self._record.itemsize
            if whole != size:  # a killed writer's last piece, which no reader looks at
                os.ftruncate(descriptor, whole)
            os.lseek(descriptor, whole, os.SEEK_SET)
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _shorten(self) -> None:
        self.refresh()
        newest = list(self._index.values())[-(self._max_bytes * 3 // 4 // self._record.itemsize) :]
        write_durably(self._path, self._rows[sorted(newest)].tobytes())

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One writer at a time; the lock goes with its process."""
        descriptor = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _checksum(record: np.void) -> int:
    return zlib.crc32(record["vector"].tobytes(), zlib.crc32(bytes(record["key"])))
