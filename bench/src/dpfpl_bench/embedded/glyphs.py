"""Letters and digits rendered from the fonts that are installed on the machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["CHARACTERS", "font_glyphs", "keep_legible", "system_fonts"]

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts")


def system_fonts() -> list[Path]:
    """Every TrueType or OpenType file on this machine, in a stable order."""
    found = {path for folder in _FOLDERS for path in Path(folder).rglob("*") if path.suffix.lower() in (".ttf", ".otf")}
    return sorted(found)


def font_glyphs(font: Path, size: int = 32) -> np.ndarray | None:
    """All CHARACTERS of one font: uint8 masks [62, size, size], each filling the square; None if some are missing."""
    try:
        face = ImageFont.truetype(str(font), size * 2)
        masks = [_fitted(face, character, size) for character in CHARACTERS]
    except (OSError, ValueError):
        return None
    if any(mask is None for mask in masks):
        return None
    return np.stack([mask for mask in masks if mask is not None])


def _fitted(face: ImageFont.FreeTypeFont, character: str, size: int) -> np.ndarray | None:
    """One character as a mask [size, size], cropped to its ink and scaled so that the longer side fills the square."""
    left, top, right, bottom = (round(v) for v in face.getbbox(character))
    width, height = right - left, bottom - top
    if not (0 < width < size * 8 and 0 < height < size * 8):
        return None
    ink = Image.new("L", (width, height), 0)
    ImageDraw.Draw(ink).text((-left, -top), character, fill=255, font=face)
    ratio = (size - 2) / max(width, height)
    ink = ink.resize((max(1, round(width * ratio)), max(1, round(height * ratio))), Image.Resampling.BOX)
    canvas = Image.new("L", (size, size), 0)
    canvas.paste(ink, ((size - ink.width) // 2, (size - ink.height) // 2))
    return np.asarray(canvas, dtype=np.uint8)


def keep_legible(fonts: np.ndarray, share: float = 0.85) -> np.ndarray:
    """The fonts that look like the others: masks [fonts, 62, size, size] -> the kept ones, symbol fonts dropped.

    A font's score is the mean correlation of its characters with the average of all fonts.
    """
    flat = fonts.reshape(fonts.shape[0], fonts.shape[1], -1).astype(np.float32)
    flat -= flat.mean(axis=2, keepdims=True)
    flat /= np.linalg.norm(flat, axis=2, keepdims=True) + 1e-6
    typical = np.median(flat, axis=0)  # [62, size * size]
    typical /= np.linalg.norm(typical, axis=1, keepdims=True) + 1e-6
    score = (flat * typical).sum(axis=2).mean(axis=1)  # [fonts]
    kept: np.ndarray = fonts[score >= np.quantile(score, 1 - share)]
    return kept
