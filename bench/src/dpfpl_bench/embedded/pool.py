"""The pool: every mask that training draws from, rendered once in several processes."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from .drawing import SHAPES, TEXTURES, draw_texture_mask, shape_mask
from .glyphs import CHARACTERS, font_glyphs, keep_legible, system_fonts
from .strokes import draw_pen_digit

__all__ = ["Pool", "build_pool"]

Group = tuple[str, str, str]


@dataclass(frozen=True)
class Pool:
    """Masks uint8 [n, 32, 32] and, for each group (kind, name, style), the rows that belong to it."""

    masks: np.ndarray
    rows: dict[Group, np.ndarray]
    num_fonts: int


def _pen_digits(digit: int, seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng([seed, digit])
    return np.stack([draw_pen_digit(digit, rng) for _ in range(count)])


def build_pool(seed: int, pen_digits: int = 1500, drawings: int = 150, max_fonts: int | None = None) -> Pool:
    """Render `pen_digits` masks per digit, `drawings` per shape and texture, and at most `max_fonts` fonts."""
    paths = system_fonts()
    if max_fonts is not None and len(paths) > max_fonts:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, max_fonts).astype(int)]
    if not paths:
        raise ValueError("no font found under /usr/share/fonts: expected at least one .ttf or .otf file")
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as workers:
        pens = list(workers.map(_pen_digits, range(10), [seed] * 10, [pen_digits] * 10))
        fonts = [glyphs for glyphs in workers.map(font_glyphs, paths, chunksize=8) if glyphs is not None]
    groups: dict[Group, np.ndarray] = {("digit", str(d), "handwritten"): pens[d] for d in range(10)}
    legible = keep_legible(np.stack(fonts))
    for column, character in enumerate(CHARACTERS):
        if character.isdigit():
            groups["digit", character, "printed"] = legible[:, column]
        else:
            style = "uppercase" if character.isupper() else "lowercase"
            groups["letter", character.lower(), style] = legible[:, column]
    rng = np.random.default_rng([seed, 10])
    for name in SHAPES:
        groups["shape", name, ""] = np.stack([shape_mask(name, rng) for _ in range(drawings)])
    for name in TEXTURES:
        groups["texture", name, ""] = np.stack([draw_texture_mask(name, rng) for _ in range(drawings)])
    rows, start = {}, 0
    for group, masks in groups.items():
        rows[group] = np.arange(start, start + len(masks))
        start += len(masks)
    return Pool(np.concatenate(list(groups.values())), rows, len(legible))
