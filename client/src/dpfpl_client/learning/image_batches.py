"""Images in batches that are bounded by what they take up decoded, not by their number alone."""

from collections.abc import Iterable, Iterator
from typing import Final

from PIL import Image

__all__ = ["BATCH_PIXELS", "batches"]

BATCH_PIXELS: Final = 48 * 2**20
"""Most pixels of a batch, 144 MB decoded: thousands of thumbnails, or four photographs of twelve megapixels."""


def batches(images: Iterable[Image.Image], most: int) -> Iterator[list[Image.Image]]:
    """Lists of at most ``most`` images and ``BATCH_PIXELS`` pixels, in the images' order; a larger image goes alone.

    The images are taken one by one. A batch is emptied when the next one is asked for: whoever still has its list would
    hold two batches of images decoded, beside the one image that did not fit any more.
    """
    batch: list[Image.Image] = []
    pixels = 0
    for image in images:
        size = image.width * image.height
        if batch and (len(batch) == most or pixels + size > BATCH_PIXELS):
            yield batch
            batch.clear()
            pixels = 0
        batch.append(image)
        pixels += size
        del image  # the batch alone holds it, also while the next one is decoded
    if batch:
        yield batch
