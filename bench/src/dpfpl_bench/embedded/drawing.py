"""Shapes and textures drawn from a numpy generator, nothing read from disk."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["COLOURS", "SHAPES", "TEXTURES", "draw_shape", "draw_texture_mask", "shape_mask"]

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond", "pentagon", "crescent")
TEXTURES = ("horizontal stripes", "vertical stripes", "diagonal stripes", "checkerboard", "dots", "noise", "gradient")
COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (12, 12, 12),
    "white": (245, 245, 245),
    "grey": (128, 128, 128),
    "red": (215, 35, 35),
    "green": (35, 165, 50),
    "blue": (35, 65, 215),
    "yellow": (240, 220, 40),
    "orange": (240, 135, 25),
    "purple": (125, 40, 160),
    "pink": (245, 130, 185),
    "cyan": (45, 205, 215),
    "brown": (125, 75, 35),
}


def _outline(name: str) -> np.ndarray:
    """The corners [n, 2] of a polygonal shape, within the square from -1 to 1, y downwards."""
    if name == "square":
        return np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])
    if name == "diamond":
        return np.array([(0.0, -1.0), (0.65, 0.0), (0.0, 1.0), (-0.65, 0.0)])
    if name == "cross":
        a, b = 0.33, 0.95
        return np.array(
            [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
        )
    if name == "heart":
        t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([x, -y], axis=1) / 17
    corners = {"triangle": 3, "pentagon": 5, "star": 10, "circle": 60, "ring": 60, "crescent": 60}[name]
    angles = np.arange(corners) * 2 * np.pi / corners - np.pi / 2
    radius = np.where(np.arange(corners) % 2, 0.42, 1.0) if name == "star" else np.ones(corners)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def shape_mask(name: str, rng: np.random.Generator, size: int = 32) -> np.ndarray:
    """One upright shape filling the square, slightly irregular: uint8 mask [size, size], 255 inside.

    A third of the solid shapes are drawn as an outline. An unknown name is a ValueError.
    """
    if name not in SHAPES:
        raise ValueError(f"name = {name!r}: expected one of {', '.join(SHAPES)}")
    fine = size * 4
    half = fine / 2 - 3
    corners = _outline(name) * rng.uniform(0.88, 1.0, size=2)
    canvas = Image.new("L", (fine, fine), 0)
    pencil = ImageDraw.Draw(canvas)

    def fill(points: np.ndarray, value: int) -> None:
        pencil.polygon([(float(x), float(y)) for x, y in points * half + fine / 2], fill=value)

    fill(corners, 255)
    hollow = rng.random() < 0.33
    inner = rng.uniform(0.55, 0.75)
    if name == "ring":
        fill(corners * inner, 0)
    elif name == "crescent":
        fill(corners * rng.uniform(0.75, 0.9) + np.array([rng.uniform(0.3, 0.5), 0.0]), 0)
    elif hollow and name not in ("circle", "cross"):
        fill((corners - corners.mean(axis=0)) * inner + corners.mean(axis=0), 0)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX), dtype=np.uint8)


def draw_texture_mask(name: str, rng: np.random.Generator, size: int = 32) -> np.ndarray:
    """One texture covering the square: uint8 mask [size, size]. An unknown name is a ValueError."""
    if name not in TEXTURES:
        raise ValueError(f"name = {name!r}: expected one of {', '.join(TEXTURES)}")
    y, x = np.mgrid[0:size, 0:size].astype(np.float64) + rng.uniform(0, size, size=(2, 1, 1))
    period = rng.uniform(4, 11)
    sharpness = rng.uniform(2, 10)

    def wave(ramp: np.ndarray) -> np.ndarray:
        return np.asarray(np.tanh(sharpness * np.sin(2 * np.pi * ramp / period)))

    if name == "horizontal stripes":
        field = wave(y)
    elif name == "vertical stripes":
        field = wave(x)
    elif name == "diagonal stripes":
        field = wave((x + y * rng.choice([-1, 1])) / np.sqrt(2))
    elif name == "checkerboard":
        field = wave(x) * wave(y)
    elif name == "dots":
        field = np.tanh(sharpness * (np.sin(2 * np.pi * x / period) + np.sin(2 * np.pi * y / period) - 0.9))
    elif name == "noise":
        field = rng.uniform(-1, 1, size=(size, size))
    else:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = x * np.cos(angle) + y * np.sin(angle)
        field = 2 * (ramp - ramp.min()) / (ramp.max() - ramp.min()) - 1
    return np.asarray((field * 0.5 + 0.5) * 255, dtype=np.uint8)


def draw_shape(
    name: str, rng: np.random.Generator, colour: str = "white", background: str = "black", size: int = 32
) -> np.ndarray:
    """One coloured shape, turned and placed at random: uint8 image [size, size, 3]."""
    mask = Image.fromarray(shape_mask(name, rng, size))
    small = round(size * rng.uniform(0.5, 0.9))
    turned = mask.resize((small, small), Image.Resampling.BOX).rotate(
        float(rng.uniform(-15, 15)), Image.Resampling.BILINEAR
    )
    left, top = (int(v) for v in rng.integers(0, size - small + 1, size=2))
    ink = np.zeros((size, size, 1), dtype=np.float64)
    ink[top : top + small, left : left + small, 0] = np.asarray(turned, dtype=np.float64) / 255
    front, back = (np.asarray(COLOURS[c], dtype=np.float64) for c in (colour, background))
    return np.asarray(np.round(ink * front + (1 - ink) * back), dtype=np.uint8)
