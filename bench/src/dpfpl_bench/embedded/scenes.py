"""Scenes: what one training picture shows, as words, drawn at random."""

from __future__ import annotations

import string
from dataclasses import dataclass, fields, replace

import numpy as np

from .drawing import COLOURS, SHAPES, TEXTURES

__all__ = ["NUMBER_WORDS", "POSITIONS", "Scene", "facts_of", "named_scenes", "sample_scene"]

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
POSITIONS = (
    "top left",
    "top",
    "top right",
    "left",
    "centre",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
_QUALITIES = ("plain", "pixelated", "blurry", "noisy")
_KINDS = ("digit", "letter", "shape", "shapes", "texture")


@dataclass(frozen=True)
class Scene:
    """One picture in words. An empty string stands for what the picture leaves open.

    kind: digit, letter, shape or texture; name: "7", "k", "star", "dots";
    style: handwritten, printed, uppercase, lowercase; size: small, medium, large; position: one of POSITIONS, only for
    small things; count: "1" to "4"; quality: plain, pixelated, blurry, noisy.
    """

    kind: str
    name: str
    style: str
    colour: str
    background: str
    size: str
    position: str
    count: str
    quality: str


_FIELDS = tuple(field.name for field in fields(Scene))
_VALUES: dict[str, int] = {
    value: code
    for code, value in enumerate(
        dict.fromkeys(
            (
                *("digit", "letter", "shape", "texture"),
                *string.digits,
                *string.ascii_lowercase,
                *SHAPES,
                *TEXTURES,
                *("handwritten", "printed", "uppercase", "lowercase"),
                *COLOURS,
                *("small", "medium", "large"),
                *POSITIONS,
                *_QUALITIES,
            )
        )
    )
}


def facts_of(scene: Scene, told: frozenset[str] | None = None) -> np.ndarray:
    """The scene as codes, int64 [9]: -2 for what it leaves open; with `told`, -1 for the fields it does not name."""
    codes = [_VALUES.get(getattr(scene, name), -2) for name in _FIELDS]
    if told is not None:
        codes = [code if name in told else -1 for name, code in zip(_FIELDS, codes, strict=True)]
    return np.asarray(codes, dtype=np.int64)


def _pick(rng: np.random.Generator, options: tuple[str, ...], chances: tuple[float, ...] | None = None) -> str:
    return options[int(rng.choice(len(options), p=chances))]


def _colours(rng: np.random.Generator, writing: bool) -> tuple[str, str]:
    """Foreground and background that can be told apart; writing is mostly white on black or black on white."""
    if writing and (kind := rng.random()) < 0.6:
        return ("white", "black") if kind < 0.42 else ("black", "white")
    names = tuple(COLOURS)
    while True:
        front, back = _pick(rng, names), _pick(rng, names)
        if np.abs(np.subtract(COLOURS[front], COLOURS[back])).sum() > 240:
            return front, back


def named_scenes() -> list[Scene]:
    """One scene for each thing that has a name: digits, letters, shapes, textures; all else left open."""
    things = [
        *(("digit", name) for name in string.digits),
        *(("letter", name) for name in string.ascii_lowercase),
        *(("shape", name) for name in SHAPES),
        *(("texture", name) for name in TEXTURES),
    ]
    return [Scene(kind, name, "", "", "", "", "", "1", "plain") for kind, name in things]


def sample_scene(rng: np.random.Generator, ease: float = 0.0) -> Scene:
    """One scene at random: nearly half are digits, a quarter letters, the rest shapes and textures.

    With the chance `ease`, in 0 to 1, it is a plain large thing, white on black.
    """
    scene = _any_scene(rng)
    if rng.random() >= ease:
        return scene
    size = "" if scene.kind == "texture" else "large"
    plain = {"colour": "white", "background": "black", "size": size, "position": "", "count": "1", "quality": "plain"}
    return replace(scene, **plain)


def _any_scene(rng: np.random.Generator) -> Scene:
    kind = _pick(rng, _KINDS, (0.46, 0.24, 0.18, 0.06, 0.06))
    writing = kind in ("digit", "letter")
    colour, background = _colours(rng, writing)
    quality = _pick(rng, _QUALITIES, (0.4, 0.4, 0.1, 0.1) if writing else (0.65, 0.1, 0.1, 0.15))
    style, size, position, count = "", "", "", "1"
    if kind == "digit":
        name = str(int(rng.integers(10)))
        style = _pick(rng, ("handwritten", "printed"))
    elif kind == "letter":
        name = _pick(rng, tuple(string.ascii_lowercase))
        style = _pick(rng, ("uppercase", "lowercase"))
    elif kind == "texture":
        name = _pick(rng, TEXTURES)
    else:
        name = _pick(rng, SHAPES)
        if kind == "shapes":
            kind, count = "shape", str(int(rng.integers(2, 5)))
    if kind != "texture" and count == "1":
        chances = (0.07, 0.18, 0.75) if writing else (0.4, 0.3, 0.3)
        size = _pick(rng, ("small", "medium", "large"), chances)
        if size == "small":
            position = _pick(rng, POSITIONS)
            quality = "plain" if quality == "pixelated" else quality
    return Scene(kind, name, style, colour, background, size, position, count, quality)
