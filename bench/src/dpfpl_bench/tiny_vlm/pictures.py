"""Pictures with facts: one to four equal shapes of one colour, or one coloured digit written by a pen."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpfpl_bench.embedded.drawing import COLOURS, shape_mask
from dpfpl_bench.embedded.strokes import draw_pen_digit

__all__ = ["SHAPES", "SIZE", "TONES", "Facts", "draw_picture", "sample_facts"]

SIZE = 32
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
TONES = ("red", "green", "blue", "yellow", "white", "pink")
BACKGROUNDS = ((12, 12, 12), (40, 40, 60), (60, 35, 30), (25, 55, 45))
LARGEST = {1: 24, 2: 16, 3: 14, 4: 14}
CELLS = ((0, 0), (16, 0), (0, 16), (16, 16))
"""Upper left corners of the quarters of a picture, in pixels; several shapes take one each."""


@dataclass(frozen=True)
class Facts:
    """What a picture shows: ``digit`` written in ``colour``, or, where that is None, ``count`` of a ``shape``."""

    colour: str
    shape: str = ""
    count: int = 0
    digit: int | None = None


def sample_facts(rng: np.random.Generator) -> Facts:
    """One of the pictures' facts at random; a third are digits."""
    colour = TONES[rng.integers(len(TONES))]
    if rng.random() < 1 / 3:
        return Facts(colour, digit=int(rng.integers(10)))
    return Facts(colour, SHAPES[rng.integers(len(SHAPES))], int(rng.integers(1, 5)))


def draw_picture(facts: Facts, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture [32, 32, 3] of these facts: places, sizes, turns, shades and noise vary."""
    ink = np.zeros((SIZE, SIZE))
    if facts.digit is not None:
        _put(ink, draw_pen_digit(facts.digit, rng), int(rng.integers(22, 31)), (0, 0), SIZE, rng)
    elif facts.count == 1:
        _put(ink, shape_mask(facts.shape, rng), int(rng.integers(14, LARGEST[1] + 1)), (0, 0), SIZE, rng)
    else:
        for cell in rng.permutation(len(CELLS))[: facts.count]:
            _put(ink, shape_mask(facts.shape, rng), int(rng.integers(11, 15)), CELLS[cell], SIZE // 2, rng)
    front = np.asarray(COLOURS[facts.colour], dtype=np.float64) + rng.normal(0, 8, 3)
    back = np.asarray(BACKGROUNDS[rng.integers(len(BACKGROUNDS))], dtype=np.float64)
    pixels = ink[..., None] * front + (1 - ink[..., None]) * back + rng.normal(0, rng.uniform(0, 8), (SIZE, SIZE, 3))
    picture: NDArray[np.uint8] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return picture


def _put(
    ink: NDArray[np.float64],
    mask: NDArray[np.uint8],
    edge: int,
    corner: tuple[int, int],
    room: int,
    rng: np.random.Generator,
) -> None:
    """Lay a mask, ``edge`` pixels large and a little turned, somewhere into a square of ``room`` pixels."""
    small = Image.fromarray(mask).resize((edge, edge), Image.Resampling.BOX)
    turned = np.asarray(small.rotate(float(rng.uniform(-12, 12)), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    left, top = (int(base + rng.integers(0, room - edge + 1)) for base in corner)
    ink[top : top + edge, left : left + edge] = np.maximum(ink[top : top + edge, left : left + edge], turned)
