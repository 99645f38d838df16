"""Lower bounds on epsilon: not above what a mechanism claims rightly, and near it where the attack is the best."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from dpfpl_bench.audit.bounds import one_run_bound, one_run_p_value, two_world_bound
from dpfpl_bench.audit.membership import rates

pytestmark = pytest.mark.privacy


def randomised_response(epsilon, count, rng):
    """Uses up pure epsilon exactly: each coin is told right with chance e^epsilon / (1 + e^epsilon)."""
    coins = rng.random(count) < 0.5
    right = rng.random(count) < 1 / (1 + math.exp(-epsilon))
    return coins, np.where(right == coins, 1.0, -1.0) + rng.uniform(-0.1, 0.1, count)


def test_without_delta_the_p_value_is_the_binomial_tail():
    assert one_run_p_value(100, 20, 15, 0.0, 0.0) == pytest.approx(stats.binomtest(15, 20, 0.5, "greater").pvalue)


def test_delta_only_ever_makes_an_attack_prove_less():
    plain = one_run_p_value(100, 100, 80, 0.5, 0.0)
    assert plain < one_run_p_value(100, 100, 80, 0.5, 1e-4) < one_run_p_value(100, 100, 80, 0.5, 1e-2) <= 1.0


def test_a_correct_guess_more_and_a_larger_claim_move_the_p_value_the_right_way():
    values = [one_run_p_value(50, 50, correct, 1.0, 1e-5) for correct in range(1, 51)]
    assert all(a >= b for a, b in itertools.pairwise(values))
    values = [one_run_p_value(50, 50, 45, epsilon, 1e-5) for epsilon in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert all(a < b for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_one_run_stays_below_the_truth_and_comes_near_it(epsilon):
    rng = np.random.default_rng(0)
    bounds = [one_run_bound(*randomised_response(epsilon, 4000, rng), delta=0.0) for _ in range(40)]
    assert sum(bound > epsilon for bound in bounds) <= 6  # 5 % of 40, and room for chance at 1e-2
    assert np.median(bounds) > 0.7 * epsilon


def test_one_run_of_guessing_proves_nothing():
    rng = np.random.default_rng(1)
    bounds = [one_run_bound(rng.random(200) < 0.5, rng.random(200), delta=1e-5) for _ in range(50)]
    assert sum(bound > 0 for bound in bounds) <= 8


@pytest.mark.parametrize("multiplier", [1.0, 3.0])
def test_two_worlds_stay_below_a_gaussian_mechanisms_epsilon(multiplier):
    from dpfpl_common.privacy.accounting import PrivacyEvent, epsilon

    rng = np.random.default_rng(2)
    delta = 1e-5
    truth = epsilon([PrivacyEvent("prompt_recipient", "per_step", multiplier, 1.0, 1)], delta)
    bound = two_world_bound(1 / multiplier + rng.standard_normal(20_000), rng.standard_normal(20_000), delta)
    assert 0 < bound < truth
    # A quarter of the noise breaks the claim: the attack is alive.
    assert two_world_bound(4 / multiplier + rng.standard_normal(20_000), rng.standard_normal(20_000), delta) > bound


def test_rates_count_ties_as_half():
    truth = np.array([True, True, False, False])
    assert rates(truth, np.zeros(4)).auc == 0.5
    assert rates(truth, np.array([2.0, 1.0, 0.0, -1.0])).auc == 1.0
