"""The built-in source ``shapes``: 1,500 drawn images of ten shapes, from a fixed seed."""

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dpfpl_client.data.decode import ArrayImage
from dpfpl_client.data.records import Listing, SourceItem
from dpfpl_common.errors import DataError

__all__ = ["DIGIT_CLASSES", "SHAPE_CLASSES", "list_digits", "list_shapes"]


# The built-in source ``digits``: scikit-learn's 1,797 real handwritten digits, without a download.


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


_SEED = 20_250_113
_PER_CLASS = 150
_SCALE = 4  # drawn larger and reduced, for soft edges
_MIN_CONTRAST = 90.0

Point = tuple[float, float]


def list_shapes(per_class: int = _PER_CLASS) -> Listing:
    """Draw every shape ``per_class`` times: random colour, size, place, rotation, background gradient and noise."""
    items = []
    for number, (name, outline) in enumerate(_SHAPES.items()):
        rng = np.random.Generator(np.random.PCG64([_SEED, number]))
        items += [
            SourceItem(f"shapes/{name}/{index}", name, None, ArrayImage(_draw(outline, rng)))
            for index in range(per_class)
        ]
    return Listing(tuple(items))


def _draw(outline: Callable[[], list[list[Point]]], rng: np.random.Generator) -> NDArray[np.uint8]:
    """One image [32, 32, 3]; outlines after the first are holes."""
    background, colour = _two_colours(rng)
    radius = rng.uniform(0.24, 0.44) * _SIZE
    centre = rng.uniform(radius, _SIZE - radius, size=2)
    angle = rng.uniform(-0.5, 0.5)
    mask = Image.new("L", (_SIZE * _SCALE, _SIZE * _SCALE), 0)
    pen = ImageDraw.Draw(mask)
    for hole, points in enumerate(outline()):
        pen.polygon([_place(point, centre, radius, angle) for point in points], fill=0 if hole else 255)
    cover = np.asarray(mask.resize((_SIZE, _SIZE), Image.Resampling.BOX), dtype=np.float64)[..., None] / 255
    direction = rng.uniform(0, 2 * math.pi)
    rows, columns = np.mgrid[0:_SIZE, 0:_SIZE] / (_SIZE - 1) - 0.5
    ramp = (rows * math.sin(direction) + columns * math.cos(direction))[..., None] * rng.uniform(0, 60)
    noise = rng.normal(0, rng.uniform(2, 12), size=(_SIZE, _SIZE, 3))
    pixels = cover * colour + (1 - cover) * (background + ramp) + noise
    image: NDArray[np.uint8] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return image


def _two_colours(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    while True:
        background, colour = rng.uniform(0, 255, size=(2, 3))
        if float(np.linalg.norm(background - colour)) >= _MIN_CONTRAST:
            return background, colour


def _place(point: Point, centre: NDArray[np.float64], radius: float, angle: float) -> Point:
    x = point[0] * math.cos(angle) - point[1] * math.sin(angle)
    y = point[0] * math.sin(angle) + point[1] * math.cos(angle)
    return ((float(centre[0]) + x * radius) * _SCALE, (float(centre[1]) + y * radius) * _SCALE)


def _circle(radius: float = 1.0, x: float = 0.0, steps: int = 48) -> list[Point]:
    turns = [2 * math.pi * step / steps for step in range(steps)]
    return [(x + radius * math.cos(turn), radius * math.sin(turn)) for turn in turns]


def _regular(corners: int, inner: float | None = None) -> list[Point]:
    """A regular polygon with a corner upwards; with ``inner``, a star with notches at that radius."""
    radii = [1.0] if inner is None else [1.0, inner]
    count = corners * len(radii)
    turns = [2 * math.pi * step / count - math.pi / 2 for step in range(count)]
    return [(r * math.cos(turn), r * math.sin(turn)) for r, turn in zip(itertools.cycle(radii), turns, strict=False)]


def _heart(steps: int = 48) -> list[Point]:
    turns = [2 * math.pi * step / steps for step in range(steps)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17,
        )
        for t in turns
    ]


def _crescent() -> list[list[Point]]:
    return [_circle(), _circle(0.85, 0.45)]


def _cross(arm: float = 0.34) -> list[Point]:
    quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    return [corner for turn in range(4) for corner in _quarter_turns(quarter, turn)]


def _quarter_turns(points: list[Point], turns: int) -> list[Point]:
    for _ in range(turns):
        points = [(-y, x) for x, y in points]
    return points


_SHAPES: dict[str, Callable[[], list[list[Point]]]] = {
    "circle": lambda: [_circle()],
    "square": lambda: [[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]],
    "triangle": lambda: [_regular(3)],
    "star": lambda: [_regular(5, inner=0.42)],
    "cross": lambda: [_cross()],
    "ring": lambda: [_circle(), _circle(0.55)],
    "heart": lambda: [_heart()],
    "diamond": lambda: [[(0, -1), (0.62, 0), (0, 1), (-0.62, 0)]],
    "pentagon": lambda: [_regular(5)],
    "crescent": _crescent,
}

SHAPE_CLASSES = tuple(_SHAPES)
