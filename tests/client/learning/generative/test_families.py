"""Every generative family against plain Hugging Face: the context's place, exact gradients, what is spoken."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from plain_generative import in_double, plain_logits, plain_loss, plain_model, plain_turn

from dpfpl_client.data.questions import word_overlap
from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.class_scorer import EXACT
from dpfpl_client.models.generative.language import LanguageModel
from dpfpl_client.models.generative.template import FAMILIES
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import ModelError
from dpfpl_common.experiment import GradientSettings, TaskSettings
from random_models.generative import GENERATIVE

M = 3
RECURRENT = ("qwen3_5",)
"""Whose layers keep a state that is not keys and values."""


@pytest.fixture(scope="package")
def stock(folder):
    return plain_model(folder)


def test_every_family_is_tried():
    assert {name.partition("/")[0] for name in GENERATIVE} == set(FAMILIES)


@pytest.fixture
def context(model):
    return 0.5 * torch.randn(M, model.width, generator=torch.Generator().manual_seed(1))


def test_the_context_is_put_where_the_plain_forward_with_inputs_embeds_has_it(
    stock, model, pictures, examples, context, vqa_experiment
):
    scorer = model.scorer(vqa_experiment(model))
    (part, *_) = [p for p in scorer._parts(context, examples.asked, examples.features) if 1 in p.index.tolist()]
    behind = torch.cat(
        [context.expand(1, -1, -1), model.language.embed(part.questions), model.language.embed(part.answers[:, :-1])], 1
    )
    answer = part.answers.shape[1] - 1
    ours = model.language.logits(model.language.states(part.pictures, behind, answer))[0]
    theirs = plain_turn(stock, model, pictures[1], context, *examples.asked[1])[-len(ours) :]
    exact = plain_turn(in_double(stock), model, pictures[1], context.double(), *examples.asked[1])[-len(ours) :]
    off, rounding = (float((logits - exact).norm() / exact.norm()) for logits in (ours, theirs))
    assert off < 10 * rounding  # which depends on the processor, and is up to ten times larger in recurrent layers
    assert rounding < 1e-4


def test_gradients_are_those_of_single_examples(stock, model, pictures, examples, context, vqa_experiment):
    scorer = model.scorer(vqa_experiment(model))
    ours = scorer.gradients(context, examples, EXACT)
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0])
    total = torch.zeros_like(context)
    for picture, asked, mine, weight in zip(pictures, examples.asked, ours, weights, strict=True):
        leaf = context.clone().requires_grad_(True)
        single = torch.autograd.grad(plain_loss(stock, model, picture, leaf, *asked), leaf)[0]
        assert float((mine - single).norm() / single.norm()) < 1e-4
        total += weight * single
    found = scorer.total_gradient(context, examples, weights)
    assert float((found - total).norm() / total.norm()) < 1e-4
    nothing = examples.take(np.array([], dtype=np.int64))
    assert scorer.gradients(context, nothing, EXACT).shape == (0, M, model.width)


def test_an_example_changes_its_own_gradient_only(model, examples, context, vqa_experiment):
    scorer = model.scorer(vqa_experiment(model))
    before = scorer.gradients(context, examples, EXACT)
    asked = (*examples.asked[:3], ("what colour is it?", "something else entirely"), examples.asked[4])
    after = scorer.gradients(context, type(examples)(examples.features, examples.labels, asked), EXACT)
    assert not torch.allclose(before[3], after[3])
    others = [0, 1, 2, 4]
    assert torch.allclose(before[others], after[others], rtol=1e-4, atol=1e-6)


def test_memory_bound_gradients_are_the_same(model, examples, context, vqa_experiment, monkeypatch):
    scorer = model.scorer(vqa_experiment(model))
    expected = scorer.gradients(context, examples, EXACT)
    monkeypatch.setattr("dpfpl_client.models.generative.scorer.AT_ONCE", 1)
    assert torch.allclose(scorer.gradients(context, examples, EXACT), expected, rtol=1e-4, atol=1e-6)


def otherwise(folder, shared):
    """The model once more, the other way."""
    other = load_backbone(str(folder))
    was = other.language
    options = {"depth": was._depth, "grid": was._grid, "shared": shared}
    other.language = LanguageModel(other._model, other.layout, FAMILIES[other.family], **options)
    return other


def test_whole_turns_are_the_same_function_where_the_beginning_is_shared(
    folder, model, examples, context, vqa_experiment
):
    """Layers recomputed instead of kept, nothing shared; and the trial's choice is right where it chose that."""
    shared = model.language.shared
    assert shared == (FAMILIES[model.family].sees_ahead != "prefix" and model.family not in RECURRENT)
    other = otherwise(folder, not shared)
    ours, theirs = model.scorer(vqa_experiment(model)), other.scorer(vqa_experiment(model))
    if model.family in RECURRENT:
        with pytest.raises(IndexError):
            theirs.gradients(context, examples, EXACT)
        return
    expected, found = ours.gradients(context, examples, EXACT), theirs.gradients(context, examples, EXACT)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5) == shared
    if shared:
        assert theirs.at(context).answers(examples) == ours.at(context).answers(examples)


def test_the_whole_way_keeps_no_layers_activations(folder, examples, monkeypatch):
    """Of recomputed layers only their inputs stay for the backward pass."""
    language = otherwise(folder, False).language

    def kept():
        sizes = []
        behind = torch.randn(len(examples), 8, language.width, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            language.states(examples.features, behind, 2)
        return sum(sizes)

    recomputed = kept()
    monkeypatch.setattr("dpfpl_client.models.generative.language._Recomputed", lambda decoder: contextlib.nullcontext())
    assert recomputed < kept() / 2


def test_greedy_answers_and_how_probable_they_are_are_hugging_faces_own(
    stock, model, pictures, examples, context, vqa_experiment
):
    predictor, layout = model.scorer(vqa_experiment(model)).at(context), model.layout
    spoken = predictor.answers(examples)
    for number, (picture, (question, _)) in enumerate(zip(pictures, examples.asked, strict=True)):
        ids, expected = [], 1.0
        for _ in range(5):
            logits = plain_logits(stock, model, picture, context, layout.question_ids(question), ids)
            likely = torch.softmax(logits[-1], dim=-1)
            expected *= float(likely.max())
            if int(likely.argmax()) == layout.end_id:
                break
            ids.append(int(likely.argmax()))
        assert spoken[number] == layout.text_of(ids)
        if number < 2:
            answer, probability = predictor.reply(examples.features[number], question)
            assert (answer, probability) == (spoken[number], pytest.approx(expected, rel=1e-3))


def test_classification_scores_the_names_as_whole_answers(stock, model, pictures, examples, context, vqa_experiment):
    classes = ("red", "a small dog", "bird")
    task = TaskSettings(question="what is it?")
    predictor = model.scorer(vqa_experiment(model, task=task, classes=classes)).at(context)
    found = predictor.probabilities(examples.features[:2])
    for picture, row in zip(pictures, found, strict=False):
        scores = []
        for name in classes:
            length = len(model.layout.answer_ids(name))
            scores.append(-length * plain_loss(stock, model, picture, context, "what is it?", name))
        assert torch.allclose(row, torch.softmax(torch.stack(scores), dim=0), atol=1e-4)


def test_whole_rounds_move_both_parts(model, examples, vqa_experiment):
    experiment = vqa_experiment(model, trust="distributed")
    learner = PromptLearner(model, experiment, SiteFeatures(examples, examples, examples, ()))
    state, shared = PersonalState.initial(experiment), np.zeros((M, model.width), np.float32)
    for number in (1, 2):
        result = learner.train_round(shared, state, SeededRandomness(0).for_round("s0", number))
        state = result.state
        assert np.isfinite(result.update).all()
        assert result.update.any()
    assert state.context.any()
    metrics = learner.evaluate(shared, state.context)
    assert all(0 <= value <= 1 for value in metrics.values())
    assert "personal_neighbour" in metrics


def test_what_has_no_meaning_is_refused(model, vqa_experiment):
    classes = {"classes": ("a", "b"), "task": TaskSettings()}
    with pytest.raises(ModelError, match="one_shot") as caught:
        model.scorer(vqa_experiment(model, mechanism="one_shot", trust="local", **classes))
    assert caught.value.code == "NO_CLASS_FEATURES"
    pulled = vqa_experiment(model, **classes)
    pulled = dataclasses.replace(pulled, prompt=dataclasses.replace(pulled.prompt, retention=0.5))
    with pytest.raises(ModelError, match="retention"):
        model.scorer(pulled)
    experiment = dataclasses.replace(vqa_experiment(model, **classes), gradients=GradientSettings(classes=2))
    with pytest.raises(ModelError) as caught:
        model.scorer(experiment)
    assert caught.value.code == "NO_ESTIMATES"
    with pytest.raises(ModelError) as caught:
        model.scorer(vqa_experiment(model)).at(torch.zeros(M, model.width)).probabilities(
            torch.zeros(1, model.feature_size)
        )
    assert caught.value.code == "NO_CLASSES"


def test_captions_answer_the_public_question_or_none_and_are_measured_by_their_words(
    stock, model, pictures, examples, context, vqa_experiment
):
    answers = [answer for _, answer in examples.asked]
    captions = type(examples)(examples.features, examples.labels, tuple(("", answer) for answer in answers))
    for question in ("", "what is it?"):
        task = TaskSettings(kind="caption", question=question, max_answer_tokens=5)
        scorer = model.scorer(vqa_experiment(model, task=task))
        asked = type(examples)(examples.features, examples.labels, tuple((question, answer) for answer in answers))
        vqa = model.scorer(vqa_experiment(model))
        assert torch.equal(scorer.gradients(context, captions, EXACT), vqa.gradients(context, asked, EXACT))
        leaf = context.clone().requires_grad_(True)
        single = torch.autograd.grad(plain_loss(stock, model, pictures[1], leaf, question, answers[1]), leaf)[0]
        mine = scorer.gradients(context, captions.take(np.array([1])), EXACT)[0]
        assert float((mine - single).norm() / single.norm()) < 1e-4
        spoken = scorer.at(context).answers(captions)
        overlaps = [word_overlap(said, answer) for said, answer in zip(spoken, answers, strict=True)]
        assert scorer.at(context).agreement(captions).mean().item() == pytest.approx(sum(overlaps) / len(overlaps))
