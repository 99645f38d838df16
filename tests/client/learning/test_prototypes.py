"""one_shot: sensitivity 1 of the noised class sums, and what is made of them afterwards."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpfpl_client.learning.evidence import prototypes_from
from dpfpl_client.models.class_scorer import ClassScorer, direction_count
from dpfpl_common.errors import PrivacyError
from dpfpl_common.evidence import images_to_stand_out
from dpfpl_common.privacy.noise import SeededNoise, SystemNoise
from dpfpl_common.privacy.one_shot import noised_class_sums
from no_noise import NoNoise

pytestmark = pytest.mark.privacy

CLASSES, SIZE = 5, 12


def examples(count, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, SIZE))
    return (unit(features) * scale).astype(np.float32), rng.integers(0, CLASSES, count)


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 20),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 7.0, 1e6, 1e30, float("inf"), float("nan")]),
)
def test_one_example_moves_the_sums_by_at_most_one(count, seed, scale):
    features, labels = examples(count, seed)
    features[-1] *= scale
    after = noised_class_sums(features, labels, CLASSES, NoNoise(), 1.0)
    before = noised_class_sums(features[:-1], labels[:-1], CLASSES, NoNoise(), 1.0)
    assert np.linalg.norm(after - before) <= 1 + 1e-9
    assert np.all(np.isfinite(after))


def test_every_row_of_the_public_class_list_is_noised_even_without_any_image(recording_noise):
    noise, nothing = recording_noise(), (np.zeros((0, SIZE), np.float32), np.zeros(0, np.int64), CLASSES)
    sums = noised_class_sums(*nothing, noise, 2.5)
    assert [(total.shape, stddev) for total, stddev in noise.calls] == [((CLASSES, SIZE), 2.5)]
    assert sums.shape == (CLASSES, SIZE)
    assert np.all(noised_class_sums(*nothing, SystemNoise(), 2.5) != 0)


def test_noise_that_the_grid_cannot_carry_is_refused():
    features, labels = examples(3, 0)
    with pytest.raises(PrivacyError, match="too large"):
        noised_class_sums(features, labels, CLASSES, SystemNoise(), 1e6)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_without_noise_prototypes_are_the_class_means_by_share():
    features, labels = examples(50, 1)
    sums = noised_class_sums(features, labels, CLASSES, NoNoise(), 0.0)
    prototypes = prototypes_from(sums, 0.0, unit(np.ones((CLASSES, SIZE))))
    np.testing.assert_allclose(prototypes.features, unit(sums))
    np.testing.assert_allclose(prototypes.weights, np.linalg.norm(sums, axis=1) / np.linalg.norm(sums, axis=1).sum())


PROJECTIONS = [None, np.linalg.qr(np.random.default_rng(0).normal(size=(128, 16)))[0].T]


@pytest.mark.parametrize("directions", PROJECTIONS, ids=["none", "text"])
def test_pure_noise_teaches_nothing(directions):
    """As epsilon goes to 0 the result is the zero-shot prompt."""
    noise = SeededNoise(np.random.default_rng(2))
    expected = unit(np.random.default_rng(3).normal(size=(10, 128)))
    for _ in range(200):
        noised = noise.add(np.zeros((10, 128)), 40.0)
        prototypes = prototypes_from(noised, 40.0, expected, directions)
        assert not prototypes.weights.any()
        assert np.array_equal(prototypes.features, expected)


@pytest.mark.parametrize("directions", PROJECTIONS, ids=["none", "text"])
def test_a_clear_class_is_found_and_an_absent_one_is_not(directions):
    noise = SeededNoise(np.random.default_rng(3))
    direction = PROJECTIONS[1][0]
    sums = np.zeros((10, 128))
    sums[4] = 100 * direction
    expected = unit(np.random.default_rng(3).normal(size=(10, 128)))
    prototypes = prototypes_from(noise.add(sums, 2.0), 2.0, expected, directions)
    others = np.arange(10) != 4
    assert np.array_equal(prototypes.features[others], expected[others]), "of an absent one only the text is known"
    assert prototypes.features[4] @ direction > 0.9
    # It counts by its size, the others by what may hide in the noise.
    most = 2.0 * np.sqrt(2 * np.sqrt((16 if directions is not None else 128) * np.log(1e6)) + 2 * np.log(1e6))
    assert prototypes.weights[others] / prototypes.weights[4] == pytest.approx(np.full(9, most / 100), rel=0.15)
    assert np.linalg.norm(prototypes.features, axis=1).max() <= 1.25


@pytest.mark.parametrize("z", [0.0, 0.05])
def test_the_absent_keep_their_share_however_little_noise_there_is(z):
    expected = unit(np.random.default_rng(0).normal(size=(4, 30)))
    sums = np.zeros((4, 30))
    sums[1] = 20 * expected[2]
    sums += z * np.random.default_rng(1).normal(size=sums.shape)
    bare = prototypes_from(sums, z, expected)
    kept = prototypes_from(sums, z, expected, absent_weight=0.4)
    assert kept.weights.sum() == pytest.approx(1.0)
    assert kept.weights[1] == pytest.approx(0.6)
    assert bare.weights[1] > 0.9
    np.testing.assert_array_equal(kept.features, bare.features)
    np.testing.assert_allclose(kept.features[[0, 2, 3]], expected[[0, 2, 3]])


def test_a_site_that_has_every_class_loses_nothing_to_the_absent():
    expected = np.eye(3)
    sums = 50 * np.eye(3)
    found = prototypes_from(sums, 0.1, expected, absent_weight=0.9)
    np.testing.assert_allclose(found.weights, prototypes_from(sums, 0.1, expected).weights)


def test_what_was_not_found_counts_at_most_twice_what_was():
    """One class of a hundred, hardly above the noise: without a bound it would not be heard."""
    sums = np.zeros((100, 128))
    sums[0, 0] = 30.0
    prototypes = prototypes_from(SeededNoise(np.random.default_rng(0)).add(sums, 1.5), 1.5, unit(np.ones((100, 128))))
    assert prototypes.weights[0] == pytest.approx(1 / 3)
    assert prototypes.weights[1:] == pytest.approx(np.full(99, 2 / 3 / 99))
    assert prototypes.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("directions", PROJECTIONS, ids=["none", "text"])
def test_the_more_noise_the_more_a_prototype_is_the_classs_text(directions):
    """Zero-shot's own belief, by the share of the energy that is noise; weight is lost altogether in the end."""
    expected = unit(np.random.default_rng(4).normal(size=(3, 128)))
    direction = PROJECTIONS[1][0]
    sums = np.outer([100.0, 0.0, 0.0], direction)
    near_text, near_data, weight = [], [], []
    for z in (0.1, 5.0, 10.0, 15.0, 60.0):
        made = [
            prototypes_from(SeededNoise(np.random.default_rng(seed)).add(sums, z), z, expected, directions)
            for seed in range(20)
        ]
        near_text.append(
            np.mean([(p.features[0] - (p.features[0] @ direction) * direction) @ expected[0] for p in made])
        )
        near_data.append(np.mean([p.features[0] @ direction for p in made]))
        weight.append(np.mean([p.weights[0] for p in made]))
    assert near_text == sorted(near_text)
    assert near_data == sorted(near_data, reverse=True)
    assert weight == sorted(weight, reverse=True)
    assert weight[0] > 0.95
    assert weight[-1] == 0.0


def test_a_projection_finds_a_class_that_is_lost_among_all_coordinates():
    directions = PROJECTIONS[1]
    sums = np.zeros((1, 128))
    sums[0] = 20 * directions[2]
    expected = unit(np.ones((1, 128)))
    found = {"none": 0, "text": 0}
    for seed in range(50):
        noised = SeededNoise(np.random.default_rng(seed)).add(sums, 2.3)
        found["none"] += bool(prototypes_from(noised, 2.3, expected).weights.any())
        found["text"] += bool(prototypes_from(noised, 2.3, expected, directions).weights.any())
    assert found["none"] < 10
    assert found["text"] > 40


@pytest.mark.parametrize("classes", [("cat", "dog"), tuple(f"thing {i}" for i in range(30))])
def test_the_public_directions_hold_the_class_texts_and_no_image(backbone, classes):
    tokens, initial = backbone.class_tokens(classes, 4), backbone.text_embeddings("a photo of a", 4)
    count = direction_count(len(classes), backbone.feature_size)
    assert count == max(16, 2 * len(classes))
    scorer = ClassScorer(backbone, tokens)
    directions = scorer.public_directions(initial, count)
    np.testing.assert_allclose(directions @ directions.T, np.eye(count), atol=1e-10)
    texts = backbone.text_features(initial, tokens).double().numpy()
    inside = texts @ directions.T
    # The differences between classes are what logits see of an image.
    for i, j in ((0, 1), (len(classes) - 1, 0)):
        assert np.linalg.norm(inside[i] - inside[j]) > 0.9 * np.linalg.norm(texts[i] - texts[j])
    assert np.array_equal(directions, ClassScorer(backbone, tokens).public_directions(initial, count)), (
        "the same everywhere"
    )
    assert direction_count(1000, 96) == 96
    assert scorer.public_directions(torch.zeros(4, backbone.width), 16).shape == (16, backbone.feature_size)


@pytest.mark.parametrize(("noise_multiplier", "size"), [(0.6, 96), (2.0, 96), (2.0, 512), (7.0, 768)])
def test_a_class_is_found_from_as_many_agreeing_images_as_the_plan_says(noise_multiplier, size):
    """On average: noise adds z^2 to the energy of each coordinate."""
    least = images_to_stand_out(noise_multiplier, size)
    expected = np.eye(2, size)
    for images, found in ((least, True), (least - 1, False)):
        sums = np.zeros((2, size))
        sums[0, 0] = np.sqrt(images**2 + noise_multiplier**2 * size)
        assert prototypes_from(sums, noise_multiplier, expected).weights.any() == found
