"""one_shot: sensitivity 1 of the noised class sums, and what is made of them afterwards."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpfpl_client.learning.prototypes import noised_class_sums, prototypes_from
from dpfpl_common.errors import PrivacyError
from dpfpl_common.noise import SeededNoise, SystemNoise

pytestmark = pytest.mark.privacy

CLASSES, SIZE = 5, 12


class Recording:
    """Adds nothing; remembers what it was asked to add, and where."""

    is_private = False

    def __init__(self):
        self.calls = []

    def add(self, total, noise_stddev):
        self.calls.append((total.shape, noise_stddev))
        return total


def examples(count, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, SIZE))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return (unit * scale).astype(np.float32), rng.integers(0, CLASSES, count)


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 20),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 7.0, 1e6, 1e30, float("inf"), float("nan")]),
)
def test_one_example_moves_the_sums_by_at_most_one(count, seed, scale):
    features, labels = examples(count, seed)
    features[-1] *= scale
    after = noised_class_sums(features, labels, CLASSES, Recording(), 1.0)
    before = noised_class_sums(features[:-1], labels[:-1], CLASSES, Recording(), 1.0)
    assert np.linalg.norm(after - before) <= 1 + 1e-9
    assert np.all(np.isfinite(after))


def test_every_row_of_the_public_class_list_is_noised_even_without_any_image():
    noise = Recording()
    sums = noised_class_sums(np.zeros((0, SIZE), np.float32), np.zeros(0, np.int64), CLASSES, noise, 2.5)
    assert noise.calls == [((CLASSES, SIZE), 2.5)]
    assert sums.shape == (CLASSES, SIZE)
    released = noised_class_sums(np.zeros((0, SIZE), np.float32), np.zeros(0, np.int64), CLASSES, SystemNoise(), 2.5)
    assert np.all(released != 0)


def test_noise_that_the_grid_cannot_carry_is_refused():
    features, labels = examples(3, 0)
    with pytest.raises(PrivacyError, match="too large"):
        noised_class_sums(features, labels, CLASSES, SystemNoise(), 1e6)


def test_without_noise_prototypes_are_the_class_means_by_share():
    features, labels = examples(50, 1)
    sums = noised_class_sums(features, labels, CLASSES, Recording(), 0.0)
    prototypes = prototypes_from(sums, 0.0)
    np.testing.assert_allclose(prototypes.features, sums / np.linalg.norm(sums, axis=1, keepdims=True))
    np.testing.assert_allclose(prototypes.weights, np.linalg.norm(sums, axis=1) / np.linalg.norm(sums, axis=1).sum())


def test_pure_noise_teaches_nothing():
    """As epsilon goes to 0 the result is the zero-shot prompt."""
    noise = SeededNoise(np.random.default_rng(2))
    for _ in range(200):
        prototypes = prototypes_from(noise.add(np.zeros((10, 128)), 40.0), 40.0)
        assert not prototypes.weights.any()
        assert not prototypes.features.any()


def test_a_clear_class_is_found_and_an_absent_one_is_not():
    noise = SeededNoise(np.random.default_rng(3))
    direction = np.eye(10, 128)[0]
    sums = np.zeros((10, 128))
    sums[4] = 100 * direction
    prototypes = prototypes_from(noise.add(sums, 2.0), 2.0)
    assert np.flatnonzero(prototypes.weights).tolist() == [4]
    assert prototypes.features[4] @ direction > 0.9
    assert np.linalg.norm(prototypes.features, axis=1).max() <= 1
