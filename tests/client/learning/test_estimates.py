"""Cheaper gradient estimates change no sensitivity: what they give is what is clipped."""

import dataclasses

import numpy as np
import pytest

from dpfpl_client.learning.learner import PersonalState, PromptLearner
from dpfpl_client.learning.step import Randomness
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
