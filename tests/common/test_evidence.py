"""Pool, class vectors and vote: what they say in every corner, and that nothing found is exactly the text."""

import dataclasses
import math

import numpy as np
import pytest

from dpfpl_common.evidence import (
    Pool,
    _scatter,
    _without,
    class_head,
    directions,
    evidence_wins,
    found_classes,
    looks_unlike,
    mix_bonus,
    moment_size,
    own_head,
    pack_pool,
    pool_rows,
    prefers_own,
    residuals,
    sharpened,
    summed_pool,
    text_head,
    unpack_moment,
    unpack_pool,
    vote_threshold,
    votes,
    with_names,
)
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings
from dpfpl_common.privacy.noise import SeededNoise
from dpfpl_common.privacy.one_shot import noised_class_sums, noised_moment, packed_moment
from dpfpl_common.privacy_plan import class_sums_multiplier, vote_multiplier

SCALE = 20.0


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def world(rng, classes=6, size=32, right_texts=True, images=40):
    """Texts, class means in a cone of their own, and unit images of every class."""
    cone = unit(rng.normal(size=size))
    offsets = 0.5 * unit(rng.normal(size=(classes, size)))
    texts = unit(
        unit(rng.normal(size=size)) + (offsets if right_texts else 0.5 * unit(rng.normal(size=(classes, size))))
    )
    means = unit(cone + offsets)
    labels = np.repeat(np.arange(classes), images)
    features = unit(means[labels] + 0.6 / math.sqrt(size) * rng.normal(size=(len(labels), size)))
    return texts, means, features, labels


def released(features, labels, classes, z, rng):
    return noised_class_sums(features.astype(np.float32), labels, classes, SeededNoise(rng), z)


def one_site(rng, z, had=None, **of_world):
    """Texts, features, labels, pool, weights and head of one site's images; it has those of some classes only."""
    texts, _, features, labels = world(rng, **of_world)
    own = slice(None) if had is None else np.isin(labels, had)
    pool, weights = pool_rows([released(features[own], labels[own], len(texts), z, rng)], z)
    return texts, features, labels, pool, weights[0], class_head(pool, texts, SCALE)


def right(head, features, labels):
    return float((head.logits(features).argmax(axis=1) == labels).mean())


def test_class_vectors_of_wrong_texts_learn_what_the_images_show(rng):
    texts, features, labels, _, _, head = one_site(rng, 1.0, right_texts=False)

    assert right(text_head(texts, SCALE), features, labels) < 0.5
    assert right(head, features, labels) > 0.95
    np.testing.assert_allclose(np.linalg.norm(head.vectors, axis=1), 1.0)


@pytest.mark.parametrize("z", [1e2, 1e3, 1e4])
def test_where_nothing_stands_out_the_head_is_exactly_the_text(rng, z):
    texts, _, features, labels = world(rng)
    for sites in (1, 5):
        pool, _ = pool_rows([released(features, labels, 6, z, rng) for _ in range(sites)], z)
        head = class_head(pool, texts, SCALE)
        assert not found_classes(pool).any()
        np.testing.assert_array_equal(head.vectors, texts)
        assert head.scale == SCALE


def test_a_thousand_times_pure_noise_is_never_taken_for_images(rng):
    """Without the bar on the common direction a row passes three deviations in about one of a hundred draws."""
    for _ in range(1000):
        assert not found_classes(pool_rows([rng.normal(size=(6, 32))], 1.0)[0]).any()


@pytest.mark.parametrize("z", [0.0, 1.0])
@pytest.mark.parametrize("sites", [1, 3])
def test_no_image_anywhere_is_the_text_too(rng, sites, z):
    texts, *_ = world(rng)
    nothing = [released(np.zeros((0, 32)), np.zeros(0, np.int64), 6, z, rng) for _ in range(sites)]
    head = class_head(pool_rows(nothing, z)[0], texts, SCALE)

    np.testing.assert_array_equal(head.vectors, texts)


def test_a_class_that_nobody_has_stands_on_its_text(rng):
    _, features, labels, _, _, head = one_site(rng, 0.5, range(5))

    assert head.found.tolist() == [True] * 5 + [False]
    np.testing.assert_allclose(head.vectors[5], unit(head.prior[5]))
    assert right(head, features, labels) > 0.9  # its images too: the text's offset, moved to where images lie


def names_around(texts, rng):
    """Two unit texts whose mean is the classes' own: a list with them has the same mean."""
    mean = texts.mean(axis=0)
    across = rng.normal(size=len(mean))
    across -= across @ mean / (mean @ mean) * mean
    across *= math.sqrt(1 - mean @ mean) / np.linalg.norm(across)
    return np.stack([mean + across, mean - across])


def longer(pool, names):
    """The pool of a list with names that nobody has an image of, where there is no noise."""
    rows, variances = np.vstack([pool.rows, np.zeros((names, pool.rows.shape[1]))]), np.zeros(names)
    return dataclasses.replace(pool, rows=rows, variances=np.append(pool.variances, variances))


def stretched(rng, right_texts=True):
    """As ``world``, with images that scatter in two of the directions in which class means differ."""
    texts, means, _, labels = world(rng, right_texts=right_texts)
    wide = (means - means.mean(axis=0)).T @ rng.normal(size=(6, 2))
    return texts, unit(means[labels] + rng.normal(size=(len(labels), 2)) @ wide.T), labels


@pytest.mark.parametrize("right_texts", [True, False])
def test_a_name_that_is_added_stands_as_in_a_list_that_held_it_without_images(rng, right_texts):
    """Exactly, sharpened as the others, where it leaves the mean of the texts; elsewhere up to what that mean moves."""
    texts, features, labels = stretched(rng, right_texts)
    pool, _ = pool_rows([released(features, labels, 6, 0.0, rng)], 0.0)
    head = class_head(pool, texts, SCALE)
    pool, basis = told(head, pool, features, labels, 0.0, rng), directions(head)
    names = names_around(texts, rng)
    added = sharpened(with_names(head, texts, names), basis, pool)
    held = sharpened(class_head(longer(pool, 2), np.vstack([texts, names]), SCALE), basis, longer(pool, 2))
    np.testing.assert_allclose(added.vectors, held.vectors, atol=1e-9)
    np.testing.assert_allclose(added.bias, held.bias, atol=1e-9)
    assert np.abs(added.bias[6:]).max() > 0

    one = with_names(head, texts, names[:1])
    apart = one.prior - class_head(longer(pool, 1), np.vstack([texts, names[:1]]), SCALE).prior
    assert np.linalg.norm(apart, axis=1).max() <= 1.5 * np.linalg.norm(names[0] - texts.mean(axis=0)) / 7


@pytest.mark.parametrize("z", [0.0, 1.0, 1e4])
def test_a_name_that_is_added_changes_no_logit_of_the_others(rng, z):
    texts, features, labels = stretched(rng)
    pool, _ = pool_rows([released(features, labels, 6, z, rng)], z)
    head, names = class_head(pool, texts, SCALE), unit(rng.normal(size=(3, 32)))
    pool = told(head, pool, features, labels, z, rng)
    before = sharpened(head, directions(head), pool)
    more = with_names(head, texts, names)
    np.testing.assert_array_equal(more.vectors[:6], head.vectors)
    after = sharpened(more, directions(head), pool)
    np.testing.assert_allclose(after.logits(features)[:, :6], before.logits(features), atol=1e-11)
    assert not after.found[6:].any()
    if z == 1e4:  # nothing is found: one more text
        np.testing.assert_allclose(after.vectors[6:], names, atol=1e-12)


def test_one_class_at_one_site_changes_no_more_than_it_must(rng):
    _, features, _, _, _, head = one_site(rng, 0.1, [2])

    assert head.found.tolist() == [False, False, True, False, False, False]
    assert np.isfinite(head.logits(features)).all()


@pytest.mark.parametrize(("classes", "size"), [(2, 2), (2, 768), (50, 3), (1000, 64)])
@pytest.mark.parametrize("z", [0.0, 0.3, 30.0])
def test_every_length_of_list_and_every_width_is_finite(rng, classes, size, z):
    texts, _, features, labels = world(rng, classes, size, images=2)
    sites = [released(features[i::3], labels[i::3], classes, z, rng) for i in range(3)]
    pool, weights = pool_rows(sites, z)
    head = class_head(pool, texts, SCALE)
    told = votes(head, pool, texts, features[::3], labels[::3], weights[0])

    assert np.isfinite(head.vectors).all()
    assert np.isfinite(pool.rows).all()
    assert 0 < head.scale < math.inf
    assert ((told >= -1) & (told <= 1)).all()


def test_two_classes_with_equal_texts_are_no_division_by_zero(rng):
    texts = np.repeat(unit(rng.normal(size=(1, 8))), 2, axis=0)
    features = unit(rng.normal(size=(20, 8)) + 3.0)
    pool, _ = pool_rows([released(features, np.arange(20) % 2, 2, 0.1, rng)], 0.1)

    assert np.isfinite(class_head(pool, texts, SCALE).vectors).all()


def test_a_site_without_a_class_gets_next_to_no_weight_in_it(rng):
    _, _, features, labels = world(rng, images=60)
    sites = [released(features[labels % 3 == i], labels[labels % 3 == i], 6, 2.0, rng) for i in range(3)]
    pool, weights = pool_rows(sites, 2.0)

    for label in range(6):
        others = np.delete(weights[:, label], label % 3)
        assert weights[label % 3, label] == 1.0
        assert others.max() < 0.2
    assert (pool.variances < 3 * 2.0**2).all()


def test_many_sites_with_few_images_of_a_class_weigh_the_same(rng):
    _, means, *_ = world(rng)
    features = unit(means[np.arange(6)] + 0.05 * rng.normal(size=(6, 32)))
    sites = [released(features, np.arange(6), 6, 8.0, rng) for _ in range(200)]
    pool, weights = pool_rows(sites, 8.0)

    equal = (weights == 1.0).all(axis=0)
    assert equal.mean() >= 0.5
    np.testing.assert_allclose(pool.rows[equal], np.sum(sites, axis=0)[equal])


@pytest.mark.parametrize("alike", [False, True])
def test_a_pool_is_the_weighted_sum_to_the_bit(rng, alike):
    """Added up in the sites' order, also where all weigh the same."""
    _, _, features, labels = world(rng)
    sites = [released(features[site:], labels[site:], 6, 0.5, rng) for site in range(5)]
    sites = sites[:1] * 5 if alike else sites
    pool, weights = pool_rows(sites, 0.5)
    assert (weights == 1.0).all() == alike
    expected = np.zeros_like(sites[0])
    for weight, rows in zip(weights, sites, strict=True):
        expected += weight[:, None] * rows
    assert np.array_equal(pool.rows, expected)


def test_a_votes_value_depends_on_that_image_alone(rng):
    texts, features, labels, pool, weights, head = one_site(rng, 1.0, right_texts=False)
    every = votes(head, pool, texts, features, labels, weights)

    for left_out in (0, 17, 120):
        kept = np.arange(len(labels)) != left_out
        np.testing.assert_array_equal(votes(head, pool, texts, features[kept], labels[kept], weights), every[kept])
    one = votes(head, pool, texts, features[7:8], labels[7:8], weights)
    np.testing.assert_array_equal(one, every[7:8])


def test_an_image_does_not_vote_for_the_row_that_it_made_itself(rng):
    """One image a class, no noise: its row is the image, so the head is always right on it, and no vote may say so."""
    texts, _, features, labels = world(rng, classes=8, size=64, right_texts=False, images=1)
    features = unit(features + unit(rng.normal(size=features.shape)))
    pool, weights = pool_rows([released(features, labels, 8, 0.0, rng)], 0.0)
    head = class_head(pool, texts, SCALE)

    assert right(head, features, labels) == 1.0
    assert votes(head, pool, texts, features, labels, weights[0]).sum() <= 4


def test_the_share_of_classes_that_nobody_has_votes_by_name(rng):
    texts, features, labels, pool, weights, head = one_site(rng, 0.1, range(3), right_texts=False)
    had = labels < 3
    told = votes(head, pool, texts, features[had], labels[had], weights)

    text_wrong = (features[had] @ texts.T).argmax(axis=1) != labels[had]
    assert set(np.round(told[text_wrong], 6)) <= {0.0, 0.5, 1.0}
    assert 0.5 in told[text_wrong]


def test_the_vote_must_be_a_deviation_above_a_draw():
    assert vote_threshold(400, 0.0, 4) == 10.0
    assert not evidence_wins(10.0, 400, 0.0, 4)
    assert evidence_wins(10.1, 400, 0.0, 4)
    assert vote_threshold(0, 3.0, 4) == 6.0


def test_the_usual_mix_is_a_log_of_frequencies():
    bonus = mix_bonus(np.array([0.5, 0.5, 0.0, 0.0]), 0.5)
    np.testing.assert_allclose(np.exp(bonus) / 4, [0.375, 0.375, 0.125, 0.125])
    np.testing.assert_array_equal(mix_bonus(np.array([0.5, 0.5, 0.0, 0.0]), 0.5, 1), [*bonus, bonus[2]])
    np.testing.assert_array_equal(mix_bonus(np.zeros(4), 0.5), np.zeros(4))
    np.testing.assert_allclose(mix_bonus(np.array([1.0, 0.0]), 0.0), [0.0, 0.0])


def test_a_pool_travels_as_one_matrix(rng):
    pool = Pool(rng.normal(size=(5, 3)), rng.uniform(size=5), rng.normal(size=3), 2.5)
    weights = rng.uniform(size=5)
    again, same = unpack_pool(pack_pool(pool, weights), 5)

    for there, back in zip(
        (pool.rows, pool.variances, pool.total, weights), (again.rows, again.variances, again.total, same), strict=True
    ):
        np.testing.assert_allclose(back, there, rtol=1e-6)
    assert again.total_variance == pool.total_variance
    assert again.moment is None

    moment = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 3.0]])
    packed = pack_pool(dataclasses.replace(pool, moment=moment, moment_variance=0.5), weights)
    again, same = unpack_pool(packed, 5)
    np.testing.assert_array_equal(again.moment, moment)
    assert again.moment_variance == 0.5
    np.testing.assert_allclose(same, weights, rtol=1e-6)


def test_a_hostile_pool_has_no_negative_variance_and_no_large_weight(rng):
    packed = np.full((6, 5), -3.0, dtype=np.float32)
    packed[:3, -1] = 7.0
    pool, weights = unpack_pool(packed, 3)

    assert (pool.variances == 0).all()
    assert pool.moment_variance == 0
    assert (weights == 1).all()


def test_directions_are_orthonormal_and_the_same_at_every_site_up_to_rounding(rng):
    texts, *_ = world(rng)
    head = text_head(texts, SCALE)
    basis, near = directions(head), directions(text_head(texts + 1e-9 * rng.normal(size=texts.shape), SCALE))

    assert basis.shape == (32, moment_size(6, 32)) == (32, 5)
    np.testing.assert_allclose(basis.T @ basis, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(near, basis, atol=1e-7)
    inside = head.vectors - head.vectors.mean(axis=0)
    np.testing.assert_allclose(inside @ basis @ basis.T, inside, atol=1e-12)


def test_a_residual_is_a_direction_and_depends_on_its_own_image_alone(rng):
    texts, features, labels, _, _, head = one_site(rng, 0.5, range(5))
    had = labels < 5
    whole = residuals(head, features, labels)

    np.testing.assert_allclose(np.linalg.norm(whole[had], axis=1), 1.0)
    assert (whole[~had] == 0).all()  # nobody knows where their class is
    for one in (0, 77, 239):
        alone = residuals(head, features[one : one + 1], labels[one : one + 1])
        np.testing.assert_allclose(alone[0], whole[one], atol=1e-12)
    assert residuals(head, features[:0], labels[:0]).shape == (0, 5)
    assert (residuals(text_head(texts, SCALE), features, labels) == 0).all()


def told(head, pool, features, labels, z, rng):
    """The pool with its moment."""
    moment = noised_moment(residuals(head, features, labels), SeededNoise(rng), z)
    return dataclasses.replace(pool, moment=unpack_moment(moment), moment_variance=z * z)


def sharp(head, pool, features, labels, z, rng):
    return sharpened(head, directions(head), told(head, pool, features, labels, z, rng))


def test_a_moment_sharpens_where_images_scatter_in_few_directions(rng):
    texts, means, _, _ = world(rng, classes=12, right_texts=False)
    labels = np.repeat(np.arange(12), 200)
    wide = (means - means.mean(axis=0)).T @ rng.normal(size=(12, 2))
    features = unit(means[labels] + rng.normal(size=(len(labels), 2)) @ wide.T + 0.05 * rng.normal(size=(2400, 32)))
    train, test = np.arange(0, 2400, 2), np.arange(1, 2400, 2)
    pool, _ = pool_rows([released(features[train], labels[train], 12, 0.5, rng)], 0.5)
    head = class_head(pool, texts, SCALE)
    better = sharp(head, pool, features[train], labels[train], 1.0, rng)

    assert right(better, features[test], labels[test]) > right(head, features[test], labels[test]) + 0.1
    spread, before = (np.var(own.logits(head.vectors), axis=1).mean() for own in (better, head))
    assert spread == pytest.approx(before)


def test_a_moment_of_noise_changes_nothing_to_speak_of_and_none_nothing_at_all(rng):
    texts, features, labels, pool, _, head = one_site(rng, 0.5, classes=12)

    assert sharpened(head, directions(head), pool) is head
    nothing = dataclasses.replace(pool, moment=np.zeros((11, 11)), moment_variance=1.0)
    assert sharpened(head, directions(head), nothing) is head
    for z in (100.0, 1e4):
        noisy = sharp(head, pool, features, labels, z, rng)
        assert right(noisy, features, labels) > right(head, features, labels) - 0.02
    text = text_head(texts, SCALE)
    assert sharpened(text, directions(text), nothing) is text


@pytest.mark.parametrize(("classes", "size"), [(2, 32), (6, 4), (200, 160), (3, 1)])
@pytest.mark.parametrize("z", [0.0, 0.3, 30.0])
def test_a_sharpened_head_is_finite_in_every_corner(rng, classes, size, z):
    _, features, labels, pool, _, head = one_site(rng, z, classes=classes, size=size, images=3)
    found = sharp(head, pool, features, labels, z, rng)

    assert directions(head).shape == (size, min(classes - 1, size, 128))
    assert np.isfinite(found.vectors).all()
    assert np.isfinite(found.bias).all()


def test_a_packed_moment_keeps_distances_and_comes_back(rng):
    half = rng.normal(size=(5, 5))
    moment = half + half.T
    packed = packed_moment(moment)

    assert packed.shape == (15,)
    assert np.linalg.norm(packed) == pytest.approx(np.linalg.norm(moment), rel=1e-12)
    np.testing.assert_allclose(unpack_moment(packed), moment, rtol=1e-12)


@pytest.mark.parametrize(
    ("classes", "sites", "images", "z", "pays"),
    [
        (10, 4, 341, 0.6, True),  # digits at epsilon 8
        (10, 4, 341, 3.73, True),  # at 1
        (10, 20, 50, 2.0, False),  # many small sites: the noise of each counts
        (40, 8, 175, 2.0, False),  # many classes of few images
        (40, 8, 1750, 0.6, True),
        (1000, 10, 500, 0.6, False),
    ],
)
def test_a_moment_is_told_only_where_it_can_stand_out_of_its_noise(classes, sites, images, z, pays):
    experiment = Experiment(
        "pilot",
        tuple(f"class {number}" for number in range(classes)),
        tuple(f"site-{number}" for number in range(sites)),
        ModelSettings(8),
        privacy=PrivacySettings(mechanism="one_shot", trust="local", noise_multiplier=z, nominal_site_size=images),
    )
    assert experiment.uses_moment == pays
    assert not dataclasses.replace(experiment, prompt=PromptSettings(evidence=False)).uses_moment
    rows, vote = class_sums_multiplier(experiment), vote_multiplier(experiment)
    assert 1 / rows**2 + (1 + pays) / vote**2 == pytest.approx(1 / z**2)


def site_of(rng, means, images, turn=None):
    """Features and labels of one site; ``turn`` is what its device makes of every class mean."""
    labels = np.repeat(np.arange(len(means)), images)
    seen = means if turn is None else unit(means + turn)
    return unit(seen[labels] + 0.6 / math.sqrt(means.shape[1]) * rng.normal(size=(len(labels), means.shape[1]))), labels


def sites_of(rng, z, turned, classes=6, images=40, turn=0.8):
    """Four sites, site 0 turned: for each whether it looks unlike, whether it prefers its own, and its own head; the
    pooled head; site 0's own test images.
    """
    texts, means, *_ = world(rng, classes)
    turn = turn * unit(rng.normal(size=means.shape)) if turned else None
    sites = [site_of(rng, means, images, turn if number == 0 else None) for number in range(4)]
    rows = [released(*site, classes, z, rng) for site in sites]
    pool, weights = pool_rows(rows, z)
    found = []
    for site, own, weight in zip(sites, rows, weights, strict=True):
        packed, its = unpack_pool(pack_pool(pool, weight), classes)  # as it comes to the site
        about = (packed, summed_pool(own, z, 1), its, texts, SCALE)
        found.append((looks_unlike(*about), prefers_own(*about, *site), own_head(*about)))
    return found, class_head(pool, texts, SCALE), site_of(rng, means, images, turn)


@pytest.mark.parametrize("z", [0.0, 0.6, 2.0])
def test_a_site_whose_images_look_unlike_the_others_has_class_vectors_of_its_own(rng, z):
    runs = [sites_of(rng, z, turned=True) for _ in range(5)]
    assert all(found[0][:2] == (True, True) for found, *_ in runs)
    wrong, wrong_pooled = (
        1 - np.mean([right(found[0][2] if mine else pooled, *test) for found, pooled, test in runs])
        for mine in (True, False)
    )
    assert wrong < wrong_pooled / 2


@pytest.mark.parametrize("z", [0.0, 0.6])
def test_beside_a_sites_own_class_vectors_a_name_stands_as_a_class_that_nobody_has(rng, z):
    texts, means, *_ = world(rng)
    sites = [site_of(rng, means[:5], 40, 0.8 * unit(rng.normal(size=(5, 32))) if own else None) for own in (1, 0, 0)]
    rows = [released(*site, 6, z, rng) for site in sites]
    pool, weights = pool_rows(rows, z)
    about = (pool, summed_pool(rows[0], z, 1), weights[0], texts, SCALE)
    before, after = own_head(*about), own_head(*about, texts[5:])
    assert not before.found[5]
    assert before.found[:5].all()
    np.testing.assert_array_equal(after.vectors[:6], before.vectors)
    np.testing.assert_allclose(after.vectors[6], before.vectors[5], atol=1e-9)


@pytest.mark.parametrize("z", [0.0, 0.6])
def test_by_its_own_scatter_a_site_sees_a_smaller_difference_and_is_served_better(rng, z):
    """The released values must allow for any scatter that features of norm 1 may have."""
    runs = [sites_of(rng, z, turned=True, turn=0.3) for _ in range(20)]
    told, seen = (sum(found[0][which] for found, *_ in runs) for which in (0, 1))
    assert seen >= told + 5
    gains = [right(found[0][2], *test) - right(pooled, *test) for found, pooled, test in runs if found[0][1]]
    assert np.mean(gains) > 0


@pytest.mark.parametrize("z", [0.6, 2.0, 6.0])
@pytest.mark.parametrize("images", [1, 3, 40])
def test_a_site_like_the_others_stays_with_them(rng, z, images):
    own = [site[1] for _ in range(50) for site in sites_of(rng, z, turned=False, images=images)[0]]
    assert sum(own) <= 2


def test_unlike_images_that_the_others_classify_better_stay_with_them(rng):
    """Site 0 has noise as large as its few images; the others have many of nearly the same look."""
    texts, means, *_ = world(rng)
    kept = []
    for _ in range(20):
        sites = [site_of(rng, means, 6, 0.2 * unit(rng.normal(size=means.shape))), site_of(rng, means, 400)]
        rows = [released(*site, 6, 0.2, rng) for site in sites]
        pool, weights = pool_rows(rows, 0.2)
        about = (pool, summed_pool(rows[0], 0.2, 1), weights[0], texts, SCALE)
        own = prefers_own(*about, *sites[0])
        counts = np.sum(votes(own_head(*about), about[1], texts, *sites[0], np.ones(6)))
        more = counts > np.sum(votes(class_head(pool, texts, SCALE), pool, texts, *sites[0], weights[0]))
        assert not own or more
        scatter = _scatter(*sites[0], class_head(_without(*about[:3]), texts, SCALE).common)
        kept.append((looks_unlike(*about, scatter), more))
    assert (True, False) in kept


@pytest.mark.parametrize("classes", [[0, 1, 2], [3, 4, 5, 6, 7]])
def test_a_site_with_few_of_the_classes_can_prefer_its_own_rows(rng, classes):
    texts, means, *_ = world(rng, 10)
    turn = 1.5 * unit(rng.normal(size=means.shape))
    features, labels = site_of(rng, means, 40, turn)
    had = np.isin(labels, classes)
    sites = [(features[had], labels[had]), *(site_of(rng, means, 40) for _ in range(3))]
    rows = [released(*site, 10, 0.6, rng) for site in sites]
    pool, weights = pool_rows(rows, 0.6)
    about = (pool, summed_pool(rows[0], 0.6, 1), weights[0], texts, SCALE)
    assert prefers_own(*about, *sites[0])
    test, test_labels = site_of(rng, means, 40, turn)
    new = np.isin(test_labels, classes)
    head, pooled = own_head(*about), class_head(pool, texts, SCALE)
    assert right(head, test[new], test_labels[new]) > right(pooled, test[new], test_labels[new])
    assert right(head, *site_of(rng, means, 40)) > 0.5  # the classes it lacks stand on the others' vectors


def test_the_scatter_is_that_within_the_classes(rng):
    _, means, features, labels = world(rng, images=7)
    common = unit(means.mean(axis=0))
    within = sum(features[labels == c].var(axis=0, ddof=1).sum() * 6 for c in range(6)) / 36
    assert _scatter(features, labels, common) == pytest.approx(within / 32 / (features @ common).mean())
    assert _scatter(features[::7], labels[::7], common) is None  # one image of each class
    assert _scatter(features[:0], labels[:0], common) is None


@pytest.mark.parametrize("z", [0.0, 0.6, 2.0, 6.0])
@pytest.mark.parametrize("images", [3, 40])
def test_sites_alike_are_not_taken_for_unlike_ones(rng, z, images):
    told = [site[0] for _ in range(50) for site in sites_of(rng, z, turned=False, images=images)[0]]
    assert sum(told) <= 1


def test_a_site_is_compared_with_the_others_and_not_with_itself(rng):
    """Of two sites with half of the images each, the pool without its own rows is the other's alone."""
    _, means, *_ = world(rng)
    rows = [released(*site_of(rng, means, 40), 6, 1.0, rng) for _ in range(2)]
    pool, weights = pool_rows(rows, 1.0)
    rest = _without(pool, pool_rows([rows[0]], 1.0)[0], weights[0])
    np.testing.assert_allclose(rest.rows, weights[1][:, None] * rows[1], atol=1e-9)
    np.testing.assert_allclose(rest.variances, weights[1] ** 2, atol=1e-9)
    np.testing.assert_allclose(rest.total, rows[1].sum(axis=0), atol=1e-9)
    assert rest.total_variance == pytest.approx(6)
    late = _without(pool, pool_rows([rows[0]], 1.0)[0], np.zeros(6))
    assert late is pool


@pytest.mark.parametrize("z", [0.0, 1.0])
def test_classes_that_one_site_alone_has_hide_nothing(rng, z):
    """Their packed rows are its own but for rounding, which is nothing that the others released."""
    found = 0
    for _ in range(20):
        texts, means, *_ = world(rng, classes=20)
        features, labels = site_of(rng, means, 40, 0.8 * unit(rng.normal(size=means.shape)))
        theirs, their_labels = site_of(rng, means[:10], 40)
        rows = [released(features, labels, 20, z, rng), released(theirs, their_labels, 20, z, rng)]
        pool, weights = pool_rows(rows, z)
        packed, own = unpack_pool(pack_pool(pool, weights[0]), 20)
        found += looks_unlike(packed, summed_pool(rows[0], z, 1), own, texts, SCALE)
    assert found == 20


@pytest.mark.parametrize("z", [0.0, 3.0, 300.0])
@pytest.mark.parametrize("empty", ["own", "others", "both"])
def test_where_nothing_can_be_compared_the_pool_stands(rng, z, empty):
    texts, _, features, labels = world(rng)
    rows = {name: released(features, labels, 6, z, rng) for name in ("own", "others")}
    for name in rows if empty == "both" else (empty,):
        rows[name] = released(features[:0], labels[:0], 6, z, rng)
    pool, weights = pool_rows(list(rows.values()), z)
    about = (pool, summed_pool(rows["own"], z, 1), weights[0], texts, SCALE)
    assert not looks_unlike(*about)
    had = slice(0, 0) if empty in ("own", "both") else slice(None)
    assert not prefers_own(*about, features[had], labels[had])
