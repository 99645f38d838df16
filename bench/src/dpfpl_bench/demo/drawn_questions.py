"""Drawn pictures, questions about them, and sites that word the answers in ways of their own."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpfpl_bench.demo.drawing import COLOURS, draw_pen_digit, shape_mask
from dpfpl_client.data import ImageRecord, SiteData
from dpfpl_client.data.decode import ArrayImage, pixel_digest

__all__ = [
    "FILLERS",
    "HABITS",
    "OWN_HABITS",
    "PLAIN",
    "QUESTIONS",
    "SHAPES",
    "SHARED_HABITS",
    "SITE_HABITS",
    "SIZE",
    "TONES",
    "Facts",
    "Habit",
    "Style",
    "answer_to",
    "ask",
    "caption_of",
    "draw_picture",
    "drawn_captions",
    "drawn_houses",
    "drawn_questions",
    "drawn_sites",
    "house_style",
    "sample_facts",
    "style_words",
    "vocabulary",
    "with_neighbours",
    "write_questions",
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


# Sites that ask the tiny model about pictures of their own, each with its own way of wording answers.


SITE_HABITS = (
    Habit("words", "english"),
    Habit("figures", "german"),
    Habit("words", "french"),
    Habit("figures", "french"),
    Habit("words", "german"),
)
"""None is the model's own; the first sites get one each, then they repeat."""


def drawn_sites(count: int, train: int, test: int, seed: int, *, captions: bool = False) -> list[SiteData]:
    """Sites with ``train`` and ``test`` questions each, one a picture; the others' tests are a site's neighbour tests.

    With ``captions`` nothing is asked, and everything about a picture is the answer.

    The pictures are drawn from the seed; the model's training did not use them.
    """
    draw = drawn_captions if captions else drawn_questions
    sites = []
    for number in range(count):
        habit = SITE_HABITS[number % len(SITE_HABITS)]
        parts = draw(habit, "train", train, (seed, number, 0)), draw(habit, "test", test, (seed, number, 1))
        sites.append(SiteData(*parts, (), (), ()))
    return with_neighbours(sites)


def drawn_houses(count: int, train: int, test: int, seed: int) -> list[SiteData]:
    """Sites that share most of a style; the first ones are the same however many there are.

    They have no neighbour tests: what is right at one house is wrong at another, by habit alone.
    """
    sites = []
    for number in range(count):
        style = house_style(number)
        parts = (
            drawn_questions(style, "train", train, (seed, number, 0)),
            drawn_questions(style, "test", test, (seed, number, 1)),
        )
        sites.append(SiteData(*parts, (), (), ()))
    return sites


def with_neighbours(sites: Sequence[SiteData]) -> list[SiteData]:
    """The same sites, each with the other sites' tests as its neighbour tests."""
    return [
        dataclasses.replace(
            site, neighbour_test=tuple(record for other in sites if other is not site for record in other.test)
        )
        for site in sites
    ]


def write_questions(folder: Path, site: SiteData) -> Path:
    """A site's questions as an administrator would have them: pictures and a file of JSON lines; the file's path."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, record in enumerate((*site.train, *site.test)):
        name = f"pictures/{number:04d}.png"
        record.source.read().save(folder / name)
        asked = {"question": record.question} if record.question else {}
        line = {"image": name, **asked, "answer": record.label, "split": record.split}
        lines.append(json.dumps(line, ensure_ascii=False))
    path = folder / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def drawn_questions(habit: Habit | Style, split: str, count: int, seed: tuple[int, ...]) -> tuple[ImageRecord, ...]:
    """Questions about ``count`` pictures in a habit's words, or a style's; another changes the answers only."""

    def asked(facts: Facts, rng: np.random.Generator) -> tuple[str, str]:
        kind, question = ask(facts, rng)
        return question, answer_to(kind, facts, habit if isinstance(habit, Habit) else habit[question])

    return _drawn(asked, split, count, (20_261_125, *seed))


def drawn_captions(habit: Habit, split: str, count: int, seed: tuple[int, ...]) -> tuple[ImageRecord, ...]:
    """Captions of ``count`` pictures in a habit's words."""

    def captioned(facts: Facts, _: np.random.Generator) -> tuple[str, str]:
        return "", caption_of(facts, habit)

    return _drawn(captioned, split, count, (20_261_127, *seed))


def _drawn(
    said: Callable[[Facts, np.random.Generator], tuple[str, str]], split: str, count: int, seed: tuple[int, ...]
) -> tuple[ImageRecord, ...]:
    """``count`` pictures with the question and the answer that ``said`` gives to their facts."""
    rng = np.random.Generator(np.random.PCG64(seed))
    records = []
    for number in range(count):
        facts = sample_facts(rng)
        question, answer = said(facts, rng)
        pixels = draw_picture(facts, rng)
        digest = pixel_digest(Image.fromarray(pixels))
        records.append(ImageRecord(f"{split}/{number}", answer, digest, split, ArrayImage(pixels), question=question))
    return tuple(records)
