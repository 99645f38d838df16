"""From what was (or will be) released to epsilon; independent of training.

The neighbouring relation is everywhere: one unit (a training example, or a site's whole data set) is added or removed.
Every event is a Poisson-subsampled Gaussian mechanism. Without sampling epsilon is a closed form. With it, composition
is by privacy loss distributions of dp-accounting (PLD: Koskela, Jalko and Honkela 2020; tight, an upper bound up to its
stated discretisation).

dp-accounting takes about a second to import, so it is imported where it is needed. An agent calls ``load_library``
before its first request.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpfpl_common.errors import PrivacyError

__all__ = [
    "BOTH_PARTS",
    "HELD_BACK",
    "INFINITE",
    "TRAINING",
    "PrivacyEvent",
    "calibrate_noise_multiplier",
    "epsilon",
    "exceeds",
    "exceeds_adaptively",
    "group_epsilon",
    "json_epsilon",
    "load_library",
    "refuse_inexact",
    "true_positive_rate",
]

INFINITE = float("inf")

SEARCH_TOLERANCE = 1e-3
"""Relative: a calibrated multiplier is larger than need be by so much at most."""
SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER = 0.1, 1e5
"""Below, a single step costs about the largest target; above, rows of thousands of images drown."""
LARGEST_CAP = 600.0
"""Beyond it ``e^epsilon``, or what it multiplies, is soon no number of full precision."""
HOPELESS = 1e3
"""Where an example's expected privacy loss may be above this, epsilon is not computed but infinite: ten times the
largest target, and PLD would take minutes."""

DISCRETISATION = 1e-4
"""Interval of the privacy losses' grid; PLD rounds up, so a coarser one gives a larger epsilon, sooner."""

COARSE_DISCRETISATION = 1e-2
"""A hundredth of the points, for a first answer that is an upper bound too."""

WIDE, RELATIVE_DISCRETISATION = 20.0, 1e-5
"""If a step's privacy loss can be above the first, a grid of the second times epsilon is fine enough; of the two grids
the coarser one is used."""

FINEST_GRID = 400_000
"""Most points, about, that a finer grid may have: bounds time and memory."""

MOST_STEPS, SMALLEST_TARGET, LARGEST_TARGET, LARGEST_DELTA = 1_000_000, 0.01, 100.0, 0.01
SMALLEST_DELTA, SMALLEST_DELTA_OF_A_STEP = 1e-10, 1e-14
"""Where epsilons are exact to a hundredth (tests/common/test_calibration.py). With smaller deltas the rounding of
double precision, which grows with the steps, is no longer small beside delta."""

ROUNDING_OF_A_STEP = float(np.finfo(np.float64).eps)
"""Taken off delta for each composed step, so that rounding never makes an epsilon too small: what was seen, on two
kinds of processors, is up to a quarter of it."""

Releases = tuple[tuple[float, float, int], ...]
"""(noise_multiplier, sample_rate, steps) of each event."""

TRAINING, HELD_BACK, BOTH_PARTS = "training", "held_back", "both"
"""The examples that a release is about. An example is in the training part or in the held-back part, never in both;
``both``: nothing is known that keeps them apart."""


@dataclass(frozen=True)
class PrivacyEvent:
    """``steps`` releases of one mechanism, as one adversary sees them.

    Attributes:
        adversary: key of ``dpfpl_common.privacy_plan.ADVERSARIES``.
        mechanism: ``per_step``: Gaussian on a clipped sum over a Poisson sample; ``one_shot``: on class sums;
            ``whole_update``: on the sum of the sites' clipped updates, unit one site's whole data set;
            ``noised_counts``: on counts of right answers.
        noise_multiplier: noise standard deviation over L2 sensitivity; 0 = no noise.
        sample_rate: chance that an example takes part in a step, or a site in a round.
        steps: how many times.
        part: the examples it is about: ``training``, ``held_back``, or ``both``.
    """

    adversary: str
    mechanism: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    part: str = TRAINING


def load_library() -> None:
    """Import dp-accounting now rather than with the first epsilon."""
    import dp_accounting  # noqa: F401


def epsilon(events: Sequence[PrivacyEvent], delta: float) -> float:
    """Epsilon of all the events together, at ``delta``; infinite if one of them has no noise.

    Exact to a hundredth, from above. Where it could not be (see ``refuse_inexact``), and with sampling where the
    expected privacy loss may be above a thousand, it is infinite too, so that no wrong number is ever a promise.

    Events about one part compose, events about disjoint parts do so in parallel (McSherry 2009): whichever part an
    example is in, only that part's events depend on it, so the larger of the two sums holds for every example.
    """
    return max(_epsilon(releases, delta) for releases in _by_part(events))


def exceeds(events: Sequence[PrivacyEvent], delta: float, cap: float) -> bool:
    """Whether ``epsilon`` of the events is above ``cap``, mostly without computing it to the last digit.

    Without sampling the delta at the cap says it, in closed form. Else PLD takes seconds for large epsilons on the fine
    grid and a tenth of one on a coarse grid, whose epsilon is an upper bound too: four times too large for 100,000
    steps at rate 0.001, a few percent for epsilons above 20. So a cap that holds on the coarse grid holds, and one that
    is passed there by far is taken as passed; only what is between is computed finely. So nobody can keep a site busy
    with arithmetic by sending requests.
    """
    for releases in _by_part(events):
        if _is_plain(releases, delta) and 0 <= cap <= LARGEST_CAP:
            if _gaussian_delta(releases, cap) > delta:
                return True
            continue
        coarse = _epsilon(releases, delta, coarse=True)
        if coarse > cap and (coarse > 2 * cap + 5 or _epsilon(releases, delta) > cap):
            return True
    return False


def exceeds_adaptively(events: Sequence[PrivacyEvent], delta: float, cap: float) -> bool:
    """Whether one more release would pass a cap, where each was chosen after its predecessors' outcomes were seen.

    For a fixed plan ``exceeds`` is right. Over a lifetime the next experiment's noise may be chosen for what the last
    one gave away, and then the composition theorem of fixed mechanisms does not apply; a *privacy filter* does. Without
    sampling: the filter on ``sum 1 / z^2`` (Smith and Thakurta 2022), which loses nothing against the composition of
    Gaussians. With sampling: the Renyi filter (Feldman and Zrnic 2021) at one order, fixed beforehand by cap and delta
    alone; an order picked afterwards would be a choice by outcome too. So would be which filter decides, as it depends
    on whether anything is ever sampled: each gets half of delta, and together they keep the whole. A first experiment
    that passes ``exceeds`` but not this is admitted as the only one: from then on its whole plan counts, however little
    of it ran, so that nobody can stop it early, by its outcome, and go on under the filter. It keeps delta too.
    """
    delta /= 2
    for releases in _by_part(events):
        if any(noise_multiplier <= 0 for noise_multiplier, _, _ in releases):
            return True
        if all(sample_rate == 1.0 for _, sample_rate, _ in releases):
            spent = _gaussian_epsilon(releases, delta)
        else:
            spent = _order_epsilon(releases, delta, _filter_order(cap, delta))
        if spent > cap:
            return True
    return False


def group_epsilon(events: Sequence[PrivacyEvent], delta: float, size: int) -> float:
    """Epsilon for ``size`` examples together, at the same delta: what a patient with so many images is promised.

    It grows much faster than in proportion. Without sampling it is exact: k examples move a sum k times as far. With
    sampling the number of them in a step is binomial, a mixture of Gaussians. Some of the examples may be trained on
    and the others held back: the division that tells most counts. Without sampling that is one with all of them on one
    side, as k^2 / z^2 adds up; with it each is computed.
    """
    training, held_back, both = (_about(events, part) for part in (TRAINING, HELD_BACK, BOTH_PARTS))
    sampled = any(rate < 1.0 for _, rate, _ in (*training, *held_back, *both))
    divisions = range(size + 1) if sampled and training and held_back else (0, size)
    return max(_group_epsilon(((training, n), (held_back, size - n), (both, size)), delta) for n in divisions)


def true_positive_rate(epsilon: float, delta: float, false_positive_rate: float) -> float:
    """The largest chance to recognise a member's data, for an attacker who is wrong about others at this rate.

    The definition of (epsilon, delta) read as a test: ``TPR <= e^epsilon FPR + delta`` and ``1 - FPR <= e^epsilon (1 -
    TPR) + delta`` (Wasserman and Zhou 2010; Kairouz, Oh and Viswanath 2015).
    """
    upper = math.exp(min(epsilon, 700.0)) * false_positive_rate + delta
    return max(0.0, min(1.0, upper, 1.0 - math.exp(-epsilon) * (1.0 - delta - false_positive_rate)))


def _is_plain(releases: Releases, delta: float) -> bool:
    """Whether all of them are noised, none is sampled, and an epsilon of them is a promise at this delta."""
    noised = bool(releases) and all(noise_multiplier > 0 and rate == 1.0 for noise_multiplier, rate, _ in releases)
    return noised and 0 < delta < 1 and _inexact(delta, sum(steps for _, _, steps in releases)) is None


def _gaussian_delta(releases: Releases, epsilon: float) -> float:
    """The delta of Gaussian releases without sampling at an epsilon, rounded up (Balle and Wang 2018, theorem 8).

    Together they are one release with the multiplier ``1 / m``, and ``delta = Phi(m / 2 - epsilon / m) - e^epsilon
    Phi(-m / 2 - epsilon / m)``. It needs no library: to import one takes longer than most commands.
    """
    m = math.sqrt(sum(steps / noise_multiplier**2 for noise_multiplier, _, steps in releases))
    below, above = (math.erfc((epsilon / m + side * m / 2) / math.sqrt(2)) / 2 for side in (-1, 1))
    return (below - math.exp(epsilon) * above) + 1e-12 * below


def _gaussian_epsilon(releases: Releases, delta: float) -> float:
    """Of Gaussian releases without sampling, exactly (rounded up): where their delta is this one, by bisection."""
    information = sum(steps / noise_multiplier**2 for noise_multiplier, _, steps in releases)
    low, high = 0.0, information / 2 + math.sqrt(2 * information * math.log(1 / delta))  # above: Bun and Steinke 2016
    if high > LARGEST_CAP:
        from dp_accounting import get_epsilon_gaussian

        return (1 + 1e-9) * float(get_epsilon_gaussian(1.0 / math.sqrt(information), delta))
    if not information or _gaussian_delta(releases, low) <= delta:
        return 0.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _gaussian_delta(releases, middle) <= delta else (middle, high)
    return (1 + 1e-9) * high


@functools.lru_cache(maxsize=1024)
def _order_epsilon(releases: Releases, delta: float, order: float) -> float:
    import dp_accounting

    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = dp_accounting.rdp.RdpAccountant(orders=[order], neighboring_relation=relation)
    for noise_multiplier, sample_rate, steps in releases:
        accountant.compose(
            dp_accounting.PoissonSampledDpEvent(sample_rate, dp_accounting.GaussianDpEvent(noise_multiplier)), steps
        )
    return float(accountant.get_epsilon(delta))


@functools.lru_cache(maxsize=256)
def _filter_order(cap: float, delta: float) -> float:
    """The order at which a filter admits the most Gaussian releases under this cap."""

    def admitted(order: float) -> float:
        room = cap - math.log1p(-1.0 / order) + (math.log(delta) + math.log(order)) / (order - 1.0)
        return room / order

    return float(max(range(2, 1025), key=admitted))  # whole orders always converge


@functools.lru_cache(maxsize=256)
def _group_epsilon(told: tuple[tuple[Releases, int], ...], delta: float) -> float:
    """Of releases about so many examples of the group each, together."""
    about = [(z, rate, steps, size) for releases, size in told for z, rate, steps in releases if size]
    if any(noise_multiplier <= 0 for noise_multiplier, _, _, _ in about):
        return INFINITE
    plain = tuple((z / size, 1.0, steps) for z, rate, steps, size in about if rate == 1.0)
    if len(plain) == len(about):
        return _gaussian_epsilon(plain, delta)
    import dp_accounting

    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    most = max(
        size for _, _, _, size in about
    )  # a group's losses are as much larger, and so may the grid's interval be
    accountant = dp_accounting.pld.PLDAccountant(relation, COARSE_DISCRETISATION * most)
    if plain:
        together = sum(steps / noise_multiplier**2 for noise_multiplier, _, steps in plain) ** -0.5
        accountant.compose(dp_accounting.GaussianDpEvent(together))
    for noise_multiplier, sample_rate, steps, size in about:
        if sample_rate == 1.0:
            continue
        chances = [
            math.comb(size, count) * sample_rate**count * (1.0 - sample_rate) ** (size - count)
            for count in range(size + 1)
        ]
        mixture = dp_accounting.dp_event.MixtureOfGaussiansDpEvent(noise_multiplier, list(range(size + 1)), chances)
        accountant.compose(mixture, steps)
    return float(accountant.get_epsilon(delta))


def _by_part(events: Sequence[PrivacyEvent]) -> tuple[Releases, Releases]:
    """What an example of the training part, and one of the held-back part, is told about."""
    return _about(events, TRAINING, BOTH_PARTS), _about(events, HELD_BACK, BOTH_PARTS)


def _about(events: Sequence[PrivacyEvent], *parts: str) -> Releases:
    """The releases of events about these parts."""
    unknown = {event.part for event in events} - {TRAINING, HELD_BACK, BOTH_PARTS}
    if unknown:
        raise ValueError(f"Unknown part of the examples: {sorted(unknown)}.")
    return tuple((e.noise_multiplier, e.sample_rate, e.steps) for e in events if e.steps > 0 and e.part in parts)


def json_epsilon(value: float) -> float | str:
    """JSON has no infinity: the string "infinite" stands for it."""
    return "infinite" if value == INFINITE else value


@functools.lru_cache(maxsize=4096)
def _epsilon(releases: Releases, delta: float, *, coarse: bool = False) -> float:
    if not 0 < delta < 1:
        raise PrivacyError(code="BAD_DELTA", message=f"delta is {delta}, expected a number between 0 and 1.")
    if any(noise_multiplier <= 0 for noise_multiplier, _, _ in releases):
        return INFINITE
    if not releases:
        return 0.0
    if _inexact(delta, sum(steps for _, _, steps in releases)) is not None:
        return INFINITE
    if coarse:
        return _pld_epsilon(releases, delta, COARSE_DISCRETISATION)
    wide = any(_largest_loss(z, q) > WIDE for z, q, _ in releases)
    about = _epsilon(releases, delta, coarse=True) if wide else 0.0
    return _pld_epsilon(releases, delta, _interval(releases, about)) if about < INFINITE else INFINITE


def _interval(releases: Releases, about: float = 0.0, points: int = FINEST_GRID) -> float:
    """A grid's interval that is small beside what a single step loses: else rounding up adds over many steps.

    A larger one does for an epsilon that is ``about`` so large.
    """
    finest = max(DISCRETISATION, RELATIVE_DISCRETISATION * about)
    for noise_multiplier, sample_rate, steps in releases:
        if sample_rate >= 1:  # composed into one Gaussian
            deviation = math.sqrt(steps) / noise_multiplier
            span = 20 * deviation
        else:
            deviation = sample_rate * math.sqrt(math.expm1(min(1 / noise_multiplier**2, 50.0)))
            span = _largest_loss(noise_multiplier, sample_rate) + 20 * deviation * math.sqrt(steps)
        finest = min(finest, max(deviation / 10, span / points))
    return finest


def _largest_loss(noise_multiplier: float, sample_rate: float) -> float:
    """Of a step whose outcome is eight deviations away."""
    largest = (16 * noise_multiplier + 1) / (2 * noise_multiplier**2)
    return math.log1p(sample_rate * math.expm1(largest)) if largest < 600 else math.log(sample_rate) + largest


def _expected_loss(releases: Releases) -> float:
    """An upper bound of the expected privacy loss: by convexity, and by the chi-squared divergence."""

    def of_a_step(z: float, q: float) -> float:
        divergence = math.log1p(q**2 * math.expm1(z**-2)) if z > 0.05 else 2 * math.log(q) + z**-2
        return min(q / (2 * z**2), divergence)

    return sum(steps * of_a_step(z, q) for z, q, steps in releases)


def _pld_epsilon(releases: Releases, delta: float, interval: float) -> float:
    if all(sample_rate >= 1 for _, sample_rate, _ in releases):
        return _gaussian_epsilon(releases, delta)
    if _expected_loss(releases) > HOPELESS:  # PLD would take minutes and gigabytes for a number that protects nobody
        return INFINITE
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    spent = functools.reduce(
        PrivacyLossDistribution.compose,
        (
            _losses(z / math.sqrt(steps), 1.0, interval) if q >= 1 else _losses(z, q, interval).self_compose(steps)
            for z, q, steps in releases
        ),
    )
    composed = sum(steps for _, sample_rate, steps in releases if sample_rate < 1)
    return float(spent.get_epsilon_for_delta(delta - ROUNDING_OF_A_STEP * composed))


def _losses(noise_multiplier: float, sample_rate: float, interval: float) -> Any:
    """Of one step, rounded up to a grid by "connecting the dots" (Doroshenko et al. 2022, algorithm 1).

    dp-accounting's own for a sampled Gaussian is the same, but computes the grid's deltas one by one in Python.
    """
    from dp_accounting import pld

    adjacency = pld.privacy_loss_mechanism.AdjacencyType
    distributions = []
    for relation in (adjacency.REMOVE, adjacency.ADD)[: 1 if sample_rate >= 1 else 2]:
        bounds = pld.privacy_loss_mechanism.GaussianPrivacyLoss(
            noise_multiplier, sampling_prob=sample_rate, adjacency_type=relation
        ).connect_dots_bounds()
        lower, upper = math.floor(bounds.epsilon_lower / interval), math.ceil(bounds.epsilon_upper / interval)
        epsilons = interval * np.arange(lower, upper + 1)
        deltas = _deltas_of_a_step(epsilons, noise_multiplier, sample_rate, removed=relation is adjacency.REMOVE)
        distributions.append(pld.pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, lower, upper, deltas))
    return pld.privacy_loss_distribution.PrivacyLossDistribution(*distributions)


def _deltas_of_a_step(epsilons: NDArray[np.float64], z: float, q: float, *, removed: bool) -> NDArray[np.float64]:
    """``P(L >= epsilon) - e^epsilon Q(L >= epsilon)`` [n] of one sampled Gaussian release; ``L`` is its privacy loss.

    With the example the outcome is drawn from ``(1 - q) N(0, z^2) + q N(1, z^2)``, without it from ``N(0, z^2)``. The
    first is P for an example removed, Q for one added. The loss is at least ``epsilon`` on one side of an edge. Small
    differences of large terms are never taken: far fewer than a billionth counts where delta does.
    """
    from scipy import special

    sign = 1 if removed else -1
    signed = sign * epsilons
    deltas = -np.expm1(epsilons) if removed else np.zeros_like(epsilons)
    edged = np.expm1(signed) > -q  # elsewhere the loss is always above epsilon, or never
    signed = signed[edged]
    with np.errstate(over="ignore", invalid="ignore"):
        excess = np.where(
            signed < 1, np.log1p(np.expm1(signed) / q), signed - math.log(q) + np.log1p((q - 1) * np.exp(-signed))
        )
        edge = z * z * excess + 0.5
        log_plain = special.log_ndtr(-sign * edge / z)
        plain, shifted = np.exp(log_plain), special.ndtr(-sign * (edge - 1) / z)
        raised = np.where(signed < 1, np.expm1(signed) * plain, np.exp(signed + log_plain) - plain)
    deltas[edged] = (q * (shifted - plain) - raised) * (1 if removed else -np.exp(-signed))
    return np.clip(deltas, 0.0, 1.0)


@functools.lru_cache(maxsize=1024)
def calibrate_noise_multiplier(target_epsilon: float, target_delta: float, sample_rate: float, steps: int) -> float:
    """The smallest noise multiplier (within a thousandth, from above) whose ``epsilon`` stays at or below the target.

    Multipliers below SMALLEST_MULTIPLIER are not looked at: where even that one spends less, it is the answer. A coarse
    grid guesses, and two evaluations on the fine one, just above and just below the guess, usually prove it.

    Raises:
        PrivacyError: as ``refuse_inexact``; NOT_EXACT_THERE for targets below SMALLEST_TARGET or above
            LARGEST_TARGET; or TARGET_UNREACHABLE, no multiplier up to LARGEST_MULTIPLIER reaches the target.
    """
    refuse_inexact(target_delta, sample_rate, steps)
    if not SMALLEST_TARGET <= target_epsilon <= LARGEST_TARGET:
        expected = f"expected {SMALLEST_TARGET:g} to {LARGEST_TARGET:g}"
        raise _not_exact(f"target_epsilon is {target_epsilon:g}, {expected}")

    def reached(noise_multiplier: float) -> bool:
        return _epsilon(((noise_multiplier, sample_rate, steps),), target_delta) <= target_epsilon

    def coarse(noise_multiplier: float, points: int = FINEST_GRID // 4) -> float:
        releases = ((noise_multiplier, sample_rate, steps),)
        times = 10 if target_epsilon >= 1 else 1
        return _pld_epsilon(releases, target_delta, times * _interval(releases, points=points))

    guess = _guess_multiplier(coarse, target_epsilon, start=max(1.0, sample_rate * math.sqrt(steps)))
    if _interval(((guess, sample_rate, steps),)) < _interval(((guess, sample_rate, steps),), points=FINEST_GRID // 4):
        guess = _guess_multiplier(functools.partial(coarse, points=FINEST_GRID), target_epsilon, guess, stride=0.02)
    ratio = 1 + SEARCH_TOLERANCE / 3
    high = guess * ratio
    while not reached(high):
        ratio *= ratio
        high *= ratio
        if high > LARGEST_MULTIPLIER:
            raise PrivacyError(
                code="TARGET_UNREACHABLE",
                message=f"No noise reaches epsilon {target_epsilon} at delta {target_delta} over {steps} steps.",
                advice="Ask for a larger epsilon" + (", fewer rounds or a lower sample rate." if steps > 1 else "."),
            )
    low = guess / ratio
    while low > SMALLEST_MULTIPLIER and reached(low):
        ratio *= ratio
        low, high = low / ratio, low
    while high - low > SEARCH_TOLERANCE * high:
        # Epsilon falls about as a power of the multiplier: the geometric mean halves that interval.
        middle = math.sqrt(low * high)
        if reached(middle):
            high = middle
        else:
            low = middle
    unit = 10.0 ** (4 - math.floor(math.log10(high)))
    return math.ceil(high * unit) / unit  # five digits, upwards: the same on every processor


def refuse_inexact(delta: float, sample_rate: float, steps: int) -> None:
    """Refuse a setting whose epsilons are not exact to a hundredth, or say nothing.

    Raises:
        PrivacyError: NOT_EXACT_THERE; or DELTA_SAYS_NOTHING, where ``delta`` is no smaller than the chance that an
            example is ever used: then the promise holds at epsilon 0 without any noise, and protects nobody.
    """
    reason = _inexact(delta, steps)
    if reason is not None:
        raise _not_exact(reason)
    chance = -math.expm1(steps * math.log1p(-sample_rate)) if sample_rate < 1 else 1.0
    if chance <= delta:
        raise PrivacyError(
            code="DELTA_SAYS_NOTHING",
            message=f"target_delta is {delta:g}, and the chance that an example is ever used is {chance:g}: the "
            "promise would hold without any noise.",
            advice="Ask for a smaller target_delta.",
        )


def _inexact(delta: float, steps: int) -> str | None:
    """Why epsilons are not exact to a hundredth there; None where they are."""
    smallest = max(SMALLEST_DELTA, SMALLEST_DELTA_OF_A_STEP * steps)
    for name, value, right, expected in (
        ("the number of steps", steps, steps <= MOST_STEPS, f"at most {MOST_STEPS:,}"),
        ("target_delta", delta, delta >= smallest, f"at least {smallest:g} for so many steps"),
        ("target_delta", delta, delta <= LARGEST_DELTA, f"at most {LARGEST_DELTA:g}"),
    ):
        if not right:
            return f"{name} is {value:g}, expected {expected}"
    return None


def _not_exact(reason: str) -> PrivacyError:
    return PrivacyError(
        code="NOT_EXACT_THERE",
        message=f"{reason}: beyond that no epsilon can be computed to a hundredth.",
        advice="Choose another value.",
    )


def _guess_multiplier(
    epsilon_of: Callable[[float], float], target_epsilon: float, start: float, stride: float = 1.0
) -> float:
    """Where ``epsilon_of`` about meets the target: false position in the logarithms, where it is nearly a line."""

    def excess(log_multiplier: float) -> float:
        return math.log(min(max(epsilon_of(math.exp(log_multiplier)), 1e-9), 1e9) / target_epsilon)

    low = high = math.log(min(start, LARGEST_MULTIPLIER))
    above = below = excess(low)
    while above < 0 and low > math.log(SMALLEST_MULTIPLIER):
        low, high, below = max(low - stride, math.log(SMALLEST_MULTIPLIER)), low, above
        above = excess(low)
    while below > 0 and high < math.log(LARGEST_MULTIPLIER):
        low, high, above = high, high + stride, below
        below = excess(high)
    if above <= 0 or below >= 0:
        return math.exp(low if above <= 0 else high)
    for _ in range(40):
        if high - low < SEARCH_TOLERANCE / 50:  # there the grid's own error is larger
            break
        middle = (low * below - high * above) / (below - above)
        value = excess(middle)
        if abs(value) < SEARCH_TOLERANCE / 20:
            return math.exp(middle)
        if value > 0:
            low, above, below = middle, value, below / 2  # Illinois: halving keeps the other end moving
        else:
            high, below, above = middle, value, above / 2
    return math.exp(high)
