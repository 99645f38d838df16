"""The built-in source ``digits``: scikit-learn's 1,797 real handwritten digits, without a download."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpfpl_client.data.decode import ArrayImage
from dpfpl_client.data.listing import Listing, SourceItem
from dpfpl_common.errors import DataError

__all__ = ["DIGIT_CLASSES", "list_digits"]

DIGIT_CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SIZE = 32


def list_digits() -> Listing:
    """List the digits, white on black, 8x8 grey levels enlarged to 32x32 RGB (bicubic).

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            code="SKLEARN_MISSING",
            message="The source 'digits' needs scikit-learn, which is not installed.",
            advice="Run: pip install 'dpfpl-client[agent]'.",
        ) from None
    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return Listing(
        tuple(
            SourceItem(f"digits/{index}", DIGIT_CLASSES[int(target)], None, ArrayImage(_enlarge(image)))
            for index, (image, target) in enumerate(zip(grey, bunch.target, strict=True))
        )
    )


def _enlarge(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """From [8, 8] to [32, 32, 3]."""
    return np.asarray(Image.fromarray(grey).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC).convert("RGB"))
