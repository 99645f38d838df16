"""bfloat16: half the memory, gradients near the exact ones, and the same guarantee, for clipping is in float64."""

import dataclasses

import numpy as np
import pytest
import torch
from plain_generative import plain_loss, plain_model

from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.class_scorer import EXACT
from dpfpl_client.models.generative import language
from dpfpl_client.models.generative.template import FAMILIES
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import ModelError
from random_models.families import write_random_model

M = 3


@pytest.fixture(scope="module")
def rough(folder):
    return load_backbone(str(folder), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def rough_examples(rough, pictures, examples):
    rows = torch.stack(list(rough.image_features(pictures)))
    return LabelledFeatures(rows, examples.labels, examples.asked)


@pytest.fixture
def context(model):
    return 0.5 * torch.randn(M, model.width, generator=torch.Generator().manual_seed(1))


def test_weights_are_half_as_large_and_all_that_comes_out_is_float32(rough, rough_examples, context, vqa_experiment):
    assert {weight.dtype for weight in rough._model.parameters()} == {torch.bfloat16}
    scorer = rough.scorer(vqa_experiment(rough))
    total = scorer.total_gradient(context, rough_examples, torch.ones(len(rough_examples)))
    found = (rough_examples.features, rough.text_embeddings("a", 2), scorer.gradients(context, rough_examples, EXACT))
    assert {each.dtype for each in (*found, total)} == {torch.float32}


def test_gradients_are_as_near_the_exact_ones_as_plain_bfloat16(
    folder, model, rough, pictures, examples, rough_examples, context, vqa_experiment
):
    exact = model.scorer(vqa_experiment(model)).gradients(context, examples, EXACT)
    scorer = rough.scorer(vqa_experiment(rough))
    found = scorer.gradients(context, rough_examples, EXACT)
    assert not torch.equal(found, exact)
    stock, plain = plain_model(folder, torch.bfloat16), torch.zeros_like(exact)
    for picture, asked, row in zip(pictures, examples.asked, plain, strict=True):
        leaf = context.clone().requires_grad_(True)
        row += torch.autograd.grad(plain_loss(stock, rough, picture, leaf.bfloat16(), *asked), leaf)[0]
    theirs = float((plain - exact).norm() / exact.norm())
    assert float((found - exact).norm() / exact.norm()) < max(0.2, 1.5 * theirs)
    assert float(torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0)) > 0.9


@pytest.mark.privacy
def test_ni10_examples_more_change_no_bit_of_what_the_others_add(rough, pictures, examples, context, vqa_experiment):
    """From the picture to the gradient and to the answer, whatever is computed beside it: longer, or as long."""
    others, found = list(zip(pictures, examples.asked, strict=True)), []
    more = [(pictures[1], ("what colour is it?", "dark " * 20 + "green")), (pictures[1], ("what is it?", "a dog"))]
    for some in (others, [*more, *others]):
        rough.language.forget()
        rows = torch.stack(list(rough.image_features([picture for picture, _ in some])))
        these = LabelledFeatures(rows, torch.zeros(len(rows), dtype=torch.long), tuple(asked for _, asked in some))
        scorer = rough.scorer(vqa_experiment(rough))
        found.append((rows, scorer.gradients(context, these, EXACT), scorer.at(context).answers(these)))
    fewer, beside = found
    assert torch.equal(fewer[0], beside[0][2:])
    assert torch.equal(fewer[1], beside[1][2:])
    assert fewer[2] == beside[2][2:]


@pytest.mark.privacy
def test_one_example_more_moves_a_release_by_the_clipping_norm_at_most(rough, rough_examples, vqa_experiment):
    """One step that everybody joins, the same noise with and without the last example."""
    experiment = vqa_experiment(rough, clipping_norm=0.01, sample_rate=1.0, trust="local", local_steps=1)
    experiment = dataclasses.replace(experiment, rounds=dataclasses.replace(experiment.rounds, local_steps=1))
    randomness = SeededRandomness(0)
    updates = []
    for some in (rough_examples, rough_examples.take(np.arange(len(rough_examples) - 1))):
        learner = PromptLearner(rough, experiment, SiteFeatures(some, some, some, ()))
        zero = np.zeros((M, rough.width), np.float32)
        result = learner.train_round(zero, PersonalState.initial(experiment), randomness.for_round("s0", 1))
        updates.append(result.update)
    divisor = experiment.privacy.sample_rate * experiment.privacy.nominal_site_size
    moved = float(np.linalg.norm(updates[0] - updates[1])) * divisor
    assert 0.0099 < moved <= 0.01 * (1 + 1e-9)


def test_who_sees_ahead_is_found_whatever_rounding_would_hide(folder, rough, monkeypatch):
    """Where the picture's part depends on what follows, it is not shared, however coarse the comparison of the ways."""
    assert rough.language.shared == load_backbone(str(folder)).language.shared
    monkeypatch.setitem(language.TOLERANCE, torch.bfloat16, 10.0)
    again = load_backbone(str(folder), dtype=torch.bfloat16)
    assert again.language.shared == rough.language.shared
    if FAMILIES[rough.family].sees_ahead == "prefix":
        assert not again.language.shared


def test_rows_of_two_precisions_are_kept_apart_and_the_model_is_the_same(model, rough):
    assert model.feature_identity != rough.feature_identity
    assert model.fingerprint == rough.fingerprint


def test_models_that_only_compare_refuse_it(tmp_path):
    folder = write_random_model("clip", tmp_path)
    with pytest.raises(ModelError, match="float32 only") as caught:
        load_backbone(str(folder), dtype=torch.bfloat16)
    assert caught.value.code == "PRECISION_UNUSABLE"
