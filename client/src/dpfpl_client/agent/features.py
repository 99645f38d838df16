"""Image features of the frozen tower, computed once and kept on disk."""

import fcntl
import hashlib
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dpfpl_client.data import ImageRecord, SiteData
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.models.backbone import Backbone, LabelledFeatures
from dpfpl_common.ops.files import make_folder_durably, write_durably

__all__ = ["KEY_BYTES", "MAX_BYTES", "FeatureCache", "FeatureFile", "images_to_compute", "site_features"]


# A file of feature vectors by content, that grows at its end, is read through memory mapping, and never goes bad.
#
# Records have one size: a key, a checksum, a vector. A reader takes whole records with a right checksum and nothing
# else, so what a killed writer leaves, at the end or after a power cut in the middle, is only missing. Writers take
# turns by a lock; a file that grew too large is replaced by a new one, and readers of the old one keep it until they
# are done.


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


Progress = Callable[[int, int], None]

MAX_BYTES: Final = 4 * 2**30
"""Most that one folder keeps: two million vectors of ViT-B/16."""

SAVED_AT_ONCE: Final = 256
"""Vectors that a kill can cost; computing them takes longer by far than writing them."""

DECODED_AT_ONCE: Final = 4
"""Images of one task: handing a task over costs as much as decoding a small image."""


class FeatureCache:
    """Features by what they depend on: model and preprocessing (a file of their own), image content and viewpoint.

    A damaged or missing file costs time, never correctness: its features are computed again. Several processes may
    read and write the same folder.
    """

    def __init__(self, folder: Path | None, backbone: Backbone, max_bytes: int = MAX_BYTES) -> None:
        """Use ``folder``, with at most ``max_bytes`` in it; None keeps the cache in memory."""
        self._backbone = backbone
        self._memory: dict[bytes, Tensor] = {}
        self._file: FeatureFile | None = None
        if folder is not None:
            path = _path(folder, backbone)
            _make_room(folder, path, max_bytes)
            self._file = FeatureFile(path, backbone.feature_size, max_bytes)

    def features(self, records: Sequence[ImageRecord], progress: Progress | None = None) -> Tensor:
        """Unit features [len(records), feature_size]; what is missing is computed and kept.

        Args:
            records: images; equal digests are computed once.
            progress: called with (done, total) of the images that had to be computed.
        """
        if self._file is not None:
            self._file.refresh()
        keys = [_key(record) for record in records]
        known: dict[bytes, Tensor] = {}
        missing: dict[bytes, ImageRecord] = {}
        for key, record in zip(keys, records, strict=True):
            if key in known or key in missing:
                continue
            row = self._known(key)
            if row is None:
                missing[key] = record
            else:
                known[key] = row
        self._compute(missing, known, progress)
        if not keys:
            return torch.zeros((0, self._backbone.feature_size))
        return torch.stack([known[key] for key in keys])

    def _known(self, key: bytes) -> Tensor | None:
        if self._file is None:
            return self._memory.get(key)
        return torch.from_numpy(self._file[key]) if key in self._file else None

    def _compute(
        self, missing: Mapping[bytes, ImageRecord], known: dict[bytes, Tensor], progress: Progress | None
    ) -> None:
        unsaved: dict[bytes, Tensor] = {}
        rows = self._backbone.image_features(_decoded_ahead(missing.values()))
        for done, (key, row) in enumerate(zip(missing, rows, strict=True), start=1):
            known[key] = unsaved[key] = row
            if len(unsaved) >= SAVED_AT_ONCE:
                self._save(unsaved)
                unsaved = {}
            if progress is not None:
                progress(done, len(missing))
        self._save(unsaved)

    def _save(self, rows: Mapping[bytes, Tensor]) -> None:
        if self._file is None:
            self._memory.update(rows)
        elif rows:
            self._file.add({key: row.numpy().astype(np.float32) for key, row in rows.items()})


def images_to_compute(folder: Path, backbone: Backbone, records: Iterable[ImageRecord]) -> list[ImageRecord]:
    """One record for every content and viewpoint that a cache in ``folder`` would have to compute; changes nothing."""
    kept = FeatureFile(_path(folder, backbone), backbone.feature_size, MAX_BYTES)
    different = {_key(record): record for record in records}
    return [record for key, record in different.items() if key not in kept]


def _path(folder: Path, backbone: Backbone) -> Path:
    return folder / f"features-{backbone.feature_identity[:32]}.bin"


def _key(record: ImageRecord) -> bytes:
    return hashlib.sha256(f"{record.digest}/{record.viewpoint}".encode()).digest()


def _decoded_ahead(records: Iterable[ImageRecord]) -> Iterator[Image.Image]:
    """The images in order, some decoded in parallel while the model computes."""
    workers = min(4, os.cpu_count() or 1)
    todo = iter(records)

    def decoded(group: Sequence[ImageRecord]) -> list[Image.Image]:
        return [record.open() for record in group]

    def groups() -> Iterator[list[ImageRecord]]:
        while group := list(islice(todo, DECODED_AT_ONCE)):
            yield group

    ahead = groups()
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[list[Image.Image]]] = deque(
            pool.submit(decoded, group) for group in islice(ahead, 2 * workers)
        )
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(pool.submit(decoded, group) for group in islice(ahead, 1))


def _make_room(folder: Path, own: Path, max_bytes: int) -> None:
    """Remove other models' files, the longest unused first, until the folder's size is within the bound."""
    files = sorted(folder.glob("features-*.bin"), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in files)
    for path in files:
        if total <= max_bytes or path == own:
            continue
        total -= path.stat().st_size
        path.unlink(missing_ok=True)
    if own.exists():
        os.utime(own)


def site_features(
    cache: FeatureCache, data: SiteData, class_names: Iterable[str], progress: Progress | None = None
) -> SiteFeatures:
    """Features and labels of a site's three sets; labels index ``class_names``.

    Without class names the records are questions, which come along with their answers.
    """
    names = tuple(class_names)
    index = {name: position for position, name in enumerate(names)}
    sets = (data.train, data.test, data.neighbour_test)
    # All at once, so that the progress has one total.
    features = cache.features([record for records in sets for record in records], progress)

    def labelled(rows: Tensor, records: Sequence[ImageRecord]) -> LabelledFeatures:
        if not names:
            asked = tuple((record.question, record.label) for record in records)
            return LabelledFeatures(rows, torch.zeros(len(records), dtype=torch.long), asked)
        return LabelledFeatures(rows, torch.tensor([index[record.label] for record in records], dtype=torch.long))

    train, test, neighbour = (
        labelled(rows, records)
        for rows, records in zip(torch.split(features, [len(records) for records in sets]), sets, strict=True)
    )
    return SiteFeatures(train, test, neighbour, names)
