"""Decodes an image file of unknown origin to RGB pixels, or says why not."""

import hashlib
import importlib.util
import struct
import zlib
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dpfpl_client.data.value_range import (
    STRIP_VALUES,
    UnreadableImageError,
    check_wide_colours,
    has_wide_colours,
    refuse_unread_values,
    scale_wide_grey,
)

__all__ = [
    "DEFAULT_RULES",
    "MAX_PIXELS",
    "OPTIONAL_EXTENSIONS",
    "ArrayImage",
    "FileImage",
    "Frames",
    "Picture",
    "PixelRules",
    "UnreadableImageError",
    "decode_image",
    "decode_picture",
    "image_extensions",
    "pixel_digest",
]

MAX_PIXELS = 89_478_485
"""Pillow's own decompression-bomb limit (a quarter of a GiB as RGB); here it is an error, not a warning."""

Frames = Literal["first", "refuse"]

OPTIONAL_EXTENSIONS = {".dcm": "dicom", ".dicom": "dicom", ".heic": "heic", ".heif": "heic"}
"""Files that are read where the extra of ``dpfpl-client`` is installed."""

_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
_PACKAGES = {"dicom": ("DICOM", "pydicom"), "heic": ("HEIC", "pillow_heif")}

# Only these decoders ever run, whatever a file's first bytes claim it to be.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")

_NEW_SUBFILE_TYPE, _PREVIEW_OR_MASK = 254, 0b101
_MOST_PAGES = 10_000

_HEAD = 1 << 16  # enough for what stands before a PNG's pixels
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})

# What Pillow's decoders raise on damaged input.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True)
class PixelRules:
    """How pixels become RGB where a file leaves it open; the same for all files of a site, and no secret.

    Attributes:
        bits: so many bits a value has in files of 16 bits that do not say it themselves.
        frames: of a file with several pictures take the ``first``, or ``refuse`` it.
    """

    bits: int = 16
    frames: Frames = "first"


DEFAULT_RULES = PixelRules()


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image, and what is worth knowing about its file.

    Attributes:
        image: RGB.
        frames: how many pictures the file holds.
        used: the share of its range that the values of a file with more than 8 bits take, 0 to 1; 1 for others.
        largest: the largest value of such a file, as it is stored; 0 for others.
    """

    image: Image.Image
    frames: int = 1
    used: float = 1.0
    largest: int = 0


@dataclass(frozen=True)
class FileImage:
    """An image in a file, decoded at every read."""

    path: Path
    rules: PixelRules = DEFAULT_RULES

    def read(self) -> Image.Image:
        """Decode the file to RGB."""
        return decode_picture(self.path, self.rules).image

    def examine(self) -> Picture:
        """Decode the file, and say what is worth knowing about it."""
        return decode_picture(self.path, self.rules)


@dataclass(frozen=True, eq=False)
class ArrayImage:
    """An image in memory: uint8 pixels [height, width, 3]."""

    pixels: NDArray[np.uint8]

    def read(self) -> Image.Image:
        """Wrap a copy of the pixels."""
        return Image.fromarray(self.pixels)


def image_extensions() -> frozenset[str]:
    """The extensions that are read here; which ones beside the usual depends on the extras that are installed."""
    return _EXTENSIONS | {suffix for suffix, extra in OPTIONAL_EXTENSIONS.items() if _installed(extra)}


def decode_image(
    source: Path | bytes, rules: PixelRules = DEFAULT_RULES, most_pixels: int | None = None
) -> Image.Image:
    """As :func:`decode_picture`, the image alone."""
    return decode_picture(source, rules, most_pixels).image


def decode_picture(source: Path | bytes, rules: PixelRules = DEFAULT_RULES, most_pixels: int | None = None) -> Picture:
    """Decode to RGB, the way a person sees it: EXIF orientation applied, transparency on white.

    Greyscale of 16 bits is scaled as :mod:`dpfpl_client.data.value_range` says, DICOM as
    :mod:`dpfpl_client.data.dicom` says. Wider values have no known range, so such images are refused.

    Raises:
        UnreadableImageError: damaged, of another format, above ``most_pixels`` (``MAX_PIXELS``), or refused by the
            rules.
    """
    most = MAX_PIXELS if most_pixels is None else most_pixels
    try:
        head = _head(source)
        if head[128:132] == b"DICM":
            return _dicom(source, rules, most)
        formats: tuple[str, ...] = _FORMATS
        if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
            formats = _with_heic()
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
            _check_pixels(image, most)
            refuse_unread_values(image)
            image.load()
            picture = _to_rgb(image, rules, head)
            frames = _count_frames(image)
        _check_frames(frames, rules)
        return replace(picture, frames=frames)
    except UnidentifiedImageError:
        raise UnreadableImageError("it is damaged or not an image of a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImageError(f"it has more than {MAX_PIXELS:,} pixels") from None
    except PermissionError:
        raise UnreadableImageError(
            "this user may not read it", "UNREADABLE", "Check its owner and permissions."
        ) from None
    except _DECODER_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreadableImageError(f"it cannot be decoded ({reason or type(error).__name__})") from None


def pixel_digest(image: Image.Image) -> str:
    """The sha256, in hexadecimal, of an RGB image's width, height and pixels."""
    digest = hashlib.sha256(struct.pack(">4sII", b"RGB8", image.width, image.height))
    digest.update(image.tobytes())
    return digest.hexdigest()


def _head(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:_HEAD]
    with source.open("rb") as file:
        return file.read(_HEAD)


def _dicom(source: Path | bytes, rules: PixelRules, most: int) -> Picture:
    if not _installed("dicom"):
        raise _missing("dicom")
    from dpfpl_client.data.dicom import COMPRESSED, decode_dicom

    found = decode_dicom(source, rules.bits, most)
    if found == COMPRESSED:
        raise UnreadableImageError(
            COMPRESSED,
            "DICOM_COMPRESSED",
            "RLE, JPEG of 8 bits and JPEG 2000 are read. For others, such as JPEG lossless, install python-gdcm, or "
            "save it uncompressed.",
        )
    if isinstance(found, str):
        raise UnreadableImageError(found)
    _check_frames(found.frames, rules)
    return found


def _with_heic() -> tuple[str, ...]:
    if not _installed("heic"):
        raise _missing("heic")
    import pillow_heif

    pillow_heif.register_heif_opener()
    return (*_FORMATS, "HEIF")


def _installed(extra: str) -> bool:
    return importlib.util.find_spec(_PACKAGES[extra][1]) is not None


def _missing(extra: str) -> UnreadableImageError:
    name, package = _PACKAGES[extra]
    return UnreadableImageError(
        f"it is a {name} file, and the package {package.replace('_', '-')} is not installed",
        f"{extra.upper()}_MISSING",
        f"To read it: pip install 'dpfpl-client[{extra}]'.",
    )


def _check_pixels(image: Image.Image, most: int) -> None:
    if image.width * image.height > most:
        raise UnreadableImageError(f"it has {image.width * image.height:,} pixels, the limit is {most:,}")
    if image.width == 0 or image.height == 0:
        raise UnreadableImageError("it has no pixels")


def _count_frames(image: Image.Image) -> int:
    """How many pictures the file holds, at least; the second view of a JPEG and a TIFF's previews are none."""
    if image.format in ("JPEG", "MPO") or not getattr(image, "is_animated", False):
        return 1
    try:
        frames: int = getattr(image, "n_frames", 1)
        if image.format == "TIFF":
            frames = sum(_is_page(image, number) for number in range(min(frames, _MOST_PAGES)))
    except _DECODER_ERRORS:  # damaged after the first
        return 2
    return max(1, frames)


def _is_page(image: Image.Image, number: int) -> bool:
    image.seek(number)
    tags = getattr(image, "tag_v2", {})
    return number == 0 or not int(tags.get(_NEW_SUBFILE_TYPE, 0)) & _PREVIEW_OR_MASK


def _check_frames(frames: int, rules: PixelRules) -> None:
    if frames > 1 and rules.frames == "refuse":
        raise UnreadableImageError(
            "it holds several pictures",
            "SEVERAL_FRAMES",
            'Save the one that counts as a file of its own; with [data] frames = "first" the first is taken.',
        )


def _to_rgb(opened: Image.Image, rules: PixelRules, head: bytes) -> Picture:
    """The first picture of an opened file, upright."""
    used, largest = 1.0, 0
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        grey, used, largest = scale_wide_grey(np.asarray(image), opened, head, rules.bits)
        image = Image.fromarray(grey)
    elif has_wide_colours(opened, head):
        used, largest = check_wide_colours(np.asarray(image), opened, head, rules.bits)
    if image.has_transparency_data:
        image = _on_white(image)
    return Picture(image.convert("RGB"), used=used, largest=largest)


def _on_white(image: Image.Image) -> Image.Image:
    """An image without its transparency, strip by strip, as that takes many bytes a pixel on the way."""
    whole = Image.new("RGB", image.size)
    rows = max(1, STRIP_VALUES // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        layer = image.crop(box).convert("RGBA")
        whole.paste(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"), box)
    return whole
