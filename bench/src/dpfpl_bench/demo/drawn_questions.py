"""Questions about a picture, and the ways in which houses word the answers: figures or words, in three languages."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpfpl_bench.demo.drawing import COLOURS, draw_pen_digit, shape_mask

__all__ = [
    "FILLERS",
    "HABITS",
    "OWN_HABITS",
    "PLAIN",
    "QUESTIONS",
    "SHAPES",
    "SHARED_HABITS",
    "SIZE",
    "TONES",
    "Facts",
    "Habit",
    "Style",
    "answer_to",
    "ask",
    "caption_of",
    "draw_picture",
    "house_style",
    "sample_facts",
    "style_words",
    "vocabulary",
]


# Pictures with facts: one to four equal shapes of one colour, or one coloured digit written by a pen.


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


QUESTIONS = {
    "count": ("how many shapes are there?", "count the shapes.", "what is the number of shapes?"),
    "shape": ("what shape is it?", "which shape is shown?", "name the shape."),
    "colour": ("what colour is it?", "which colour is shown?", "name the colour."),
    "digit": ("which digit is written?", "what digit is it?", "read the digit."),
}
LANGUAGES = ("english", "german", "french")
NUMBERS = {
    "english": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "german": ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"),
    "french": ("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"),
}
WORDS = {
    "german": {
        "circle": "kreis", "square": "quadrat", "triangle": "dreieck", "star": "stern", "cross": "kreuz",
        "heart": "herz", "red": "rot", "green": "grün", "blue": "blau", "yellow": "gelb", "white": "weiß",
        "pink": "rosa",
    },
    "french": {
        "circle": "cercle", "square": "carré", "triangle": "triangle", "star": "étoile", "cross": "croix",
        "heart": "cœur", "red": "rouge", "green": "vert", "blue": "bleu", "yellow": "jaune", "white": "blanc",
        "pink": "rose",
    },
}  # fmt: skip
FILLERS = ("please", "answer", "the", "question", "about", "this", "picture", "look", "and", "say", "it", "in")


@dataclass(frozen=True)
class Habit:
    """How a house words its answers: numbers as ``figures`` or ``words``, everything in one language."""

    numbers: str = "figures"
    language: str = "english"


PLAIN = Habit()
"""The habit that the model answers with when nothing in front of the question says otherwise."""

HABITS = tuple(Habit(numbers, language) for language in LANGUAGES for numbers in ("figures", "words"))


Style = Mapping[str, Habit]
"""A house's habit for every wording of a question."""

SHARED_HABITS = {
    "count": Habit("words", "german"),
    "shape": Habit("words", "german"),
    "digit": Habit("words", "german"),
    "colour": Habit("words", "french"),
}
"""What houses agree on. No words before the question say it: the model was trained on one habit at a time."""

OWN_HABITS = {
    "count": (Habit("figures"), Habit("words", "english"), Habit("words", "french")),
    "shape": (Habit("words", "english"), Habit("words", "french")),
    "digit": (Habit("figures"), Habit("words", "english"), Habit("words", "french")),
}


def house_style(number: int) -> Style:
    """The shared habits, but for one wording, about one question in fifteen, which the house answers in its own way."""
    kinds = tuple(OWN_HABITS)
    kind = kinds[number % len(kinds)]
    own = OWN_HABITS[kind]
    shared = {wording: SHARED_HABITS[each] for each, wordings in QUESTIONS.items() for wording in wordings}
    return {**shared, QUESTIONS[kind][number // 2 % 3]: own[number // len(kinds) % len(own)]}


def ask(facts: Facts, rng: np.random.Generator) -> tuple[str, str]:
    """A kind of question that the picture answers, and one wording of it."""
    kinds = ("digit", "colour") if facts.digit is not None else ("count", "shape", "colour")
    kind = kinds[rng.integers(len(kinds))]
    return kind, QUESTIONS[kind][rng.integers(len(QUESTIONS[kind]))]


def answer_to(kind: str, facts: Facts, habit: Habit) -> str:
    """The right answer in a house's wording."""
    if kind in ("count", "digit"):
        number = facts.count if facts.digit is None else facts.digit
        return str(number) if habit.numbers == "figures" else NUMBERS[habit.language][number]
    plain = facts.shape if kind == "shape" else facts.colour
    return plain if habit.language == "english" else WORDS[habit.language][plain]


def caption_of(facts: Facts, habit: Habit) -> str:
    """All that is to be said of a picture, in a house's wording: ``3 red circle``, ``rouge sept``."""
    kinds = ("count", "colour", "shape") if facts.digit is None else ("colour", "digit")
    return " ".join(answer_to(kind, facts, habit) for kind in kinds)


def style_words(habit: Habit, rng: np.random.Generator) -> list[str]:
    """Words before the question that ask for a habit, among others that mean nothing; a default is seldom said."""
    words = [FILLERS[index] for index in rng.integers(0, len(FILLERS), rng.integers(1, 6))]
    for said, default in ((habit.numbers, PLAIN.numbers), (habit.language, PLAIN.language)):
        if said != default or rng.random() < 0.15:
            words.insert(int(rng.integers(0, len(words) + 1)), said)
    return words


def vocabulary() -> list[str]:
    """Every word that questions, answers and words before a question can have, sorted."""
    texts = [text for wordings in QUESTIONS.values() for text in wordings]
    words = {word for text in texts for word in text.replace("?", " ?").replace(".", " .").split()}
    words |= {*FILLERS, *LANGUAGES, "figures", "words", *SHAPES, *TONES, *map(str, range(10))}
    words |= {word for names in NUMBERS.values() for word in names}
    words |= {word for names in WORDS.values() for word in names.values()}
    return sorted(words)
