"""Questions about a picture, and the ways in which houses word the answers: figures or words, in three languages."""

from dataclasses import dataclass

import numpy as np

from dpfpl_bench.tiny_vlm.pictures import SHAPES, TONES, Facts

__all__ = [
    "FILLERS", "HABITS", "PLAIN", "QUESTIONS", "Habit", "answer_to", "ask", "caption_of", "style_words", "vocabulary",
]  # fmt: skip

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
