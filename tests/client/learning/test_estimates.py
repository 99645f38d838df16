"""Cheaper gradient estimates change no sensitivity: what they give is what is clipped."""

import dataclasses

import numpy as np
import pytest
import torch

from dpfpl_client.learning.learner import PersonalState, PromptLearner
from dpfpl_client.learning.step import Randomness
from dpfpl_client.models.class_scorer import per_example_gradients
from dpfpl_common.experiment import GradientSettings
from dpfpl_common.privacy.sampling import SeededSampler

pytestmark = pytest.mark.privacy

CLASSES = ("cat", "dog", "tree", "boat")
ESTIMATES = [
    GradientSettings(),
    GradientSettings(classes=2),
    GradientSettings("bfloat16", 3),
    GradientSettings("bfloat16"),
]
NORM = 1e-3


@pytest.fixture
def released(backbone, make_experiment, make_features, recording_noise):
    """The un-noised sum that one step with every one of ``count`` examples hands to the noise source."""

    def run(estimate, count):
        experiment = make_experiment(
            width=backbone.width, classes=CLASSES, local_steps=1, sample_rate=1.0, clipping_norm=NORM,
            method="promptfl", sites=1, tolerated_colluders=0,
        )  # fmt: skip
        experiment = dataclasses.replace(experiment, gradients=estimate)
        noise = recording_noise()
        learner = PromptLearner(backbone, experiment, make_features(3, backbone.feature_size, CLASSES, count))
        sources = Randomness(noise, SeededSampler(np.random.default_rng(1)), np.random.default_rng(2))
        learner.train_round(np.zeros(experiment.context_shape, np.float32), PersonalState.initial(experiment), sources)
        return noise.calls[0][0]

    return run


@pytest.mark.parametrize("estimate", ESTIMATES, ids=str)
def test_one_example_moves_a_step_by_at_most_the_clipping_norm(released, estimate):
    """Gradients are far longer than the norm, so a sum that was not clipped after the estimate would show."""
    total = released(estimate, 1)
    assert np.linalg.norm(total) == pytest.approx(NORM, rel=1e-6)
    assert np.linalg.norm(released(estimate, 6)) <= 6 * NORM * (1 + 1e-6)


def test_a_learner_uses_the_estimate_that_the_experiment_names(released):
    sums = [released(estimate, 6) for estimate in ESTIMATES]
    assert len({each.tobytes() for each in sums}) == len(sums)


@pytest.mark.parametrize("estimate", ESTIMATES[2:], ids=str)
def test_NI10_one_example_more_changes_no_bit_of_what_the_others_add(backbone, estimate):
    """Wherever it stands and however many there are; in float32 the last bits may differ."""
    generator = torch.Generator().manual_seed(0)
    context, tokens = backbone.text_embeddings("a photo of a", 4), backbone.class_tokens(CLASSES, 4)
    features = torch.nn.functional.normalize(torch.randn(36, backbone.feature_size, generator=generator), dim=1)
    labels = torch.randint(len(CLASSES), (36,), generator=generator)
    whole = per_example_gradients(backbone, context, tokens, features, labels, estimate)
    for count in (1, 3, 17, 33):
        fewer = per_example_gradients(backbone, context, tokens, features[:count], labels[:count], estimate)
        assert torch.equal(fewer, whole[:count])
    for left_out in (0, 20, 35):
        rest = [number for number in range(36) if number != left_out]
        fewer = per_example_gradients(backbone, context, tokens, features[rest], labels[rest], estimate)
        assert torch.equal(fewer, whole[rest])
