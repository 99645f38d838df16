"""Epsilon against closed forms, against Renyi accounting and against Opacus; calibration from above."""

import dataclasses
import math
import random
import subprocess
import sys
import time

import dp_accounting
import numpy as np
import pytest
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis import rdp as opacus_rdp
from scipy import optimize, stats

from dpfpl_common.errors import PrivacyError
from dpfpl_common.privacy import accounting
from dpfpl_common.privacy.accounting import (
    INFINITE,
    PrivacyEvent,
    calibrate_noise_multiplier,
    epsilon,
    exceeds,
    exceeds_adaptively,
    group_epsilon,
    json_epsilon,
    true_positive_rate,
)

pytestmark = pytest.mark.privacy

RELATION = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE


def event(noise_multiplier, sample_rate=1.0, steps=1):
    return PrivacyEvent("other_site", "per_step", noise_multiplier, sample_rate, steps)


def composed(accountant, releases):
    """A library's accountant after releases of (noise multiplier, sample rate, steps)."""
    for z, q, steps in releases:
        accountant.compose(dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(z)), steps)
    return accountant


def gaussian_delta(eps, z):
    """Balle and Wang (2018), theorem 8: the exact delta of a Gaussian mechanism of multiplier z."""
    return stats.norm.cdf(1 / (2 * z) - eps * z) - math.exp(eps) * stats.norm.cdf(-1 / (2 * z) - eps * z)


def gaussian_epsilon(z, delta):
    if gaussian_delta(0.0, z) <= delta:
        return 0.0
    return optimize.brentq(lambda e: gaussian_delta(e, z) - delta, 0.0, 400.0, xtol=1e-12)


GRID = [
    (round(rng.uniform(0.6, 6.0), 3), round(10 ** rng.uniform(-2.5, -0.2), 4), rng.randint(1, 600), 10.0**-exponent)
    for rng in [random.Random(11)]
    for exponent in (3, 5, 5, 5, 6, 7)
    for _ in range(2)
]


@pytest.mark.parametrize("z", [0.7, 1.0, 2.5, 10.0])
@pytest.mark.parametrize("steps", [1, 40])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_without_sampling_epsilon_is_the_closed_form(z, steps, delta):
    exact = gaussian_epsilon(z / math.sqrt(steps), delta)
    assert exact * (1 - 1e-9) <= epsilon([event(z, 1.0, steps)], delta) <= exact * (1 + 1e-3) + 1e-3


def test_golden_values():
    """Balle and Wang's formula by the function above, at delta 1e-5; and the paper's own 'nominal 0.1' in truth."""
    assert gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.3774, abs=1e-3)
    assert epsilon([event(1.0)], 1e-5) == pytest.approx(4.3774, abs=2e-3)
    assert epsilon([event(10.0, 1.0, 100)], 1e-5) == pytest.approx(4.3774, abs=2e-3)
    # With sampling; Opacus' PRV accountant says 1.838 and 8.350, each to 0.01 and from above.
    assert epsilon([event(1.0, 0.01, 1000)], 1e-5) == pytest.approx(1.828, abs=2e-3)
    assert epsilon([event(2.0, 0.5, 40)], 1e-5) == pytest.approx(8.339, abs=2e-3)


@pytest.mark.parametrize(("z", "q", "steps", "delta"), GRID)
def test_P7_pld_is_never_above_renyi_and_never_below_a_lower_bound(z, q, steps, delta):
    spent = epsilon([event(z, q, steps)], delta)
    renyi = composed(dp_accounting.rdp.RdpAccountant(neighboring_relation=RELATION), [(z, q, steps)])
    assert 0 <= spent <= renyi.get_epsilon(delta) * (1 + 1e-3) + 1e-3
    # One step alone, with the example's presence known, is a lower bound: delta(e) = q delta_Gauss(log(1+(e^e-1)/q)).
    single = (
        optimize.brentq(lambda e: q * gaussian_delta(math.log1p(math.expm1(e) / q), z) - delta, 0.0, 300.0, xtol=1e-10)
        if q * gaussian_delta(0.0, z) > delta
        else 0.0
    )
    assert spent >= single * (1 - 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("delta", [1e-5, 1e-9])
@pytest.mark.parametrize(
    "releases",
    [
        ((1.0, 0.1, 100),),
        ((0.3, 0.001, 10),),  # one step may lose more than the whole is allowed to
        ((0.7, 1e-4, 30), (2.0, 0.2, 5)),
        ((3.0, 0.3, 50), (1.2, 1.0, 2)),  # with and without sampling
        ((20.0, 0.9, 500),),
    ],
)
def test_P7_the_grid_of_a_step_is_dp_accountings_own(releases, delta):
    interval = accounting._interval(releases)
    accountant = composed(dp_accounting.pld.PLDAccountant(RELATION, interval), releases)
    ours = accounting._pld_epsilon(releases, delta, interval)
    sampled = sum(steps for _, sample_rate, steps in releases if sample_rate < 1)
    theirs = accountant.get_epsilon(delta - accounting.ROUNDING_OF_A_STEP * sampled)
    assert ours == pytest.approx(theirs, rel=1e-6)


SETTINGS = [
    (round(rng.uniform(0.7, 6.0), 3), round(10 ** rng.uniform(-2.5, -0.2), 4), rng.randint(1, 400))
    for rng in [random.Random(5)]
    for _ in range(200)
]


@pytest.mark.parametrize(
    ("z", "q", "steps"),
    [
        *((1.0, 0.01, 500), (2.0, 0.5, 40), (4.0, 0.1, 200), (1.2, 0.05, 100)),
        *(pytest.param(*setting, marks=pytest.mark.long) for setting in SETTINGS),
    ],
)
def test_P7_pld_equals_opacus_prv(z, q, steps):
    accountant = PRVAccountant()
    accountant.history = [(z, q, steps)]
    theirs = accountant.get_epsilon(1e-5, eps_error=0.005, delta_error=1e-8)
    assert epsilon([event(z, q, steps)], 1e-5) == pytest.approx(theirs, abs=0.02, rel=0.005)


def test_P7_the_filters_renyi_accounting_equals_opacus_on_two_hundred_settings():
    for z, q, steps in SETTINGS:
        for order in (2, 9, 63):
            theirs = opacus_rdp.compute_rdp(q=q, noise_multiplier=z, steps=steps, orders=[order])
            spent, _ = opacus_rdp.get_privacy_spent(orders=[order], rdp=theirs, delta=1e-5)
            ours = accounting._order_epsilon(((z, q, steps),), 1e-5, order)
            assert ours == pytest.approx(max(spent, 0.0), rel=1e-6), (z, q, steps, order)


def test_steps_and_events_compose():
    whole = epsilon([event(2.0, 0.3, 30)], 1e-5)
    assert epsilon([event(2.0, 0.3, 10), event(2.0, 0.3, 20)], 1e-5) == pytest.approx(whole, rel=1e-3)
    assert epsilon([event(2.0, 0.3, 10)], 1e-5) < whole
    mixed = epsilon([event(2.0, 0.3, 30), event(5.0, 1.0, 3)], 1e-5)
    assert whole < mixed < whole + epsilon([event(5.0, 1.0, 3)], 1e-5) * 3
    assert epsilon([event(3.0), event(4.0)], 1e-5) == pytest.approx(gaussian_epsilon(12 / 5, 1e-5), rel=1e-3)


def test_more_noise_and_less_sampling_spend_less():
    for smaller, larger in (
        ((3.0, 0.3, 9), (2.0, 0.3, 9)),
        ((2.0, 0.2, 9), (2.0, 0.3, 9)),
        ((2.0, 0.3, 8), (2.0, 0.3, 9)),
    ):
        assert epsilon([event(*smaller)], 1e-5) < epsilon([event(*larger)], 1e-5)


def test_no_noise_is_infinite_and_no_steps_is_nothing():
    assert epsilon([event(0.0, 0.01, 1)], 1e-5) == INFINITE
    assert epsilon([event(5.0), event(0.0)], 1e-5) == INFINITE
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([event(1.0, 0.5, 0), event(0.0, 0.5, 0)], 1e-5) == 0.0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_an_impossible_delta_is_named(delta):
    with pytest.raises(PrivacyError, match="delta") as caught:
        epsilon([event(1.0)], delta)
    assert caught.value.code == "BAD_DELTA"


def test_infinity_in_json():
    assert json_epsilon(INFINITE) == "infinite"
    assert json_epsilon(1.5) == 1.5


@pytest.mark.parametrize(
    "wanted",
    [(8.0, 1e-5, 0.5, 40), (1.0, 1e-5, 0.5, 40), (0.1, 1e-5, 0.1, 400), (2.0, 1e-6, 1.0, 100), (20.0, 1e-5, 0.3, 10)],
)
def test_calibration_is_from_above_and_the_smallest_within_two_thousandths(wanted):
    target, delta, sample_rate, steps = wanted
    calibrate_noise_multiplier.cache_clear()
    z = calibrate_noise_multiplier(*wanted)
    assert epsilon([event(z, sample_rate, steps)], delta) <= target
    assert epsilon([event(z * (1 - 2e-3), sample_rate, steps)], delta) > target


def test_calibration_reaches_the_closed_form():
    z = calibrate_noise_multiplier(1.0, 1e-5, 1.0, 25)
    assert z / 5 == pytest.approx(optimize.brentq(lambda s: gaussian_delta(1.0, s) - 1e-5, 0.5, 50), rel=2e-3)


def test_calibration_survives_a_bad_guess(monkeypatch):
    good = calibrate_noise_multiplier(1.0, 1e-5, 0.5, 40)
    for bad in (good / 3, good * 3):
        monkeypatch.setattr(accounting, "_guess_multiplier", lambda *_, bad=bad, **__: bad)
        calibrate_noise_multiplier.cache_clear()
        assert calibrate_noise_multiplier(1.0, 1e-5, 0.5, 40) == pytest.approx(good, rel=2e-3)
        assert epsilon([event(calibrate_noise_multiplier(1.0, 1e-5, 0.5, 40), 0.5, 40)], 1e-5) <= 1.0
    calibrate_noise_multiplier.cache_clear()


def test_calibration_stops_at_its_ends():
    with pytest.raises(PrivacyError) as caught:
        calibrate_noise_multiplier(0.01, 1e-8, 1.0, 10**6)
    assert caught.value.code == "TARGET_UNREACHABLE"
    assert calibrate_noise_multiplier(100.0, 0.01, 1.0, 1) == pytest.approx(accounting.SMALLEST_MULTIPLIER, rel=2e-3)


@pytest.mark.parametrize(("z", "q", "steps"), [(1e-6, 0.5, 40), (0.05, 0.5, 40), (1.0, 0.5, 10**6), (1e-3, 1.0, 10**9)])
def test_next_to_no_noise_is_a_large_epsilon_at_once(z, q, steps):
    """An operator's experiment must not keep a site's agent busy for minutes, or take its memory."""
    begin = time.process_time()
    spent = epsilon([event(z, q, steps)], 1e-5)
    assert spent >= accounting.HOPELESS
    assert time.process_time() - begin < 5


def test_calibration_is_quick(monkeypatch):
    """A few evaluations on a coarse grid, then two on the fine one, which take the time."""
    intervals, evaluate = [], accounting._pld_epsilon
    calibrate_noise_multiplier.cache_clear()
    accounting._epsilon.cache_clear()
    monkeypatch.setattr(accounting, "_pld_epsilon", lambda *of: intervals.append(of[2]) or evaluate(*of))
    calibrate_noise_multiplier(8.0, 1e-5, 0.5, 40)
    assert sum(interval < 2 * min(intervals) for interval in intervals) == 2
    assert len(intervals) <= 20


@pytest.mark.parametrize(
    ("multiplier", "rate", "steps"), [(4.0, 0.5, 3), (1.0, 0.5, 30), (20.0, 0.1, 500), (0.8, 1.0, 2)]
)
def test_a_cap_is_held_exactly_whichever_grid_decides(multiplier, rate, steps):
    events = [PrivacyEvent("x", "per_step", multiplier, rate, steps)]
    exact = epsilon(events, 1e-5)
    for share in (0.3, 0.9, 0.99, 0.9999, 1.0, 1.0001, 1.01, 1.2, 5.0):
        assert exceeds(events, 1e-5, exact * share) == (share < 1.0)


def test_without_sampling_a_cap_is_held_exactly_by_a_closed_form():
    """A millionth beside epsilon, which is dp-accounting's own rounded up; a thousand plans of up to forty releases."""
    generator = np.random.default_rng(0)
    for _ in range(1000):
        delta, releases = 10 ** generator.uniform(-10, -2), int(generator.integers(1, 41))
        events = [PrivacyEvent("x", "one_shot", z, 1.0, 1) for z in 10 ** generator.uniform(0, 3, releases)]
        exact = epsilon(events, delta)
        multiplier = sum(event.noise_multiplier**-2 for event in events) ** -0.5
        theirs = dp_accounting.get_epsilon_gaussian(multiplier, delta)
        assert theirs <= exact <= theirs * (1 + 1e-7) + 1e-12
        if exact > 0:
            assert exceeds(events, delta, exact * (1 - 1e-6))
        assert not exceeds(events, delta, exact * (1 + 1e-6))
    loud = [PrivacyEvent("x", "one_shot", 0.02, 1.0, 1)]
    assert exceeds(loud, 1e-5, accounting.LARGEST_CAP)
    assert exceeds(loud, 1e-5, 1000.0)  # as it is decided beyond
    assert not exceeds(loud, 1e-5, 1e4)


def test_without_sampling_nothing_needs_a_library():
    program = (
        "import sys\nfrom dpfpl_common.privacy.accounting import PrivacyEvent, epsilon, exceeds\n"
        "assert not exceeds([PrivacyEvent('x', 'one_shot', 1.0, 1.0, 1)], 1e-5, 8.0)\n"
        "assert 4 < epsilon([PrivacyEvent('x', 'one_shot', 1.0, 1.0, 1)], 1e-5) < 5\n"
        "assert not {'dp_accounting', 'scipy'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_cap_far_below_is_refused_without_the_fine_grid(monkeypatch):
    """An operator who asks for next to no noise does not keep a site computing what it will refuse."""
    monkeypatch.setattr(accounting, "epsilon", lambda *_: pytest.fail("computed finely"))
    assert exceeds([PrivacyEvent("x", "per_step", 0.31, 0.5, 3)], 1e-5, 10.0)
    assert exceeds([PrivacyEvent("x", "per_step", 0.0, 0.5, 3)], 1e-5, 10.0)
    assert not exceeds([PrivacyEvent("x", "per_step", 4.0, 0.1, 3)], 1e-5, 10.0)
    assert not exceeds([], 1e-5, 0.1)


# Several examples, attackers, and who chooses adaptively


def test_NI13_group_epsilon_is_not_ten_times_epsilon():
    """Epsilon 8 for one image is 19 for two and 209 for ten at the same delta, by dp-accounting's own Gaussian."""
    z = calibrate_noise_multiplier(8.0, 1e-5, 1.0, 1)
    event = [PrivacyEvent("x", "one_shot", z, 1.0, 1)]
    found = {size: group_epsilon(event, 1e-5, size) for size in (1, 2, 10)}
    expected = {size: dp_accounting.get_epsilon_gaussian(z / size, 1e-5) for size in found}
    assert found == pytest.approx(expected)
    assert [round(value) for value in found.values()] == [8, 19, 209]


def test_NI13_groups_under_sampling_are_mixtures_and_one_is_no_group():
    event = [PrivacyEvent("x", "per_step", 2.0, 0.5, 40)]
    assert group_epsilon(event, 1e-5, 1) == pytest.approx(epsilon(event, 1e-5), rel=0.01)
    without = [PrivacyEvent("x", "per_step", 2.0, 1.0, 40)]
    for size in (2, 10):
        assert epsilon(event, 1e-5) < group_epsilon(event, 1e-5, size) < group_epsilon(without, 1e-5, size)


@pytest.mark.parametrize("steps", [PrivacyEvent("x", "per_step", 2.0, 0.5, 40), PrivacyEvent("x", "o", 1.5, 1.0, 1)])
def test_NI13_of_a_group_some_may_be_trained_on_and_some_held_back(steps):
    """Whoever of the group is on which side: no division tells more than is said, and one tells as much."""
    z = calibrate_noise_multiplier(epsilon([steps], 1e-5), 1e-5, 1.0, 1)
    scores = dataclasses.replace(
        steps, mechanism="counts", noise_multiplier=z, sample_rate=1.0, steps=1, part=accounting.HELD_BACK
    )
    said = group_epsilon([steps, scores], 1e-5, 5)
    of_steps, of_scores = (((e.noise_multiplier, e.sample_rate, e.steps),) for e in (steps, scores))
    divided = [accounting._group_epsilon(((of_steps, n), (of_scores, 5 - n)), 1e-5) for n in range(6)]
    assert said == max(divided)
    assert divided[5] == pytest.approx(group_epsilon([steps], 1e-5, 5), rel=1e-9)
    assert divided[0] == pytest.approx(group_epsilon([scores], 1e-5, 5), rel=1e-9)


def test_what_an_attacker_can_reach_is_what_the_gaussian_lets_him_or_more():
    """The bound from (epsilon, delta) holds for the mechanism that has it, at every false positive rate."""
    for target in (8.0, 2.0, 1.0):
        z = calibrate_noise_multiplier(target, 1e-5, 1.0, 1)
        for rate in (1e-4, 1e-3, 1e-2, 0.1, 0.5):
            real = stats.norm.cdf(stats.norm.ppf(rate) + 1 / z)
            assert real <= true_positive_rate(epsilon([PrivacyEvent("x", "o", z, 1.0, 1)], 1e-5), 1e-5, rate) <= 1
    assert true_positive_rate(0.0, 0.0, 0.01) == pytest.approx(0.01)
    assert true_positive_rate(INFINITE, 0.0, 0.001) == 1.0


def adaptive_losses(choose, allows, stages, trials, rng):
    """Log-likelihood ratios under world 1 of an operator who picks each release after seeing the last."""
    groups = {(): np.zeros(trials)}  # by what was released so far
    for stage in range(stages):
        after = {}
        for spent, ratio in groups.items():
            for ahead in (True, False):
                z, q = choose(stage, ahead)
                chosen = ratio[(ratio > 0) == ahead]
                now = spent
                if allows((*spent, (z, q))):
                    drawn = rng.normal(size=len(chosen)) * z + (rng.random(len(chosen)) < q)
                    chosen = chosen + np.log1p(q * np.expm1((2 * drawn - 1) / (2 * z * z)))
                    now = (*spent, (z, q))
                after[now] = np.concatenate([after.get(now, np.zeros(0)), chosen])
        groups = after
    return np.concatenate(list(groups.values()))


def test_NI12_an_operator_who_chooses_after_each_outcome_stays_within_the_cap():
    """Four stages, 10^6 trials: the privacy that was really lost, as delta at the cap, is not above delta."""
    delta, cap, trials = 1e-3, 2.0, 10**6
    said = set()

    def allows(kinds):
        answer = not exceeds_adaptively([PrivacyEvent("x", "per_step", z, q, 1) for z, q in kinds], delta, cap)
        said.add(answer)
        return answer

    def choose(stage, ahead):  # who is ahead presses on with little noise, who is behind waits with much
        return ((1.6, 1.0), (1.2, 0.4))[stage % 2] if ahead else (4.0, 0.5)

    ratio = adaptive_losses(choose, allows, 4, trials, np.random.default_rng(0))
    lost = np.maximum(0.0, -np.expm1(cap - ratio))
    assert said == {True, False}, "the filter had to say no to something"
    assert lost.mean() <= delta + 4 * lost.std() / math.sqrt(trials)


def test_a_filter_is_never_below_the_composition_of_a_fixed_plan():
    for events in (
        [PrivacyEvent("x", "a", 1.0, 1.0, 1), PrivacyEvent("x", "b", 3.0, 1.0, 4)],
        [PrivacyEvent("x", "a", 1.0, 1.0, 1), PrivacyEvent("x", "b", 3.0, 0.5, 40)],
    ):
        real = epsilon(events, 1e-5)
        assert exceeds_adaptively(events, 1e-5, 0.99 * real)
        assert not exceeds_adaptively(events, 1e-5, 1.5 * real)
    assert exceeds_adaptively([PrivacyEvent("x", "a", 0.0, 1.0, 1)], 1e-5, 1e9)


def test_a_cap_that_holds_is_not_refused_after_a_coarse_look():
    """Many steps that lose next to nothing each: rounded up to the coarse grid they would be four times as much."""
    events = [PrivacyEvent("x", "per_step", 2.0, 0.001, 100_000)]
    assert epsilon(events, 1e-5) < 0.61
    assert not exceeds(events, 1e-5, 0.61)
    assert exceeds(events, 1e-5, 0.6)
