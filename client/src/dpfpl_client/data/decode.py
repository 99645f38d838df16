"""Decodes an image file of unknown origin to RGB pixels, or says why not."""

import hashlib
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = [
    "IMAGE_EXTENSIONS",
    "MAX_PIXELS",
    "ArrayImage",
    "FileImage",
    "UnreadableImageError",
    "decode_image",
    "pixel_digest",
]

IMAGE_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
MAX_PIXELS = 89_478_485
STRIP_PIXELS = 1 << 20
"""Pillow's own decompression-bomb limit (a quarter of a GiB as RGB); here it is an error, not a warning."""

# Only these decoders ever run, whatever a file's first bytes claim it to be.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")

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
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class UnreadableImageError(Exception):
    """The image cannot be decoded; the text is the reason, without a name."""


@dataclass(frozen=True)
class FileImage:
    """An image in a file, decoded at every read."""

    path: Path

    def read(self) -> Image.Image:
        """Decode the file to RGB."""
        return decode_image(self.path)


@dataclass(frozen=True, eq=False)
class ArrayImage:
    """An image in memory: uint8 pixels [height, width, 3]."""

    pixels: NDArray[np.uint8]

    def read(self) -> Image.Image:
        """Wrap a copy of the pixels."""
        return Image.fromarray(self.pixels)


def decode_image(source: Path | bytes, most_pixels: int | None = None) -> Image.Image:
    """Decode to RGB, the way a person sees it: EXIF orientation applied, transparency on white, first frame of several.

    Takes at most about 11 bytes of memory a pixel: the file's own pixels, turned, and the result. 16-bit greyscale is scaled by its whole range. Wider values have no known range, so such images are refused.

    Raises:
        UnreadableImageError: damaged, of another format, or above ``most_pixels`` (``MAX_PIXELS``).
    """
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            _check_pixels(image, MAX_PIXELS if most_pixels is None else most_pixels)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise UnreadableImageError("it is damaged or not an image of a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImageError(f"it has more than {MAX_PIXELS:,} pixels") from None
    except _DECODER_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreadableImageError(f"it cannot be decoded ({reason or type(error).__name__})") from None


def pixel_digest(image: Image.Image) -> str:
    """The sha256, in hexadecimal, of an RGB image's width, height and pixels."""
    digest = hashlib.sha256(struct.pack(">4sII", b"RGB8", image.width, image.height))
    digest.update(image.tobytes())
    return digest.hexdigest()


def _check_pixels(image: Image.Image, most: int) -> None:
    if image.width * image.height > most:
        raise UnreadableImageError(f"it has {image.width * image.height:,} pixels, the limit is {most:,}")
    if image.width == 0 or image.height == 0:
        raise UnreadableImageError("it has no pixels")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise UnreadableImageError("it has 32 bits per pixel; save it with 8 or 16")
    if not image.mode.startswith("I;16") and not image.has_transparency_data:
        return image.convert("RGB")
    whole = Image.new("RGB", image.size)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):  # what takes many bytes a pixel on the way is done strip by strip
        box = (0, top, image.width, min(top + rows, image.height))
        whole.paste(_strip_to_rgb(image.crop(box)), box)
    return whole


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32_767) // 65_535).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")
