"""Captions: one of many ways to say what a scene shows, with a note of what was said."""

from __future__ import annotations

import string
from dataclasses import dataclass, fields, replace

import numpy as np

from dpfpl_bench.demo.drawing import COLOURS, SHAPES, TEXTURES
from research.embedded_models.clip_tokenizer import FILLER_WORDS

__all__ = [
    "NUMBER_WORDS",
    "POSITIONS",
    "TEMPLATES",
    "Scene",
    "facts_of",
    "named_scenes",
    "sample_scene",
    "write_caption",
    "write_name",
]


# Scenes: what one training picture shows, as words, drawn at random.


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


TEMPLATES = (
    "a photo of {}",
    "a photo of {}.",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "this is {}",
    "this is a photo of {}",
    "a close-up of {}",
    "a bad photo of {}",
    "a rendering of {}",
    "a low resolution photo of {}",
    "a cropped image showing {}",
    "here you see {}",
    "the picture shows {}",
    "this is a rather small picture which shows {}.",
    "itap of {}",
    "an example of {}",
    "{}",
    "{}.",
)


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' and not words.startswith('one') else 'a'} {words}"


def _noun(scene: Scene, rng: np.random.Generator) -> tuple[str, bool]:
    """The thing's name without article, and whether it takes one."""
    if scene.kind == "digit":
        word = NUMBER_WORDS[int(scene.name)]
        spelled = word if rng.random() < 0.7 else scene.name
        frame = rng.choice(["{}", "{}", "{}", "digit {}", "number {}", "numeral {}"])
        return str(frame).format(spelled), True
    if scene.kind == "letter":
        frame = rng.choice(["letter {}", "letter {}", "{}", "character {}"])
        return str(frame).format(scene.name), True
    if scene.kind == "texture":
        return f"{scene.name} texture" if scene.name in ("noise", "gradient", "checkerboard") else scene.name, False
    if scene.count != "1":
        plural = {"cross": "crosses"}.get(scene.name, scene.name + "s")
        return f"{NUMBER_WORDS[int(scene.count)]} {plural}", False
    return scene.name, True


def write_name(scene: Scene, rng: np.random.Generator, ease: float = 0.0) -> tuple[str, frozenset[str]]:
    """A caption, lower-case, that says kind, name and count alone; and those fields' names.

    Sometimes the name follows unrelated words instead of a template: prompts may put anything before a class name.
    With the chance `ease`, in 0 to 1, it is the name alone.
    """
    noun, countable = _noun(scene, rng)
    told = frozenset({"kind", "name", "count"})
    if rng.random() < ease:
        return noun, told
    if rng.random() < 0.2:
        words = rng.choice(FILLER_WORDS, int(rng.integers(1, 17)))
        return " ".join([*words, noun]) + ("." if rng.random() < 0.5 else ""), told
    the = rng.random() < 0.3 and noun.startswith(("digit", "number", "letter"))
    return str(rng.choice(TEMPLATES)).format(f"the {noun}" if the else _article(noun) if countable else noun), told


def write_caption(scene: Scene, rng: np.random.Generator) -> tuple[str, frozenset[str]]:
    """A caption, lower-case, and the names of the Scene's fields that it states: mostly more than the thing's name."""
    way = rng.random()
    if way < 0.25:
        return write_name(scene, rng)
    template = str(rng.choice(TEMPLATES))
    if way < 0.3 and scene.style and scene.kind == "digit":
        return template.format(_article(f"{scene.style} digit")), frozenset({"kind", "style", "count"})
    noun, countable = _noun(scene, rng)
    told = {"kind", "name", "count"}
    before, after = _details(scene, rng, told)
    if scene.count != "1":
        count, plural = noun.split(" ", 1)
        phrase = " ".join([count, *before, plural])
    else:
        phrase = " ".join([*before, noun])
        phrase = _article(phrase) if countable else phrase
    return template.format(" ".join([phrase, *after])), frozenset(told)


def _details(scene: Scene, rng: np.random.Generator, told: set[str]) -> tuple[list[str], list[str]]:
    """Some of what else is true of the scene: words before the noun and after it. Adds to `told` what they state."""
    before: list[str] = []
    after: list[str] = []

    def say(field: str, words: str, where: list[str], chance: float) -> None:
        if rng.random() < chance:
            where.append(words)
            told.add(field)

    if scene.size in ("small", "large"):
        say("size", scene.size, before, 0.3)
    if scene.quality != "plain":
        say("quality", scene.quality, before, 0.25)
    if scene.style:
        style = "capital" if scene.style == "uppercase" and rng.random() < 0.5 else scene.style
        say("style", style, before, 0.4)
    say("colour", scene.colour, before, 0.6)
    if scene.position:
        where = "in the centre" if scene.position == "centre" else f"at the {scene.position}"
        say("position", where, after, 0.6)
    if rng.random() < 0.4:
        told.add("background")
        after.append(f"on {_article(scene.background)} background")
    return before, after
