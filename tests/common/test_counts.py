"""Noised counts: their sensitivity, their noise, their cost, and what is estimated from them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.privacy.accounting import HELD_BACK, PrivacyEvent, epsilon
from dpfpl_common.privacy.counts import count_noise_stddev, gain, noised_counts, scores_from
from dpfpl_common.privacy.noise import SeededNoise, SystemNoise
from dpfpl_common.privacy_plan import capped_event, planned_events, planned_score_events, score_noise_multiplier
from no_noise import NoNoise

pytestmark = pytest.mark.privacy

RIGHT = st.integers(1, 5).flatmap(
    lambda k: st.lists(
        st.lists(st.floats(-1, 2) | st.sampled_from([0.0, 1.0, math.nan, math.inf]), min_size=k, max_size=k),
        min_size=1,
        max_size=8,
    )
)


@given(RIGHT, st.integers(0, 7))
def test_NI4_one_example_moves_the_counts_by_at_most_the_stated_bound_and_no_other_matters(rows, place):
    """The joint sensitivity is sqrt(K + 1); what one example adds does not depend on the others, to the last bit."""
    table = np.array(rows)
    place %= len(table)
    without = np.delete(table, place, axis=0).reshape(-1, table.shape[1])
    moved = noised_counts(table, NoNoise(), 0.0) - noised_counts(without, NoNoise(), 0.0)
    assert np.linalg.norm(moved) <= math.sqrt(table.shape[1] + 1) + 1e-12
    assert np.array_equal(moved, noised_counts(table[place : place + 1], NoNoise(), 0.0))


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6))
def test_the_bound_is_attained_by_every_example(rows):
    one = noised_counts(np.array(rows[:1], dtype=float), NoNoise(), 0.0)
    assert np.linalg.norm(one) == pytest.approx(2.0)


def test_the_stated_deviation_is_the_sensitivity():
    assert [count_noise_stddev(count, 0.5) for count in (1, 3, 8)] == [0.5 * math.sqrt(2), 1.0, 1.5]


def test_without_an_example_noise_is_released_all_the_same():
    counts = noised_counts(np.zeros((0, 3)), SystemNoise(), 1.0)
    assert counts.shape == (4,)
    assert counts.all()


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (2 / 3, False), (1.5, False)])
def test_the_noise_has_the_charged_deviation(factor, passes):
    draws = np.concatenate([noised_counts(np.zeros((0, 3)), SystemNoise(), 2.0) for _ in range(1000)])
    scaled = draws / (factor * count_noise_stddev(3, 2.0))
    assert (stats.kstest(scaled, "norm").pvalue > 1e-4) == passes


def experiment(**privacy):
    settings = {"noise_multiplier": 1.0, "sample_rate": 0.5, **privacy}
    return Experiment(
        "e", ("a", "b"), ("n", "s", "w"), ModelSettings(8), privacy=PrivacySettings(**settings), rounds=RoundSettings(5)
    )


@pytest.mark.parametrize(
    "privacy",
    [
        {},
        {"trust": "local"},
        {"mechanism": "one_shot", "trust": "local"},
        {"noise_multiplier": 4.0, "sample_rate": 0.1},
    ],
)
def test_scores_cost_what_training_costs_and_the_pair_no_more(privacy):
    planned = experiment(**privacy)
    scores = {event.adversary: event for event in planned_score_events(planned)}
    assert {event.part for event in scores.values()} == {HELD_BACK}
    for event in planned_events(planned):
        alone, pair = epsilon([event], 1e-5), epsilon([event, scores[event.adversary]], 1e-5)
        assert pair == max(alone, epsilon([scores[event.adversary]], 1e-5))
        if event == capped_event(planned):
            assert 0.97 * alone <= epsilon([scores[event.adversary]], 1e-5) <= alone
            assert pair == alone


def test_no_scores_under_the_unit_site_and_none_noised_without_noise():
    assert planned_score_events(experiment(unit="site")) == ()
    assert score_noise_multiplier(experiment(noise_multiplier=0.0)) == 0.0


def test_an_unknown_part_is_no_way_to_hide_a_charge():
    with pytest.raises(ValueError, match="part"):
        epsilon([PrivacyEvent("x", "noised_counts", 1.0, 1.0, 1, "elsewhere")], 1e-5)


def test_exact_counts_give_exact_shares():
    right = np.array([[1, 0, 1]] * 3 + [[0, 0, 1]], dtype=float)
    totals = noised_counts(right, NoNoise(), 0.0)
    found = scores_from(totals, 0.0)
    assert [score.value for score in found] == [0.75, 0.0, 1.0]
    assert [(score.right, score.of) for score in found] == [(3, 4), (0, 4), (4, 4)]
    assert all(score.low == score.high == score.value for score in found)
    assert gain(totals, 0.0, 2, 0) == (0.25, 0.25, 0.25)


def test_where_noise_hides_the_examples_nothing_is_claimed():
    (score,) = scores_from(np.array([3.0, 4.0]), 100.0)
    assert (score.value, score.low, score.high) == (None, 0.0, 1.0)
    assert gain(np.array([3.0, 1.0, 4.0]), 100.0, 0, 1)[1:] == (-1.0, 1.0)


@pytest.mark.parametrize(("sites", "images"), [(4, 112), (16, 28)])
@pytest.mark.parametrize("multiplier", [0.62, 2.0, 3.7])
def test_intervals_cover_the_true_share_and_the_true_gain(sites, images, multiplier):
    """95 % of the time, over 2,000 draws; epsilon about 8, 2 and 1 at delta 1e-5."""
    rng = np.random.default_rng(0)
    right = rng.random((sites * images, 3)) < [0.8, 0.85, 0.95]
    truth = right.mean(axis=0)
    exact = noised_counts(right.astype(float), NoNoise(), 0.0)
    stddev = math.sqrt(sites) * count_noise_stddev(3, multiplier)
    inside, gains = 0, 0
    for totals in exact + SeededNoise(rng).add(np.zeros((2000, 4)), stddev):
        scores = scores_from(totals, stddev)
        inside += sum(score.low <= share <= score.high for score, share in zip(scores, truth, strict=True))
        _, low, high = gain(totals, stddev, 2, 0)
        gains += low <= truth[2] - truth[0] <= high
    assert abs(inside / 6000 - 0.95) < 0.015
    assert abs(gains / 2000 - 0.95) < 0.02
