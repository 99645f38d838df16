"""Images that somebody names on the command line, to be classified."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dpfpl_client.data.decode import IMAGE_EXTENSIONS, UnreadableImageError, decode_image
from dpfpl_common.errors import DataError

__all__ = ["expand_images", "open_image"]


def expand_images(named: Sequence[Path]) -> list[Path]:
    """The named files, and the image files below the named folders in a stable order.

    Raises:
        DataError: a name does not exist, or there is no image.
    """
    found: list[Path] = []
    for path in named:
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in IMAGE_EXTENSIONS and p.is_file())
            found += sorted(p for p in inside if not p.name.startswith("."))
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(code="NO_IMAGE", message=f"{path} does not exist.", advice="Check the path.")
    if not found:
        raise DataError(
            code="NO_IMAGE",
            message=f"There is no image in {', '.join(str(path) for path in named)}.",
            advice=f"Known are {', '.join(sorted(IMAGE_EXTENSIONS))}.",
        )
    return found


def open_image(path: Path) -> Image.Image:
    """Decode to RGB.

    Raises:
        DataError: the file is no image that can be read.
    """
    try:
        return decode_image(path)
    except UnreadableImageError as error:
        raise DataError(
            code="CORRUPT_IMAGE", message=f"{path} cannot be read: {error}.", advice="Leave it out, or mend it."
        ) from None
