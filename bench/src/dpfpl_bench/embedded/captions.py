"""Captions: one of many ways to say what a scene shows, with a note of what was said."""

from __future__ import annotations

import numpy as np

from .scenes import NUMBER_WORDS, Scene
from .words import FILLER_WORDS

__all__ = ["TEMPLATES", "write_caption", "write_name"]

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
