"""Epsilon from below: what an attack's success proves about a mechanism, with stated confidence.

If a mechanism is (epsilon, delta) differentially private, an attack succeeds only so often; one that does better
disproves the claim. Both bounds hold with the stated confidence over the mechanism's randomness and the attacker's.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from dpfpl_common.privacy.accounting import PrivacyEvent, epsilon, json_epsilon

__all__ = [
    "Finding",
    "bounded",
    "combined",
    "compared",
    "gaussian_bound",
    "one_run_bound",
    "one_run_p_value",
    "two_world_bound",
]

Floats = npt.NDArray[np.float64]
LARGEST = 50.0


def two_world_bound(with_member: Floats, without: Floats, delta: float, confidence: float = 0.95) -> float:
    """A lower bound on epsilon from many independent runs with a canary and as many without it.

    The threshold is chosen on one half of the scores; on the other half, Clopper-Pearson bounds of the true and false
    positive rates go into ``epsilon >= ln((TPR - delta) / FPR)`` and its mirror image (Jagielski, Ullman, Oprea 2020).

    Args:
        with_member: scores of the runs with the canary, at least four; larger means "it was there".
        without: scores of the runs without it.
        delta: the claim's.
        confidence: that the bound holds.
    """
    best = 0.0
    half = len(with_member) // 2
    learned = np.concatenate([with_member[:half], without[:half]])
    thresholds = np.quantile(learned, np.linspace(0.005, 0.995, 199))
    # Two directions are tried, each with two intervals.
    level = (1 - confidence) / 4
    for members, others, signs in ((with_member, without, thresholds), (-without, -with_member, -thresholds)):
        learned_ratios = [_ratio(members[:half], others[:half], sign, delta, level) for sign in signs]
        chosen = signs[int(np.argmax(learned_ratios))]
        best = max(best, _ratio(members[half:], others[half:], chosen, delta, level))
    return best


def gaussian_bound(with_member: Floats, without: Floats, delta: float, confidence: float = 0.95) -> float:
    """A lower bound on the epsilon of what claims to be one Gaussian mechanism, from runs in two worlds.

    A mechanism of multiplier z has ``Phi^-1(TPR) - Phi^-1(FPR) <= 1 / z`` for every test. Clopper-Pearson bounds of
    both rates, at the threshold 0, give the largest z that is left, and z the epsilon at the claim's delta. Far tighter
    than ``two_world_bound`` where epsilon is large, as no rate has to be tiny (Nasr et al. 2023).

    Args:
        with_member: logarithms of likelihood ratios of the runs with the canary.
        without: the same of the runs without it.
        delta: the claim's.
        confidence: that the bound holds.
    """
    low, high = _rates(with_member, without, 0.0, (1 - confidence) / 2)
    separation = float(stats.norm.ppf(low) - stats.norm.ppf(high))
    return epsilon([PrivacyEvent("attacker", "canary", 1 / separation, 1.0, 1)], delta) if separation > 0 else 0.0


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Chance, at most, that an (epsilon, delta) mechanism lets this many guesses be right.

    Each of ``canaries`` examples was put in or left out by a fair coin; the attacker guesses some of the coins. Under
    pure epsilon a guess is right with chance at most ``e^epsilon / (1 + e^epsilon)`` whatever the others were, so the
    number of right ones is dominated by a binomial; delta adds a correction (Steinke, Nasr, Jagielski 2023, theorem 5.2).

    Args:
        canaries: m, all coins thrown.
        guesses: r, coins guessed; the attacker may abstain from the others.
        correct: v, of these.
        epsilon: of the claim that is tested.
        delta: of the claim that is tested.
    """  # noqa: E501
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(stats.binom.sf(correct - 1, guesses, chance))
    # max over i of P[correct - i <= W < correct] / i, W the binomial
    near = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, chance))
    worst = float((near / np.arange(1, correct + 1)).max(initial=0.0))
    return min(1.0, tail + 2.0 * canaries * delta * worst)


def one_run_bound(included: npt.NDArray[np.bool_], scores: Floats, delta: float, confidence: float = 0.95) -> float:
    """A lower bound on epsilon from a single run with many canaries, each put in by a fair coin.

    The attacker guesses "in" for the highest scores and "out" for the lowest, as many of each, and abstains from the
    rest. Several numbers of guesses are tried; the confidence is shared among them.

    Args:
        included: [canaries], the coins.
        scores: [canaries], larger means "in".
        delta: the claim's.
        confidence: that the bound holds.
    """
    count = len(included)
    order = np.argsort(scores)
    sides = sorted({max(1, round(count * share / 2)) for share in (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)})
    sides = [side for side in sides if 2 * side <= count]
    best = 0.0
    for side in sides:
        correct = int(included[order[-side:]].sum() + (~included[order[:side]]).sum())
        best = max(best, _largest_refuted(count, 2 * side, correct, delta, (1 - confidence) / len(sides)))
    return best


def _largest_refuted(canaries: int, guesses: int, correct: int, delta: float, level: float) -> float:
    """The largest epsilon whose p-value is at most ``level``; 0 if none is."""
    if one_run_p_value(canaries, guesses, correct, 0.0, delta) > level:
        return 0.0
    low, high = 0.0, LARGEST
    while high - low > 1e-4:
        middle = (low + high) / 2
        if one_run_p_value(canaries, guesses, correct, middle, delta) <= level:
            low = middle
        else:
            high = middle
    return low


def _ratio(members: Floats, others: Floats, threshold: float, delta: float, level: float) -> float:
    low, high = _rates(members, others, threshold, level)
    return math.log((low - delta) / high) if low > delta else -math.inf


def _rates(members: Floats, others: Floats, threshold: float, level: float) -> tuple[float, float]:
    """Clopper-Pearson: at least so many of the members are above the threshold, at most so many of the others."""
    hits, alarms = int(np.sum(members > threshold)), int(np.sum(others > threshold))
    low = float(stats.beta.ppf(level, hits, len(members) - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(1 - level, alarms + 1, len(others) - alarms)) if alarms < len(others) else 1.0
    return low, high


# The rules by which an attack's success is judged.


@dataclass(frozen=True)
class Finding:
    """One attack's success.

    Attributes:
        attack: what was tried.
        adversary: who could do it.
        measure: what the numbers mean.
        with_noise, noise_off: success against the training as it is, and against the same one without noise.
        guess: what an attacker without any information reaches.
        claimed_epsilon: what the accountant says at most; None where the measure is not an epsilon.
        holds: with_noise is below the claim, or, without a claim, far nearer to a guess than noise_off is.
        alive: noise_off is far above a guess and above with_noise, so that the attack proves something.
    """

    attack: str
    adversary: str
    measure: str
    with_noise: float
    noise_off: float
    guess: float
    claimed_epsilon: float | str | None
    holds: bool
    alive: bool


def bounded(attack: str, adversary: str, with_noise: float, noise_off: float, claim: float) -> Finding:
    """A lower bound on epsilon, held against the claim."""
    return Finding(
        attack=attack,
        adversary=adversary,
        measure="lower bound on epsilon",
        with_noise=with_noise,
        noise_off=noise_off,
        guess=0.0,
        claimed_epsilon=json_epsilon(claim),
        holds=with_noise <= claim,
        alive=noise_off > max(2 * with_noise, 0.5),
    )


def compared(attack: str, adversary: str, measure: str, with_noise: float, noise_off: float, guess: float) -> Finding:
    """A rate, held against a guess."""
    return Finding(
        attack=attack,
        adversary=adversary,
        measure=measure,
        with_noise=with_noise,
        noise_off=noise_off,
        guess=guess,
        claimed_epsilon=None,
        holds=with_noise - guess <= 0.5 * max(noise_off - guess, 0.0),
        alive=noise_off - guess > 0.2 * (1.0 - guess),
    )


def combined(seeds: Sequence[Sequence[Finding]]) -> list[Finding]:
    """One finding for each attack over several seeds.

    Of bounds the largest with noise and the smallest without, so that one broken seed shows and one lucky one does not
    count as alive; of other measures the means. The rules are applied again.
    """
    found = []
    for same in zip(*seeds, strict=True):
        first = same[0]
        noised, bare = [f.with_noise for f in same], [f.noise_off for f in same]
        if first.claimed_epsilon is not None:
            claim = math.inf if first.claimed_epsilon == "infinite" else float(first.claimed_epsilon)
            found.append(bounded(first.attack, first.adversary, max(noised), min(bare), claim))
        else:
            guess = statistics.mean(f.guess for f in same)
            rates = (statistics.mean(noised), statistics.mean(bare))
            found.append(compared(first.attack, first.adversary, first.measure, *rates, guess))
    return found
