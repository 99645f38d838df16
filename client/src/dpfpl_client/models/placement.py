"""Images in batches that are bounded by what they take up decoded, not by their number alone."""

from collections.abc import Iterable, Iterator
from typing import Final

import torch
from PIL import Image

from dpfpl_common.errors import ModelError
from dpfpl_common.ops.text import first_line

__all__ = ["BATCH_PIXELS", "CPU", "batches", "device_named", "share_of_memory"]


# Where a frozen model computes: its device, and what it rounds to there.
#
# Only the model is there. Image rows, contexts, gradients, clipping, noise and prompts are float32 or float64 on the
# processor whatever is chosen, so the choice changes neither sensitivity nor noise: rounding moves an example's
# gradient
# before it is clipped.


CPU: Final = torch.device("cpu")


def device_named(name: str | torch.device) -> torch.device:
    """The device ``cpu``, ``cuda`` or ``cuda:1``, ready to compute on.

    Raises:
        ModelError: DEVICE_NOT_THERE.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError) as error:  # torch without CUDA asserts, without a driver it raises
        reason = first_line(error).rstrip(".")
        raise ModelError(
            code="DEVICE_NOT_THERE",
            message=f"torch {torch.__version__} cannot compute on {str(name)!r}: {reason}.",
            advice='Use device = "cpu", or install a torch that was built for this machine\'s GPU and its driver.',
        ) from None
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # image towers begin with a convolution, which would round to ten bits
    return device


def share_of_memory(device: torch.device, at_least: int) -> int:
    """Bytes that one store may fill: on a GPU a quarter of what is free there now; elsewhere ``at_least``."""
    if device.type != "cuda":
        return at_least
    free, _ = torch.cuda.mem_get_info(device)
    return max(at_least, free // 4)


BATCH_PIXELS: Final = 48 * 2**20
"""Most pixels of a batch, 144 MB decoded: thousands of thumbnails, or four photographs of twelve megapixels."""


def batches(images: Iterable[Image.Image], most: int) -> Iterator[list[Image.Image]]:
    """Lists of at most ``most`` images and ``BATCH_PIXELS`` pixels, in the images' order; a larger image goes alone.

    The images are taken one by one. A batch is emptied when the next one is asked for. Otherwise a caller that keeps
    its list would hold two batches of decoded images, beside the one image that did not fit any more.
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
