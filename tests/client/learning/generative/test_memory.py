"""What is kept of pictures, how much memory a micro-batch takes, and how long turns and answers may be."""

import dataclasses
import json
import logging

import pytest
import torch
from PIL import Image

from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.class_scorer import EXACT
from dpfpl_client.models.generative import backbone as backbones
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import ModelError
from dpfpl_common.experiment import TaskSettings
from random_models.families import write_random_model

M = 3


@pytest.fixture
def context(model):
    return 0.5 * torch.randn(M, model.width, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def fresh(folder):
    """The model, with nothing kept; only where the beginning of a turn is shared."""
    found = load_backbone(str(folder))
    if not found.language.shared:
        pytest.skip("whole turns are computed; nothing is kept")
    return found


@pytest.fixture
def computed(fresh, monkeypatch):
    """How many pictures' keys and values were computed, call by call."""
    counts, headed = [], fresh.language._headed
    monkeypatch.setattr(fresh.language, "_headed", lambda rows: counts.append(len(rows)) or headed(rows))
    return counts


def test_a_pictures_keys_and_values_are_computed_once(fresh, computed, examples, context, vqa_experiment):
    scorer = fresh.scorer(vqa_experiment(fresh))
    first = scorer.gradients(context, examples, EXACT)
    assert sum(computed) == len(examples)
    again = scorer.gradients(context + 0.1, examples, EXACT)
    assert sum(computed) == len(examples)
    assert not torch.equal(first, again)


def test_pictures_that_differ_in_their_last_number_are_not_mistaken(fresh, examples, context, vqa_experiment):
    other = examples.features[0].clone()
    other[-1 - (fresh.language._depth - 1) * fresh.width] += 1.0  # of the last vector that stands in a token's place
    rows = torch.stack([examples.features[0], other])
    both = LabelledFeatures(rows, torch.zeros(2, dtype=torch.long), (examples.asked[0], examples.asked[0]))
    scorer = fresh.scorer(vqa_experiment(fresh))
    scorer.gradients(context, examples, EXACT)  # the first one is kept now
    one, two = scorer.gradients(context, both, EXACT)
    assert float((one - two).norm() / one.norm()) > 1e-4


def test_what_is_kept_stays_within_its_bound_and_the_oldest_goes_first(
    fresh, computed, examples, context, vqa_experiment, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("dpfpl_client"), "propagate", True)  # as it is before an agent process
    language, scorer = fresh.language, fresh.scorer(vqa_experiment(fresh))
    language.prefix(examples.features[:1])
    each = language._kept_bytes
    assert each > 0
    fresh.hold(2 * each)
    for row in examples.features[1:]:
        language.prefix(row[None])
        held = [
            k.numel() * k.element_size() + v.numel() * v.element_size() for r in language._kept.values() for k, v in r
        ]
        assert sum(held) == language._kept_bytes <= 2 * each
    told = {id(record) for record in caplog.records if "picture_memory" in record.getMessage()}
    assert len(told) == 1
    del computed[:]
    language.prefix(examples.features[-2:])
    assert computed == []
    language.prefix(examples.features[:1])
    assert computed == [1]
    fresh.hold(each // 2)
    assert (len(language._kept), language._kept_bytes) == (0, 0)
    expected = load_backbone(str(fresh.tokenizer.name_or_path)).scorer(vqa_experiment(fresh))
    found = scorer.gradients(context, examples, EXACT)
    assert torch.allclose(found, expected.gradients(context, examples, EXACT), rtol=1e-4, atol=1e-6)


def test_a_micro_batch_keeps_about_as_much_as_it_is_reckoned_to(model, examples, context, vqa_experiment):
    """Within a factor of four below and of one and a half above, of what the backward pass really keeps."""
    language, scorer = model.language, model.scorer(vqa_experiment(model))
    same = LabelledFeatures(examples.features, examples.labels, (examples.asked[1],) * len(examples))
    (part,) = scorer._parts(context, same.asked, same.features)
    weights = {weight.data_ptr() for weight in model._model.parameters()}
    if language.shared:
        language.prefix(part.pictures)
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = scorer._losses(context.expand(len(same), -1, -1).clone().requires_grad_(True), part)
    length = M + part.questions.shape[1] + part.answers.shape[1]
    assert losses.requires_grad
    if not language.shared:  # one layer is made again and held while the backward pass is in it; that is not seen here
        return
    reckoned = language.activation_bytes / language.examples_within(length)
    assert reckoned / 4 < sum(kept.values()) / len(same) < 1.5 * reckoned


def test_micro_batches_are_cut_where_memory_ends(fresh, examples, context, vqa_experiment):
    scorer = fresh.scorer(vqa_experiment(fresh))
    same = [examples.asked[0]] * len(examples)
    assert [len(part.index) for part in scorer._parts(context, same, examples.features)] == [len(examples)]
    length = M + sum(len(ids) for ids in (fresh.layout.question_ids(same[0][0]), fresh.layout.answer_ids(same[0][1])))
    fresh.language.activation_bytes = 2.5 * fresh.language.activation_bytes / fresh.language.examples_within(length)
    sizes = [len(part.index) for part in scorer._parts(context, same, examples.features)]
    assert sum(sizes) == len(examples)
    assert max(sizes) == 2


def test_rows_depend_on_how_pictures_are_prepared(folder, model, monkeypatch):
    assert load_backbone(str(folder)).feature_identity == model.feature_identity
    quirks = backbones.FAMILIES[model.family]
    other = dataclasses.replace(quirks, processor_options={**quirks.processor_options, "do_convert_rgb": True})
    monkeypatch.setattr(backbones, "FAMILIES", {**backbones.FAMILIES, model.family: other})
    assert load_backbone(str(folder)).feature_identity != model.feature_identity
    monkeypatch.undo()
    if model.turn["square"]:
        monkeypatch.setattr(backbones, "_edge", lambda quirks, config: 2 * model.turn["square"])
        assert load_backbone(str(folder)).feature_identity != model.feature_identity


@pytest.fixture(scope="module")
def short_models(tmp_path_factory):
    """Models made for turns of 64 tokens, whose rotary positions change once a turn was longer."""
    found = {}
    for kind, more in (
        ("default", {}),
        ("dynamic", {"factor": 4.0}),
        ("longrope", {"original_max_position_embeddings": 64, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}),
    ):
        folder = write_random_model("llava", tmp_path_factory.mktemp(kind))
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["max_position_embeddings"] = 256 if kind == "longrope" else 64
        config["text_config"]["rope_parameters"] = {"rope_type": kind, "rope_theta": 10000.0, **more}
        (folder / "config.json").write_text(json.dumps(config))
        found[kind] = load_backbone(str(folder))
    return found


@pytest.mark.privacy
@pytest.mark.parametrize("kind", ["default", "dynamic", "longrope"])
def test_a_turn_that_is_too_long_teaches_nothing_and_changes_no_others_gradient(kind, short_models, vqa_experiment):
    model = short_models[kind]
    assert model.language.longest == 64
    generator = torch.Generator().manual_seed(2)
    rows = 0.5 * torch.randn(3, model.feature_size, generator=generator)
    context = 0.5 * torch.randn(M, model.width, generator=generator)
    long = ("what " * 60, "red")
    short = (("what colour is it?", "red"), ("what is it?", "a dog"))
    scorer = model.scorer(vqa_experiment(model))
    two = LabelledFeatures(rows[:2], torch.zeros(2, dtype=torch.long), short)
    three = LabelledFeatures(rows, torch.zeros(3, dtype=torch.long), (*short, long))
    before = scorer.gradients(context, two, EXACT)
    found = scorer.gradients(context, three, EXACT)
    assert torch.equal(found[2], torch.zeros_like(found[2]))
    assert torch.equal(found[:2], before)
    assert torch.equal(scorer.gradients(context, two, EXACT), before)
    total = scorer.total_gradient(context, three, torch.ones(3))
    assert torch.allclose(total, before.sum(dim=0), rtol=1e-4, atol=1e-6)
    predictor = scorer.at(context)
    assert predictor.answers(three)[2] == ""
    with pytest.raises(ModelError) as caught:
        predictor.reply(rows[0], long[0])
    assert caught.value.code == "TURN_TOO_LONG"


def test_nothing_is_spoken_beyond_the_longest_turn(short_models, vqa_experiment):
    model = short_models["default"]
    task = TaskSettings(kind="vqa", max_answer_tokens=500)
    predictor = model.scorer(vqa_experiment(model, task=task)).at(torch.zeros(M, model.width))
    row = torch.zeros(model.feature_size)
    question = "what is it?"
    said, _ = predictor._spoken(next(iter(predictor._scorer._parts(predictor._context, [(question, "")], row[None]))))[
        0
    ]
    used = len(model.layout.head) + M + len(model.layout.question_ids(question)) + len(said)
    assert used <= 64


def test_a_class_name_that_does_not_fit_is_refused_at_once(short_models, vqa_experiment):
    model = short_models["default"]
    with pytest.raises(ModelError, match="'cat'") as caught:
        model.scorer(vqa_experiment(model, num_context=50, task=TaskSettings(), classes=("cat", "bird")))
    assert caught.value.code == "PROMPT_TOO_LONG"


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
