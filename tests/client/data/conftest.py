"""Small images and folders of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _picture(number: int, size: tuple[int, int] = (6, 5)) -> Image.Image:
    """A picture that differs from every other number's, and from its own mirror image and rotations."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    return _picture


@pytest.fixture
def fill() -> Callable[..., Path]:
    """fill(folder, first, count): write pictures ``first``, ``first + 1``, ... as PNG."""

    def write(folder: Path, first: int, count: int) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            _picture(number).save(folder / f"{number}.png")
        return folder

    return write
