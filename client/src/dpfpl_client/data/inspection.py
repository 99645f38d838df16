"""What an administrator should look at in pictures that can be read: several in one file, nearly black, near copies.

These are warnings for the site's people alone. They change nothing about which images are used: what is kept must
depend on exact copies only, so that one example more changes at most one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpfpl_client.data.decode import Picture
from dpfpl_client.data.records import DataProblem, ImageRecord, listed, quoted

__all__ = ["Look", "inspect", "look_at"]

_SIDE = 16
_LITTLE = 0.25
_NAMED = 5
_BLOCK = 1024

# Two thumbnails show one picture if their root-mean-square difference is at most so many levels of 256, and at most
# this share of their contrast (standard deviation). Seen on 2,000 photographs of 40 kinds of objects: of two million
# pairs none is closer than 12 levels or 0.4 of the contrast, and 400 of 400 copies are found of every kind tried (half
# and double size, thumbnails of 40 to 128 pixels, JPEG down to quality 30, WebP 50, grey), within 2.8 levels and 0.11
# of the contrast. Pictures of one device are more alike than photographs, so the distance is not larger than it has to
# be. Cropped or brightened copies are mostly not found. Nothing can be said of thumbnails without contrast.
_FAR, _SHARE_OF_CONTRAST, _LEAST_CONTRAST = 4.0, 0.2, 1.0


@dataclass(frozen=True, eq=False)
class Look:
    """What is remembered of a picture while the images are read.

    Attributes:
        thumbnail: its grey values at 16 x 16, uint8 [256]: a hash that does not depend on its size, nor much on
            compression.
        frames, used, largest: as of ``decode.Picture``.
    """

    thumbnail: NDArray[np.uint8]
    frames: int = 1
    used: float = 1.0
    largest: int = 0


def look_at(picture: Picture) -> Look:
    """Take down what :func:`inspect` needs."""
    small = picture.image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=4.0).convert("L")
    return Look(np.asarray(small).reshape(-1), picture.frames, picture.used, picture.largest)


def inspect(looks: Mapping[str, Look], records: Sequence[ImageRecord]) -> list[DataProblem]:
    """The warnings.

    Args:
        looks: by the images' keys.
        records: the images that are used; others are not looked at.
    """
    used = [record for record in records if record.key in looks]
    seen = {record.key: looks[record.key] for record in used}
    return [*_frames(seen), *_dark(seen), *_near_copies(used, seen)]


def _frames(looks: Mapping[str, Look]) -> list[DataProblem]:
    several = {key: look.frames for key, look in looks.items() if look.frames > 1}
    if not several:
        return []
    kinds = Counter(PurePosixPath(key).suffix.lower() or "without extension" for key in several)
    named = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    text = (
        f"{len(several)} of {len(looks)} files hold several pictures each ({named}; at least {sum(several.values())} "
        f"pictures), and only the first of each is used: {quoted(several, _NAMED)}. Save the ones that count as files "
        'of their own, or write [data] frames = "refuse" in site.toml to leave such files out.'
    )
    return [DataProblem("SEVERAL_FRAMES", text)]


def _dark(looks: Mapping[str, Look]) -> list[DataProblem]:
    little = {key: look.largest for key, look in looks.items() if look.used < _LITTLE}
    if not little:
        return []
    text = (
        f"{len(little)} of {len(looks)} images use less than a quarter of the range that their file has or declares, "
        f"so they look nearly black or flat: {quoted(little, _NAMED)}. Their largest stored value is "
        f"{max(little.values())}. If the device writes fewer than 16 bits, write in site.toml how many it writes (its "
        "manual says so, whatever these images happen to hold): [data] bits = 12"
    )
    return [DataProblem("RANGE_UNUSED", text)]


def _near_copies(records: Sequence[ImageRecord], looks: Mapping[str, Look]) -> list[DataProblem]:
    records = list({record.digest: record for record in records}.values())  # many questions may be about one image
    pairs = _alike(np.stack([looks[record.key].thumbnail for record in records])) if records else []
    if not pairs:
        return []
    copies = {max(pair) for pair in pairs}
    across = sum(records[a].split != records[b].split for a, b in pairs)
    named = listed([f"{records[b].key!r} like {records[a].key!r}" for a, b in pairs], _NAMED, "more pairs")
    sides = f" {across} of the pairs have one image in train and one in test." if across else ""
    text = (
        f"{len(copies)} of {len(records)} images look like another one in another size or encoding: {named}.{sides} A "
        "picture that is there twice counts as two examples, which halves its protection, and a test on a copy of a "
        "training image says nothing. Remove the copies (thumbnails, exports) if they are."
    )
    return [DataProblem("NEAR_COPIES", text)]


def _alike(thumbnails: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Pairs (first, later) of rows [count, 256] that show one picture; each later one is paired once.

    Sorted by brightness, so that only rows are compared that can be close enough.
    """
    values = thumbnails.astype(np.float32)
    means, contrasts = values.mean(axis=1), values.std(axis=1)
    order = np.argsort(means, kind="stable")
    order = order[contrasts[order] >= _LEAST_CONTRAST]
    centred, sorted_means = values[order] - 128, means[order]
    limits = np.minimum(_FAR, _SHARE_OF_CONTRAST * contrasts[order])
    squares = (centred**2).sum(axis=1)
    found: dict[int, int] = {}
    for begin in range(0, len(order), _BLOCK):
        end = min(begin + _BLOCK, len(order))
        last = int(np.searchsorted(sorted_means, sorted_means[end - 1] + _FAR, side="right"))
        for start in range(begin, last, _BLOCK):
            stop = min(start + _BLOCK, last)
            products = centred[begin:end] @ centred[start:stop].T
            distances = np.maximum(squares[begin:end, None] + squares[None, start:stop] - 2 * products, 0)
            allowed = np.minimum(limits[begin:end, None], limits[None, start:stop])
            for row, column in np.argwhere(distances <= allowed**2 * values.shape[1]):
                one, other = sorted((int(order[begin + row]), int(order[start + column])))
                if one != other:
                    found[other] = min(found.get(other, one), one)
    return sorted((first, later) for later, first in found.items())
