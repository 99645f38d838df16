"""Which values of a file with more than 8 bits a channel are black and white: from the file itself, else a setting.

A device that measures with 12 bits writes 0 to 4095 into a file that could hold 65535. Scaled by what the file could
hold, its pictures would be nearly black. The rule, in this order:

1. A PNG's ``sBIT`` of n bits, where the values are stored as n-bit numbers. (A file as the standard wants it has them
   spread over all 16 bits already, so that its low bits follow from the high ones; such values are left as they are.)
2. The display range that ImageJ writes into a TIFF (``min=``, ``max=``), else the TIFF's MaxSampleValue, unless a value
   lies above it: then the tag is wrong.
3. A TIFF that packs 12 bits has 12 bits.
4. ``[data] bits`` of site.toml.

A TIFF in which 0 is white (PhotometricInterpretation 0) is inverted, whatever its bits.

It looks at one file and at a setting, never at other files: one picture more must not change another one's pixels.
"""

import math
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "STRIP_VALUES", "Range", "UnreadableImageError", "check_wide_colours", "has_wide_colours", "refuse_unread_values",
    "scale", "scale_wide_grey",
]  # fmt: skip

Values = NDArray[Any]
"""Whole numbers as a file stores them, mostly uint16: a copy in a wider type would be larger than the image."""

STRIP_VALUES = 1 << 20
"""So many are worked on at a time, where that takes many bytes a value."""
_BITS_PER_SAMPLE, _DESCRIPTION, _MAX_SAMPLE_VALUE, _SAMPLE_FORMAT = 258, 270, 281, 339
_PHOTOMETRIC, _PLANES = 262, 284
_SIGNED, _WHITE_IS_0, _SEPARATE = 2, 0, 2
_PNG_DEPTH_AT = 24
_NUMBER = r"=\s*(-?\d+(?:\.\d+)?)\s*$"
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 100

Range = tuple[float, float]
"""The values that are shown black and white."""


class UnreadableImageError(Exception):
    """The image cannot be decoded; the text is the reason, without a name and without anything of the file's header.

    ``code`` and ``advice`` are what the site's administrator is told besides.
    """

    def __init__(self, reason: str, code: str = "CORRUPT_IMAGE", advice: str = "Replace or remove it.") -> None:
        super().__init__(reason)
        self.code, self.advice = code, advice


def scale_wide_grey(
    values: NDArray[np.number], opened: Image.Image, head: bytes, bits: int
) -> tuple[NDArray[np.uint8], float, int]:
    """One channel of more than 8 bits as 8 bits, with the share of its range that it uses, and its largest value.

    Args:
        values: [height, width], as they are stored.
        opened: as Pillow opened it; only its tags are read.
        head: the first bytes of the file.
        bits: so many are used where the file does not say it.

    Raises:
        UnreadableImageError: the values are signed or wider than 16 bits and the file names no display range, or they
            are larger than ``bits`` bits.
    """
    tags = getattr(opened, "tag_v2", None) or {}
    if opened.mode in ("I", "F"):
        shown = _of_imagej(tags)
        if shown is None:
            raise _unknown_range(opened.mode, tags)
        black, white = shown
    else:
        black, white = _declared_range(values, tags, png_significant_bits(head)) or _of_setting(values, bits)
    inside = np.clip([values.min(), values.max()], black, white)
    grey = scale(values, black, white)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_0:  # Pillow inverts such files of 8 bits alone
        grey = 255 - grey
    return grey, float(inside[1] - inside[0]) / (white - black), max(0, int(values.max()))


def refuse_unread_values(opened: Image.Image) -> None:
    """Refuse what Pillow opens and reads wrongly: signed bytes as unsigned ones, planes of 16 bits as of 8.

    Raises:
        UnreadableImageError: SIGNED_VALUES, WRONG_BITS.
    """
    tags = getattr(opened, "tag_v2", None) or {}
    depth = _first_number(tags.get(_BITS_PER_SAMPLE)) or 1
    if _first_number(tags.get(_SAMPLE_FORMAT)) == _SIGNED and depth <= 8:
        raise _signed(depth)
    if opened.mode in ("RGB", "RGBA", "RGBX", "CMYK", "LAB", "YCbCr") and tags.get(_PLANES) == _SEPARATE and depth > 8:
        raise UnreadableImageError(
            f"its colours of {depth:.0f} bits lie in separate planes", "WRONG_BITS", "Save it with 8 bits a channel."
        )


def has_wide_colours(opened: Image.Image, head: bytes) -> bool:
    """Whether the file has several channels of 16 bits; Pillow keeps the upper 8 of them."""
    if opened.format == "PNG":
        return len(head) > _PNG_DEPTH_AT and head[_PNG_DEPTH_AT] == 16
    depth = _first_number((getattr(opened, "tag_v2", None) or {}).get(_BITS_PER_SAMPLE))
    return depth is not None and depth > 8


def check_wide_colours(upper: NDArray[np.uint8], opened: Image.Image, head: bytes, bits: int) -> tuple[float, int]:
    """The share of their range that colours of 16 bits use, and about the largest value.

    Args:
        upper: the upper 8 bits, [height, width, channels].
        opened: the open file.
        head: its first bytes.
        bits: as for :func:`scale_wide_grey`.

    Raises:
        UnreadableImageError: the values are numbers of fewer bits, so that the upper ones alone are nearly black.
    """
    colours = upper[..., :3]
    largest = int(colours.max()) * 256 + 255
    declared = png_significant_bits(head) or bits
    if declared < 16 and largest < 2**declared:
        raise UnreadableImageError(
            f"its colours have {declared} of 16 bits, of which 8 alone can be read",
            "WRONG_BITS",
            "Save it with 8 bits a channel.",
        )
    return float(colours.max() - colours.min()) / 255, largest


def _declared_range(values: Values, tags: Mapping[int, Any], significant_bits: int) -> Range | None:
    """What the file says about its values, or None."""
    if significant_bits and _stored_as_numbers_of(values, significant_bits):
        return 0.0, float(2**significant_bits - 1)
    shown = _of_imagej(tags)
    if shown is not None:
        return shown
    largest = _first_number(tags.get(_MAX_SAMPLE_VALUE))
    if largest is not None and largest > 0 and values.max() <= largest:
        return 0.0, largest
    depth = _first_number(tags.get(_BITS_PER_SAMPLE))
    return (0.0, 2.0**depth - 1) if depth is not None and 8 < depth < 16 else None


def _of_setting(values: Values, bits: int) -> Range:
    white = 2**bits - 1
    if values.max() > white:
        raise UnreadableImageError(
            f"it has values up to {values.max()}, and [data] bits = {bits} ends at {white}",
            "WRONG_BITS",
            "Give [data] bits the number of bits that the device writes.",
        )
    return 0.0, float(white)


def _unknown_range(mode: str, tags: Mapping[int, Any]) -> UnreadableImageError:
    if _first_number(tags.get(_SAMPLE_FORMAT)) == _SIGNED and _first_number(tags.get(_BITS_PER_SAMPLE)) == 16:
        return _signed(16)
    kind = "fractions" if mode == "F" else "numbers"
    return UnreadableImageError(
        f"its values are {kind} of 32 bits per pixel, and it does not say which of them are black and white",
        "WIDE_VALUES",
        "Save it with 8 or 16 bits.",
    )


def _signed(bits: float) -> UnreadableImageError:
    return UnreadableImageError(
        f"its values are signed numbers of {bits:.0f} bits, and it does not say which of them are black and white",
        "SIGNED_VALUES",
        "Export it with unsigned values, or as DICOM with its window.",
    )


def scale(values: NDArray[np.number], black: float, white: float) -> NDArray[np.uint8]:
    """Values between black and white as 0 to 255, rounded; what lies outside is cut off."""
    grey = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP_VALUES // max(1, math.prod(values.shape[1:])))
    for top in range(0, len(values), rows):
        shares = (values[top : top + rows].astype(np.float64) - black) / (white - black)
        grey[top : top + rows] = np.rint(np.clip(np.nan_to_num(shares), 0.0, 1.0) * 255)
    return grey


def png_significant_bits(head: bytes) -> int:
    """The bits of the first channel that a PNG's ``sBIT`` chunk names; 0 if there is none.

    Args:
        head: the first bytes of the file; the chunk comes before the pixels.
    """
    if not head.startswith(_PNG):
        return 0
    place = len(_PNG)
    for _ in range(_MOST_CHUNKS):
        if place + 9 > len(head):
            return 0
        length, kind = struct.unpack_from(">I4s", head, place)
        if kind == b"sBIT":
            return head[place + 8] if 0 < head[place + 8] < 16 else 0
        if kind in (b"IDAT", b"IEND"):
            return 0
        place += length + 12
    return 0


def _stored_as_numbers_of(values: Values, bits: int) -> bool:
    """Whether the values are n-bit numbers as they stand, and not such numbers spread over 16 bits."""
    below = bool(values.max() < 2**bits)
    return below and bool((values & (2 ** (16 - bits) - 1)).any())


def _of_imagej(tags: Mapping[int, Any]) -> Range | None:
    """The display range that ImageJ wrote."""
    description = str(tags.get(_DESCRIPTION, ""))
    if not description.startswith("ImageJ="):
        return None
    low, high = (re.search(rf"^{name}{_NUMBER}", description, re.MULTILINE) for name in ("min", "max"))
    if low is None or high is None or not float(low[1]) < float(high[1]):
        return None
    return float(low[1]), float(high[1])


def _first_number(tag: object) -> float | None:
    value = tag[0] if isinstance(tag, tuple) and tag else tag
    return float(value) if isinstance(value, int | float) else None
