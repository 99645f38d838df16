"""Digits drawn as pen strokes: tables of control points, a pen that wobbles."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["DIGIT_STROKES", "draw_pen_digit"]

Point = tuple[float, float]
Stroke = tuple[Point, ...]

# Several ways to write each digit. A way is a tuple of strokes; a stroke is (x, y) in the unit square, y downwards.
# The pen passes smoothly through the points; a point written twice in a row makes a corner.
DIGIT_STROKES: dict[int, tuple[tuple[Stroke, ...], ...]] = {
    0: (
        (((0.5, 0.0), (0.15, 0.2), (0.1, 0.6), (0.3, 0.97), (0.65, 0.97), (0.9, 0.6), (0.85, 0.2), (0.5, 0.0)),),
        (((0.6, 0.03), (0.25, 0.15), (0.2, 0.8), (0.5, 1.0), (0.8, 0.75), (0.8, 0.25), (0.55, 0.02), (0.4, 0.05)),),
        (((0.4, 0.02), (0.05, 0.4), (0.15, 0.85), (0.5, 1.0), (0.9, 0.8), (0.95, 0.35), (0.6, 0.02), (0.35, 0.06)),),
    ),
    1: (
        (((0.5, 0.0), (0.5, 1.0)),),
        (((0.25, 0.25), (0.55, 0.0), (0.55, 0.0), (0.55, 1.0)),),
        (((0.3, 0.22), (0.55, 0.0), (0.55, 0.0), (0.55, 1.0)), ((0.25, 1.0), (0.85, 1.0))),
        (((0.62, 0.0), (0.4, 1.0)),),
        (((0.15, 0.4), (0.6, 0.0), (0.6, 0.0), (0.55, 1.0)),),
    ),
    2: (
        (((0.1, 0.25), (0.3, 0.03), (0.7, 0.03), (0.85, 0.3), (0.55, 0.65), (0.1, 1.0), (0.1, 1.0), (0.9, 1.0)),),
        (((0.1, 0.2), (0.5, 0.0), (0.8, 0.25), (0.55, 0.6), (0.15, 0.95), (0.2, 0.8), (0.5, 0.88), (0.95, 1.0)),),
        (((0.15, 0.12), (0.55, 0.0), (0.8, 0.3), (0.4, 0.75), (0.1, 0.98), (0.35, 0.85), (0.9, 0.95)),),
        (((0.1, 0.1), (0.7, 0.02), (0.8, 0.35), (0.2, 0.95), (0.2, 0.95), (0.9, 0.92)),),
    ),
    3: (
        (((0.1, 0.12), (0.5, 0.0), (0.85, 0.2), (0.45, 0.46), (0.9, 0.7), (0.6, 1.0), (0.1, 0.9)),),
        (((0.1, 0.02), (0.85, 0.02), (0.85, 0.02), (0.4, 0.4), (0.85, 0.6), (0.7, 0.97), (0.1, 0.92)),),
        (
            (
                (0.15, 0.1),
                (0.6, 0.0),
                (0.8, 0.25),
                (0.35, 0.48),
                (0.35, 0.48),
                (0.85, 0.65),
                (0.65, 0.98),
                (0.1, 0.95),
            ),
        ),
    ),
    4: (
        (((0.6, 0.0), (0.1, 0.65), (0.1, 0.65), (0.95, 0.65)), ((0.7, 0.35), (0.7, 1.0))),
        (((0.2, 0.0), (0.15, 0.5), (0.15, 0.5), (0.85, 0.5)), ((0.8, 0.0), (0.75, 1.0))),
        (((0.65, 1.0), (0.65, 0.0), (0.65, 0.0), (0.05, 0.7), (0.05, 0.7), (0.95, 0.7)),),
        (((0.3, 0.05), (0.1, 0.5), (0.45, 0.6), (0.9, 0.5)), ((0.75, 0.05), (0.6, 1.0))),
    ),
    5: (
        (
            ((0.2, 0.0), (0.15, 0.42), (0.15, 0.42), (0.6, 0.38), (0.9, 0.65), (0.65, 0.97), (0.1, 0.93)),
            ((0.2, 0.02), (0.9, 0.0)),
        ),
        (
            (
                (0.9, 0.0),
                (0.2, 0.03),
                (0.2, 0.03),
                (0.15, 0.45),
                (0.15, 0.45),
                (0.7, 0.42),
                (0.85, 0.75),
                (0.5, 1.0),
                (0.1, 0.9),
            ),
        ),
        (((0.85, 0.05), (0.35, 0.05), (0.2, 0.35), (0.65, 0.5), (0.75, 0.8), (0.45, 1.0), (0.15, 0.92)),),
    ),
    6: (
        (
            (
                (0.75, 0.0),
                (0.35, 0.25),
                (0.12, 0.7),
                (0.4, 1.0),
                (0.85, 0.85),
                (0.75, 0.55),
                (0.4, 0.55),
                (0.15, 0.75),
            ),
        ),
        (((0.45, 0.0), (0.15, 0.5), (0.25, 0.95), (0.7, 0.98), (0.8, 0.65), (0.5, 0.5), (0.2, 0.7)),),
        (((0.6, 0.0), (0.2, 0.4), (0.2, 0.9), (0.6, 1.0), (0.75, 0.75), (0.5, 0.6), (0.2, 0.85)),),
    ),
    7: (
        (((0.1, 0.03), (0.9, 0.03), (0.9, 0.03), (0.35, 1.0)),),
        (((0.1, 0.05), (0.85, 0.02), (0.85, 0.02), (0.6, 0.5), (0.45, 1.0)), ((0.3, 0.5), (0.9, 0.48))),
        (((0.1, 0.2), (0.12, 0.03), (0.12, 0.03), (0.85, 0.05), (0.85, 0.05), (0.5, 0.5), (0.4, 1.0)),),
        (((0.15, 0.1), (0.5, 0.02), (0.85, 0.1), (0.7, 0.45), (0.5, 1.0)), ((0.3, 0.55), (0.85, 0.5))),
    ),
    8: (
        (
            (
                (0.5, 0.48),
                (0.15, 0.25),
                (0.5, 0.0),
                (0.85, 0.22),
                (0.5, 0.48),
                (0.12, 0.78),
                (0.5, 1.0),
                (0.88, 0.78),
                (0.5, 0.48),
            ),
        ),
        (
            (
                (0.8, 0.12),
                (0.4, 0.0),
                (0.2, 0.25),
                (0.7, 0.6),
                (0.75, 0.9),
                (0.4, 1.0),
                (0.2, 0.8),
                (0.5, 0.5),
                (0.8, 0.12),
            ),
        ),
        (
            ((0.5, 0.0), (0.22, 0.2), (0.5, 0.45), (0.78, 0.2), (0.5, 0.0)),
            ((0.5, 0.45), (0.15, 0.72), (0.5, 1.0), (0.85, 0.72), (0.5, 0.45)),
        ),
    ),
    9: (
        (((0.85, 0.3), (0.5, 0.5), (0.15, 0.25), (0.5, 0.0), (0.85, 0.2), (0.8, 0.7), (0.7, 1.0)),),
        (((0.8, 0.15), (0.4, 0.02), (0.15, 0.3), (0.5, 0.5), (0.8, 0.2), (0.75, 0.75), (0.4, 1.0), (0.15, 0.9)),),
        (((0.75, 0.1), (0.35, 0.05), (0.2, 0.38), (0.6, 0.45), (0.78, 0.1), (0.78, 0.1), (0.75, 1.0)),),
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
    strokes = ways[int(rng.integers(len(ways)))]
    wobble = rng.uniform(0.01, 0.06)
    slant = rng.normal(0.0, 0.18)
    width_ratio = rng.uniform(0.45, 1.0)
    fine = size * 4
    pen = max(2, round(fine * rng.uniform(0.05, 0.17)))
    curves = []
    for stroke in strokes:
        points = np.asarray(stroke, dtype=np.float64)
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
