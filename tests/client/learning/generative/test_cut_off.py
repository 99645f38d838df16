"""Which right answers no prompt can say, because the task ends answers before."""

import torch
from PIL import Image

from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import TaskSettings


def test_an_answer_of_exactly_as_many_tokens_as_may_be_said_can_be_right(vqa_experiment):
    """What counts as cut off is what accuracy can never count as right, however the model answers."""
    model = load_backbone("embedded-vlm")
    scorer = model.scorer(vqa_experiment(model, task=TaskSettings(kind="caption", max_answer_tokens=1)))
    (row,) = model.image_features([Image.new("RGB", (32, 32), (200, 0, 0))])
    predictor = scorer.at(model.text_embeddings("red blue", 2))

    def with_answer(answer):
        return LabelledFeatures(
            row[None], torch.zeros(1, dtype=torch.long), (("which colour , and how many ?", answer),)
        )

    (said,) = predictor.answers(with_answer("any"))
    assert len(said.split()) == 1
    assert predictor.agreement(with_answer(said)).mean() == 1.0
    assert scorer.cut_off([said, said.upper(), f"{said}."]) == 0
    longer = f"{said} red"
    assert predictor.agreement(with_answer(longer)).mean() < 1.0
    assert scorer.cut_off([longer, said, longer]) == 2
