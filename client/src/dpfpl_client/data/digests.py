"""Computes the digests of all images of a listing, in threads, keeping no pixels."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dpfpl_client.data.decode import FileImage, UnreadableImageError, pixel_digest
from dpfpl_client.data.digest_index import DigestIndex
from dpfpl_client.data.listing import SourceItem
from dpfpl_client.data.records import DataProblem, ImageSource, problem_per_name

__all__ = ["digest_items"]

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
