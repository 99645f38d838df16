"""A dual encoder's scorer against a plain loop: one gradient an example, cheaper estimates, right answers."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch

from dpfpl_client.learning.learner import PersonalState, PromptLearner
from dpfpl_client.learning.step import Randomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.class_scorer import (
    ClassPredictor,
    ClassScorer,
    class_probabilities,
    label_against_rivals,
    per_example_gradients,
)
from dpfpl_client.models.text_tower.plain import PlainTextTower
from dpfpl_common.experiment import GradientSettings
from dpfpl_common.privacy.sampling import SeededSampler

NAMES = ("cat", "traffic light", "a very long class name", "dog")
MODES = {
    "plain": contextlib.nullcontext,
    "gradients on around it": torch.enable_grad,
    "without oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
}
ESTIMATES = [
    GradientSettings(),
    GradientSettings(classes=2),
    GradientSettings("bfloat16", 2),
    GradientSettings("bfloat16", 3),
    GradientSettings("bfloat16"),
]
OTHERS = [0, 1, 2, 4, 5, 6, 7, 8]


def problem(backbone, dtype=torch.float32, batch=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    context = backbone.text_embeddings("a photo of a", 4)
    context = context + 0.1 * torch.randn(context.shape, generator=generator, dtype=torch.float64).to(dtype)
    features = torch.randn(batch, backbone.feature_size, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(len(NAMES), (batch,), generator=generator)
    return context, backbone.class_tokens(NAMES, 4), torch.nn.functional.normalize(features, dim=1), labels


def plain_gradient(backbone, context, tokens, features, labels):
    """By autograd on the loss itself, through Hugging Face's own forward on whole prompts."""
    leaf = context.clone().requires_grad_(True)
    tower = PlainTextTower(backbone._model.text_model, backbone._model.text_projection)
    text = torch.nn.functional.normalize(tower(leaf, tokens), dim=-1)
    torch.nn.functional.cross_entropy(backbone.logit_scale * features @ text.T, labels, reduction="sum").backward()
    return leaf.grad


@pytest.fixture(params=[("double_backbone", torch.float64, 1e-10), ("backbone", torch.float32, 1e-5)], ids=["64", "32"])
def case(request):
    name, dtype, tolerance = request.param
    return request.getfixturevalue(name), dtype, tolerance


@pytest.mark.privacy
@pytest.mark.parametrize("batch", [1, 9, 64, 65])
@pytest.mark.parametrize("mode", MODES)
def test_P12_every_row_is_the_gradient_of_its_own_example(case, mode, batch):
    backbone, dtype, tolerance = case
    context, tokens, features, labels = problem(backbone, dtype, batch)
    with MODES[mode]():
        ours = per_example_gradients(backbone, context, tokens, features, labels)
    assert (ours.shape, ours.dtype) == ((batch, 4, backbone.width), dtype)
    for i in range(batch) if batch < 10 else (0, batch // 2, batch - 1):
        theirs = plain_gradient(backbone, context, tokens, features[i : i + 1], labels[i : i + 1])
        assert (ours[i] - theirs).norm() <= tolerance * theirs.norm()
    theirs = plain_gradient(backbone, context, tokens, features, labels)
    assert (ours.sum(dim=0) - theirs).norm() <= 10 * tolerance * theirs.norm()


@pytest.mark.privacy
@pytest.mark.parametrize("mode", MODES)
def test_P12_another_examples_image_label_and_size_change_no_bit_of_a_row(case, mode):
    backbone, dtype, _ = case
    context, tokens, features, labels = problem(backbone, dtype)
    with MODES[mode]():
        before = per_example_gradients(backbone, context, tokens, features, labels)
        assert torch.equal(before, per_example_gradients(backbone, context, tokens, features, labels))
        for factor in (-1.0, 1e6, 0.0, float("nan"), float("inf")):
            changed, relabelled = features.clone(), labels.clone()
            changed[3] *= factor
            relabelled[3] = (relabelled[3] + 1) % len(NAMES)
            after = per_example_gradients(backbone, context, tokens, changed, relabelled)
            assert torch.equal(before[OTHERS], after[OTHERS]), factor
            assert not torch.allclose(before[3], after[3])


@pytest.mark.privacy
def test_leaving_one_example_out_leaves_the_other_rows(case):
    """Up to the rounding of another batch shape; docs/explanation/mechanism.md's note on rounding covers the rest."""
    backbone, dtype, tolerance = case
    context, tokens, features, labels = problem(backbone, dtype)
    whole = per_example_gradients(backbone, context, tokens, features, labels)
    without = per_example_gradients(backbone, context, tokens, features[1:], labels[1:])
    assert (whole[1:] - without).norm() <= tolerance / 10 * whole[1:].norm()
    assert per_example_gradients(backbone, context, tokens, features[:0], labels[:0]).shape == (0, 4, backbone.width)


@pytest.mark.privacy
def test_P12_the_model_has_no_layer_that_mixes_examples_and_none_that_is_random(backbone):
    per_example_gradients(backbone, *problem(backbone))
    modules = list(backbone._model.modules())
    assert not any(isinstance(module, torch.nn.modules.batchnorm._NormBase) for module in modules)
    assert not any(module.training for module in modules), "dropout must be off"
    assert all(p.grad is None and not p.requires_grad for p in backbone._model.parameters())


def test_the_total_is_the_weighted_sum_of_rows(case):
    backbone, dtype, tolerance = case
    context, tokens, features, labels = problem(backbone, dtype, batch=30)
    weights = torch.linspace(-1, 2, 30).to(dtype)
    weights[4] = 0.0
    rows = per_example_gradients(backbone, context, tokens, features, labels)
    features[4] = float("nan")  # of no weight, so absent
    scorer = ClassScorer(backbone, tokens)
    total = scorer.total_gradient(context, LabelledFeatures(features, labels), weights)
    expected = torch.tensordot(weights, rows, dims=1)
    assert (total - expected).norm() <= 10 * tolerance * expected.norm()
    nothing = scorer.total_gradient(context, LabelledFeatures(features[:0], labels[:0]), weights[:0])
    assert torch.equal(nothing, torch.zeros_like(context))


# Cheaper estimates: they change no sensitivity, for what they give is what is clipped.


def test_a_few_classes_are_the_label_and_its_strongest_rivals_and_still_sum_to_zero(double_backbone):
    backbone = double_backbone
    context, tokens, features, labels = problem(backbone, torch.float64)
    text = backbone.text_features(context, tokens)
    probabilities = torch.softmax(backbone.logit_scale * features @ text.T, dim=1)
    for count in (2, 3, len(NAMES), 7):
        kept = torch.zeros_like(probabilities)
        for row, label in enumerate(labels.tolist()):
            rivals = sorted(set(range(len(NAMES))) - {label}, key=lambda c: -float(probabilities[row, c]))
            for rival in rivals[: count - 1]:
                kept[row, rival] = backbone.logit_scale * probabilities[row, rival]
            kept[row, label] = -kept[row].sum()
        cotangents = kept[:, :, None] * features[:, None]
        theirs = backbone.text_pass(context, tokens).pullback(cotangents)
        ours = per_example_gradients(backbone, context, tokens, features, labels, GradientSettings(classes=count))
        assert ((ours - theirs).flatten(1).norm(dim=1) <= 1e-10 * theirs.flatten(1).norm(dim=1)).all()
    exact = per_example_gradients(backbone, context, tokens, features, labels)
    assert (ours - exact).norm() <= 1e-10 * exact.norm()


def test_rows_that_do_not_sum_to_zero_keep_the_labels_own_entry():
    """As a sigmoid's do, where every class is judged alone."""
    scales = torch.tensor([[0.1, -0.7, 0.3, 0.2], [-0.9, 0.4, 0.5, 0.6]])
    kept = label_against_rivals(scales, torch.tensor([1, 0]), 2, balanced=False)
    assert torch.equal(kept, torch.tensor([[0.0, -0.7, 0.3, 0.2], [-0.9, 0.0, 0.5, 0.6]]))


def test_two_of_many_classes_take_the_way_that_costs_two(double_backbone, monkeypatch):
    """The shortcut for a few classes is taken: it once was not, and the result was the same, only slower."""
    from dpfpl_client.models.text_tower import fast as text_pass

    taken = []
    shortcut = text_pass.few_classes_pullback
    monkeypatch.setattr(text_pass, "few_classes_pullback", lambda *a, **k: taken.append(1) or shortcut(*a, **k))
    given = problem(double_backbone, torch.float64)
    per_example_gradients(double_backbone, *given, GradientSettings(classes=2))
    assert taken
    per_example_gradients(double_backbone, *given)
    assert len(taken) == 1


def test_rounded_products_change_a_gradient_by_a_few_percent_at_most(backbone):
    given = problem(backbone, batch=40)
    exact = per_example_gradients(backbone, *given)
    for classes in (0, 4):
        rounded = per_example_gradients(backbone, *given, GradientSettings("bfloat16", classes))
        relative = (rounded - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
        assert 1e-6 < relative.max() < 0.05


@pytest.mark.privacy
@pytest.mark.parametrize("estimate", ESTIMATES, ids=str)
def test_an_estimate_is_a_function_of_its_own_example_alone(backbone, estimate):
    """What keeps the sensitivity of a sum of clipped rows: no row looks at another example."""
    context, tokens, features, labels = problem(backbone)
    before = per_example_gradients(backbone, context, tokens, features, labels, estimate)
    features[3], labels[3] = -features[3], (labels[3] + 1) % len(NAMES)
    after = per_example_gradients(backbone, context, tokens, features, labels, estimate)
    assert torch.equal(before[OTHERS], after[OTHERS])
    assert not torch.allclose(before[3], after[3])
    without = per_example_gradients(backbone, context, tokens, features[:3], labels[:3], estimate)
    assert (without - before[:3]).norm() <= 1e-2 * before[:3].norm()


@pytest.mark.privacy
@pytest.mark.parametrize("estimate", ESTIMATES[2:], ids=str)
def test_NI10_one_example_more_changes_no_bit_of_what_the_others_add(backbone, estimate):
    """Wherever it stands and however many there are; in float32 the last bits may differ."""
    context, tokens, features, labels = problem(backbone, batch=36)
    whole = per_example_gradients(backbone, context, tokens, features, labels, estimate)
    for kept in (*map(range, (1, 3, 17, 33)), *([n for n in range(36) if n != left_out] for left_out in (0, 20, 35))):
        rest = list(kept)
        fewer = per_example_gradients(backbone, context, tokens, features[rest], labels[rest], estimate)
        assert torch.equal(fewer, whole[rest])


NORM = 1e-3


@pytest.fixture
def released(backbone, make_experiment, make_features, recording_noise):
    """The un-noised sum that one step with every one of ``count`` examples hands to the noise source."""

    def run(estimate, count):
        experiment = make_experiment(
            width=backbone.width, classes=NAMES, local_steps=1, sample_rate=1.0, clipping_norm=NORM,
            method="promptfl", sites=1, tolerated_colluders=0,
        )  # fmt: skip
        experiment = dataclasses.replace(experiment, gradients=estimate)
        noise = recording_noise()
        learner = PromptLearner(backbone, experiment, make_features(3, backbone.feature_size, NAMES, count))
        sources = Randomness(noise, SeededSampler(np.random.default_rng(1)), np.random.default_rng(2))
        learner.train_round(np.zeros(experiment.context_shape, np.float32), PersonalState.initial(experiment), sources)
        ((total, _),) = noise.calls
        return total

    return run


@pytest.mark.privacy
@pytest.mark.parametrize("estimate", ESTIMATES, ids=str)
def test_one_example_moves_a_step_by_at_most_the_clipping_norm(released, estimate):
    """Gradients are far longer than the norm, so a sum that was not clipped after the estimate would show."""
    total = released(estimate, 1)
    assert np.linalg.norm(total) == pytest.approx(NORM, rel=1e-6)
    assert np.linalg.norm(released(estimate, 6)) <= 6 * NORM * (1 + 1e-6)


def test_a_learner_uses_the_estimate_that_the_experiment_names(released):
    sums = [released(estimate, 6) for estimate in ESTIMATES]
    assert len({each.tobytes() for each in sums}) == len(sums)


# What a prompt is worth: right answers among all the experiment's classes.


def test_probabilities_are_the_softmax_of_scaled_cosines(backbone):
    context, tokens, features, _ = problem(backbone)
    expected = torch.softmax(backbone.logit_scale * features @ backbone.text_features(context, tokens).T, dim=1)
    assert torch.allclose(class_probabilities(backbone, context, tokens, features), expected, atol=1e-6)


def test_accuracy_is_the_share_of_right_answers(backbone):
    context, tokens, *_ = problem(backbone)
    text = backbone.text_features(context, tokens)
    predictor, images = ClassPredictor(backbone, text), text[[0, 1, 2, 0]]
    for labels, expected in (([0, 1, 2, 0], 1.0), ([0, 1, 2, 1], 0.75), ([1, 2, 0, 1], 0.0)):
        assert float(predictor.agreement(LabelledFeatures(images, torch.tensor(labels))).mean()) == expected
    empty = LabelledFeatures(text[:0], torch.zeros(0, dtype=torch.long))
    assert len(predictor.agreement(empty)) == 0
