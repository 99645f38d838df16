"""The noise that a target asks for, over everything that is admitted, against an accountant that is none of ours."""

import math
import random

import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from opacus.accountants import PRVAccountant

from dpfpl_common.errors import PrivacyError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.privacy import accounting
from dpfpl_common.privacy.accounting import PrivacyEvent, calibrate_noise_multiplier, epsilon
from dpfpl_common.privacy_plan import resolve_noise
from exact_privacy import NotConvergedError, exact_delta

pytestmark = pytest.mark.privacy

EDGES = [
    # target_epsilon, target_delta, sample_rate, steps
    (0.01, 1e-5, 1.0, 1),
    (0.01, 1e-10, 0.9, 1),
    (0.01, 1e-5, 1.0, 1000),
    # A tail a thousand times as wide as epsilon:
    pytest.param(0.02, 4e-9, 1e-4, 4, marks=pytest.mark.slow),
    (0.1, 1e-7, 0.1, 100_000),  # each step loses less than the grid's usual interval
    pytest.param(0.01, 0.01, 0.9, 100_000, marks=pytest.mark.slow),
    pytest.param(1.0, 1e-8, 0.01, 1_000_000, marks=pytest.mark.slow),
    pytest.param(10.0, 1e-8, 0.5, 1_000_000, marks=pytest.mark.slow),
    (1.0, 1e-10, 0.1, 100),
    (10.0, 1e-10, 0.1, 10_000),
    (1.0, 0.01, 0.5, 1000),
    (30.0, 1e-5, 0.5, 40),
    (8.0, 1e-5, 1.0, 1),
    pytest.param(2.0, 1e-6, 1e-3, 100_000, marks=pytest.mark.slow),
]


LOWEST, RAREST = accounting.SMALLEST_TARGET, 1e-4
"""Of targets, and of the sample rates that an experiment may have."""


def log_uniform(rng, low, high):
    return 10 ** rng.uniform(math.log10(low), math.log10(high))


def drawn(rng):
    """A setting of all that is admitted, often at an edge."""
    steps = rng.choice([1, accounting.MOST_STEPS, *(round(log_uniform(rng, 1, accounting.MOST_STEPS)) for _ in "ab")])
    smallest = max(accounting.SMALLEST_DELTA, accounting.SMALLEST_DELTA_OF_A_STEP * steps)
    return (
        rng.choice([LOWEST, accounting.LARGEST_TARGET, log_uniform(rng, LOWEST, accounting.LARGEST_TARGET)]),
        rng.choice([smallest, accounting.LARGEST_DELTA, log_uniform(rng, smallest, accounting.LARGEST_DELTA)]),
        rng.choice([1.0, RAREST, log_uniform(rng, RAREST, 1.0)]),
        steps,
    )


def says_nothing(delta, sample_rate, steps):
    return -math.expm1(steps * math.log1p(-sample_rate)) <= delta if sample_rate < 1 else False


def lower_bound(z, sample_rate, steps, delta, error):
    """Epsilon with every loss rounded down: no larger than the true one, and no more than ``error`` smaller."""
    losses = from_gaussian_mechanism(
        z, pessimistic_estimate=False, value_discretization_interval=error / steps, sampling_prob=sample_rate,
        use_connect_dots=False,
    )  # fmt: skip
    return losses.self_compose(steps).get_epsilon_for_delta(delta)


def check(target, delta, sample_rate, steps):
    """Our epsilon at the calibrated multiplier is within a hundredth of the true one, and never promises more."""
    calibrate_noise_multiplier.cache_clear()
    z = calibrate_noise_multiplier(target, delta, sample_rate, steps)
    spent = epsilon([PrivacyEvent("other_site", "per_step", z, sample_rate, steps)], delta)
    assert spent <= target
    try:
        at_ours, below = (exact_delta(each, z, sample_rate, steps) for each in (spent, spent / 1.01))
    except NotConvergedError:
        assert spent / 1.01 <= lower_bound(z, sample_rate, steps, delta, error=spent / 200) <= spent
        return z, spent
    assert at_ours <= delta * 1.001  # so the true epsilon is not above ours
    assert below >= delta or spent < 2e-4  # and not below ours by more than a hundredth
    return z, spent


@pytest.mark.parametrize(("target", "delta", "sample_rate", "steps"), EDGES)
def test_a_calibrated_epsilon_is_exact_to_a_hundredth(target, delta, sample_rate, steps):
    z, spent = check(target, delta, sample_rate, steps)
    assert z <= accounting.SMALLEST_MULTIPLIER * 1.01 or spent > 0.98 * target  # and no more noise than it takes


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
def test_the_whole_admitted_range(part):
    """Ten settings each, whatever is asked for; run some with ``-k "[7]"``."""
    rng = random.Random(part)
    for setting in [drawn(rng) for _ in range(10)]:
        try:
            check(*setting)
        except PrivacyError as refused:
            if refused.code != ("DELTA_SAYS_NOTHING" if says_nothing(*setting[1:]) else "TARGET_UNREACHABLE"):
                raise


REFUSED = [
    (1000.0, 1e-5, 0.5, 10),
    (100.1, 1e-5, 0.5, 10),
    (0.009, 1e-5, 0.5, 10),
    (1.0, 1e-11, 0.5, 10),
    (1.0, 1e-10, 0.5, 20_000),  # 2e-10 is the smallest over so many steps
    (1.0, 1e-9, 0.01, 1_000_000),
    (1.0, 0.02, 0.5, 10),
    (1.0, 1e-5, 1e-3, 1_000_001),
    (1.0, 1e-5, 1e-6, 10**10),
]


@pytest.mark.parametrize("setting", REFUSED)
def test_a_setting_for_which_epsilons_are_not_exact_is_refused(setting):
    with pytest.raises(PrivacyError) as caught:
        calibrate_noise_multiplier(*setting)
    assert caught.value.code == "NOT_EXACT_THERE"
    assert caught.value.advice


@pytest.mark.parametrize(
    ("delta", "sample_rate", "steps"), [(0.01, 1e-4, 90), (1e-3, 1e-4, 10), (0.01, 0.009, 1), (0.01, 1e-4, 1)]
)
def test_a_delta_that_holds_without_noise_is_refused(delta, sample_rate, steps):
    with pytest.raises(PrivacyError, match="without any noise") as caught:
        calibrate_noise_multiplier(1.0, delta, sample_rate, steps)
    assert caught.value.code == "DELTA_SAYS_NOTHING"


@pytest.mark.parametrize(
    ("delta", "sample_rate", "steps", "code"),
    [
        (1e-11, 0.5, 10, "NOT_EXACT_THERE"),
        (0.02, 0.5, 10, "NOT_EXACT_THERE"),
        (1e-5, 0.5, 1_000_100, "NOT_EXACT_THERE"),
        (1e-10, 0.5, 20_000, "NOT_EXACT_THERE"),
        (0.01, 1e-3, 10, "DELTA_SAYS_NOTHING"),
    ],
)
def test_a_given_multiplier_is_held_to_the_same_range(delta, sample_rate, steps, code):
    def asked(noise_multiplier):
        privacy = PrivacySettings(
            mechanism="per_step", noise_multiplier=noise_multiplier, target_delta=delta, sample_rate=sample_rate
        )
        return Experiment(
            "pilot", model=ModelSettings(width=8), classes=("a", "b"), sites=("x", "y", "z"), privacy=privacy,
            rounds=RoundSettings(number=-(-steps // 100), local_steps=min(steps, 100)),
        )  # fmt: skip

    with pytest.raises(PrivacyError) as caught:
        resolve_noise(asked(1.0))
    assert caught.value.code == code
    assert resolve_noise(asked(0.0)).privacy.noise_multiplier == 0.0  # claims nothing


@pytest.mark.parametrize(("delta", "steps"), [(1e-5, 600_000), (1e-11, 1), (0.02, 1), (1e-10, 6000)])
def test_a_ledger_beyond_the_range_has_no_number(delta, steps):
    several = [PrivacyEvent("other_site", "per_step", 1e4, 0.01, steps)] * 2
    assert epsilon(several, delta) == accounting.INFINITE
    assert accounting.exceeds(several, delta, 1e6)


@pytest.mark.parametrize(
    ("z", "sample_rate", "steps", "delta"),
    [(0.4214, 0.0149, 12_400, 0.00831), (0.25, 0.3, 8, 1e-5), (0.1, 1.0, 3, 1e-5)],
)
def test_a_large_epsilon_is_exact_too(z, sample_rate, steps, delta):
    """Renyi's bound would be 200 instead of 94.6 for the first."""
    spent = epsilon([PrivacyEvent("other_site", "per_step", z, sample_rate, steps)], delta)
    assert exact_delta(spent, z, sample_rate, steps) <= delta < exact_delta(spent / 1.01, z, sample_rate, steps)


def test_the_exact_accountant_agrees_with_closed_forms_and_with_opacus():
    for z, steps in ((1.0, 1), (2.0, 30), (40.0, 1000)):  # a rate next to 1 takes the integral, 1 the closed form
        for target in (0.3, 2.0):
            closed = exact_delta(target, z, 1.0, steps)
            assert exact_delta(target, z, 1 - 1e-12, steps) == pytest.approx(closed, rel=1e-6)
    for z, q, steps in ((1.0, 0.01, 1000), (4.0, 0.1, 200)):
        theirs = PRVAccountant()
        theirs.history = [(z, q, steps)]
        found = theirs.get_epsilon(1e-5, eps_error=0.002, delta_error=1e-9)
        assert exact_delta(found, z, q, steps) == pytest.approx(1e-5, rel=0.03)
