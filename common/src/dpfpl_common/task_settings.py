"""What is asked of the model: a class for an image, an answer to a question about it, or a caption."""

from collections.abc import Sequence
from dataclasses import dataclass

from dpfpl_common.value_checks import choice, impossible, within

__all__ = ["LONGEST_QUESTION", "TASKS", "TaskSettings", "check_task", "unprintable"]

TASKS = ("classify", "vqa", "caption")
LONGEST_QUESTION = 1000

JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner: Persian words and composed emoji are written with them."""


@dataclass(frozen=True)
class TaskSettings:
    """What is asked of the model.

    Attributes:
        kind: ``classify``, one of the experiment's classes for an image; for generative models ``vqa``, an answer in
            words to a question on an image, or ``caption``, words about an image to the one question below or to none.
            Of the latter two the list of classes is empty: what sites ask and answer is their own.
        question: of ``classify`` with a generative model: asked of every image; empty: a plain one. Of ``caption``:
            asked of every image whose line asks nothing itself; empty: nothing is asked.
        max_answer_tokens: of ``vqa`` and ``caption``: longer answers are cut off when the prompt is tested.
    """

    kind: str = "classify"
    question: str = ""
    max_answer_tokens: int = 8

    @property
    def in_words(self) -> bool:
        """Whether answers are a site's own words, not one of the experiment's classes."""
        return self.kind != "classify"


def check_task(task: TaskSettings, classes: Sequence[str]) -> None:
    """Refuse impossible values, and classes where questions are asked.

    Raises:
        ConfigError: naming the key, the value and what was expected.
    """
    choice("task.kind", task.kind, TASKS)
    within("task.max_answer_tokens", task.max_answer_tokens, 1, 1024)
    if len(task.question) > LONGEST_QUESTION or unprintable(task.question):
        raise impossible("task.question", task.question, f"one printable line of at most {LONGEST_QUESTION} characters")
    if task.in_words and classes:
        expected = f"an empty list: with the task {task.kind}, answers are the sites' own words"
        raise impossible("classes", classes, expected)


def unprintable(text: str) -> str:
    """The first character that belongs in no line of text, of a question or an answer; empty if all do."""
    return next((char for char in text if not char.isprintable() and char not in JOINERS), "")
