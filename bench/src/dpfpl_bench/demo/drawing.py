"""Shapes and textures drawn from a numpy generator, nothing read from disk."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

__all__ = [
    "COLOURS",
    "SHAPES",
    "TEXTURES",
    "draw_pen_digit",
    "draw_texture_mask",
    "shape_mask",
]


# Digits drawn as pen strokes: tables of control points, a pen that wobbles.


# Several ways to write each digit: strokes between slashes, points "x,y" in hundredths of the square, y downwards.
# The pen passes smoothly through the points; a point written twice in a row makes a corner.
DIGIT_STROKES = {
    0: (
        "50,0 15,20 10,60 30,97 65,97 90,60 85,20 50,0",
        "60,3 25,15 20,80 50,100 80,75 80,25 55,2 40,5",
        "40,2 5,40 15,85 50,100 90,80 95,35 60,2 35,6",
    ),
    1: (
        "50,0 50,100",
        "25,25 55,0 55,0 55,100",
        "30,22 55,0 55,0 55,100 / 25,100 85,100",
        "62,0 40,100",
        "15,40 60,0 60,0 55,100",
    ),
    2: (
        "10,25 30,3 70,3 85,30 55,65 10,100 10,100 90,100",
        "10,20 50,0 80,25 55,60 15,95 20,80 50,88 95,100",
        "15,12 55,0 80,30 40,75 10,98 35,85 90,95",
        "10,10 70,2 80,35 20,95 20,95 90,92",
    ),
    3: (
        "10,12 50,0 85,20 45,46 90,70 60,100 10,90",
        "10,2 85,2 85,2 40,40 85,60 70,97 10,92",
        "15,10 60,0 80,25 35,48 35,48 85,65 65,98 10,95",
    ),
    4: (
        "60,0 10,65 10,65 95,65 / 70,35 70,100",
        "20,0 15,50 15,50 85,50 / 80,0 75,100",
        "65,100 65,0 65,0 5,70 5,70 95,70",
        "30,5 10,50 45,60 90,50 / 75,5 60,100",
    ),
    5: (
        "20,0 15,42 15,42 60,38 90,65 65,97 10,93 / 20,2 90,0",
        "90,0 20,3 20,3 15,45 15,45 70,42 85,75 50,100 10,90",
        "85,5 35,5 20,35 65,50 75,80 45,100 15,92",
    ),
    6: (
        "75,0 35,25 12,70 40,100 85,85 75,55 40,55 15,75",
        "45,0 15,50 25,95 70,98 80,65 50,50 20,70",
        "60,0 20,40 20,90 60,100 75,75 50,60 20,85",
    ),
    7: (
        "10,3 90,3 90,3 35,100",
        "10,5 85,2 85,2 60,50 45,100 / 30,50 90,48",
        "10,20 12,3 12,3 85,5 85,5 50,50 40,100",
        "15,10 50,2 85,10 70,45 50,100 / 30,55 85,50",
    ),
    8: (
        "50,48 15,25 50,0 85,22 50,48 12,78 50,100 88,78 50,48",
        "80,12 40,0 20,25 70,60 75,90 40,100 20,80 50,50 80,12",
        "50,0 22,20 50,45 78,20 50,0 / 50,45 15,72 50,100 85,72 50,45",
    ),
    9: (
        "85,30 50,50 15,25 50,0 85,20 80,70 70,100",
        "80,15 40,2 15,30 50,50 80,20 75,75 40,100 15,90",
        "75,10 35,5 20,38 60,45 78,10 78,10 75,100",
    ),
}


def _through(points: np.ndarray, steps: int = 8) -> np.ndarray:
    """A Catmull-Rom curve through points [n, 2], as [(n - 1) * steps + 1, 2]."""
    padded = np.concatenate([points[:1], points, points[-1:]])  # [n + 2, 2]
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]  # [steps, 1]
    pieces = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate([*pieces, points[-1:]])


def draw_pen_digit(digit: int, rng: np.random.Generator, size: int = 32) -> np.ndarray:
    """One digit written by hand: uint8 mask [size, size], 255 where the ink is, filling most of the square."""
    ways = DIGIT_STROKES[digit]
    strokes = ways[int(rng.integers(len(ways)))].split(" / ")
    wobble = rng.uniform(0.01, 0.06)
    slant = rng.normal(0.0, 0.18)
    width_ratio = rng.uniform(0.45, 1.0)
    fine = size * 4
    pen = max(2, round(fine * rng.uniform(0.05, 0.17)))
    curves = []
    for stroke in strokes:
        points = np.array([point.split(",") for point in stroke.split()], dtype=np.float64) / 100
        moved = points + rng.normal(0.0, wobble, points.shape)
        # A repeated point is a corner: both copies move together.
        same = np.all(points[1:] == points[:-1], axis=1)
        moved[1:][same] = moved[:-1][same]
        curve = _through(moved)
        curve[:, 0] = (curve[:, 0] - 0.5) * width_ratio - slant * (curve[:, 1] - 0.5)
        curves.append(curve)
    everything = np.concatenate(curves)
    low, high = everything.min(axis=0), everything.max(axis=0)
    scale = (fine - pen - 4) / max(float((high - low).max()), 1e-6)
    canvas = Image.new("L", (fine, fine), 0)
    pencil = ImageDraw.Draw(canvas)
    for curve in curves:
        ink = (curve - (low + high) / 2) * scale + fine / 2
        dots = [(float(x), float(y)) for x, y in ink]
        pencil.line(dots, fill=255, width=pen, joint="curve")
        for x, y in dots[:: max(1, len(dots) // 2 - 1)]:
            pencil.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX), dtype=np.uint8)


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

    A third of the solid shapes are drawn as an outline.
    """
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
    """One texture covering the square: uint8 mask [size, size]."""
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
