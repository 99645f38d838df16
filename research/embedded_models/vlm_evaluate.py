"""What the tiny model can do: ``python -m research.embedded_models.vlm_evaluate [DIR]``."""

import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpfpl_bench.demo.drawn_questions import HABITS, PLAIN, Habit, drawn_questions
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.generative.scorer import AnswerScorer
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import TaskSettings

__all__ = ["Ability", "abilities", "main"]

TESTS = 400
START = "please answer the question"


@dataclass(frozen=True)
class Ability:
    """Accuracy on questions that expect a habit: with the plain initial text, and with the habit's words in front."""

    habit: Habit
    plain_text: float
    told: float


def abilities(model: str, tests: int = TESTS) -> list[Ability]:
    """For every habit, on the same freshly drawn pictures."""
    from dpfpl_client.models.generative.backbone import GenerativeBackbone

    backbone = load_backbone(model)
    assert isinstance(backbone, GenerativeBackbone)
    scorer = AnswerScorer(backbone.language, backbone.layout, TaskSettings(kind="vqa"), ())
    found = []
    rows: Tensor | None = None
    for habit in HABITS:
        records = drawn_questions(habit, "test", tests, (99, 0, 1))
        if rows is None:
            rows = torch.stack(list(backbone.image_features(record.open() for record in records)))
        asked = tuple((record.question, record.label) for record in records)
        examples = LabelledFeatures(rows, torch.zeros(len(rows), dtype=torch.long), asked)
        told = " ".join(
            said
            for said, default in ((habit.numbers, PLAIN.numbers), (habit.language, PLAIN.language))
            if said != default
        )
        accuracies = [
            scorer.at(backbone.text_embeddings(text, backbone.num_tokens(text))).agreement(examples).mean().item()
            for text in (START, f"please answer {told} the question".replace("  ", " "))
        ]
        found.append(Ability(habit, *accuracies))
    return found


def main() -> None:
    """Entry point: a table in Markdown."""
    torch.set_num_threads(1)
    model = sys.argv[1] if len(sys.argv) > 1 else "embedded-vlm"
    found = abilities(model)
    print(f'| Expected answers | "{START}" | the habit named in front |\n|---|---|---|')
    for each in found:
        print(f"| {each.habit.numbers}, {each.habit.language} | {each.plain_text:.1%} | {each.told:.1%} |")
    mean = [np.mean([getattr(each, name) for each in found]) for name in ("plain_text", "told")]
    print(f"| mean | {mean[0]:.1%} | {mean[1]:.1%} |")


if __name__ == "__main__":
    main()
