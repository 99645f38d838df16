"""From what was (or will be) released to epsilon, with dp-accounting; independent of training.

The neighbouring relation is everywhere: one training example of one site is added or removed. Every event is a
Poisson-subsampled Gaussian mechanism; composition is by privacy loss distributions (PLD, tight, an upper bound up to
its stated discretisation), with Renyi accounting as a cross-check.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import dp_accounting
from dp_accounting import pld, rdp

from dpfpl_common.errors import PrivacyError

__all__ = ["INFINITE", "PrivacyEvent", "calibrate_noise_multiplier", "epsilon", "epsilon_rdp", "json_epsilon"]

INFINITE = float("inf")

RDP_ORDERS = tuple(1 + x / 10.0 for x in range(5, 100)) + tuple(range(11, 64)) + (80, 128, 256, 512, 1024)
SEARCH_TOLERANCE = 1e-3


@dataclass(frozen=True)
class PrivacyEvent:
    """``steps`` releases of one mechanism, as one adversary sees them.

    Attributes:
        adversary: key of ``dpfpl_common.trust.ADVERSARIES``.
        mechanism: ``per_step``: Gaussian on a clipped sum over a Poisson sample.
        noise_multiplier: noise standard deviation over L2 sensitivity; 0 = no noise.
        sample_rate: chance that an example takes part in a step.
        steps: how many times.
    """

    adversary: str
    mechanism: str
    noise_multiplier: float
    sample_rate: float
    steps: int


def epsilon(events: Sequence[PrivacyEvent], delta: float) -> float:
    """Epsilon of all the events together, at ``delta``; infinite if one of them has no noise."""
    return _epsilon(tuple((e.noise_multiplier, e.sample_rate, e.steps) for e in events if e.steps > 0), delta, "pld")


def epsilon_rdp(events: Sequence[PrivacyEvent], delta: float) -> float:
    """The same by Renyi accounting: never smaller than the truth, usually a little larger than ``epsilon``."""
    return _epsilon(tuple((e.noise_multiplier, e.sample_rate, e.steps) for e in events if e.steps > 0), delta, "rdp")


def json_epsilon(value: float) -> float | str:
    """JSON has no infinity: the string "infinite" stands for it."""
    return "infinite" if value == INFINITE else value


@functools.lru_cache(maxsize=4096)
def _epsilon(events: tuple[tuple[float, float, int], ...], delta: float, kind: str) -> float:
    if not 0 < delta < 1:
        raise PrivacyError(code="BAD_DELTA", message=f"delta is {delta}, expected a number between 0 and 1.")
    if any(noise_multiplier <= 0 for noise_multiplier, _, _ in events):
        return INFINITE
    if not events:
        return 0.0
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = (
        pld.PLDAccountant(relation) if kind == "pld" else rdp.RdpAccountant(RDP_ORDERS, neighboring_relation=relation)
    )
    for noise_multiplier, sample_rate, steps in events:
        accountant.compose(_event(noise_multiplier, sample_rate, steps))
    return float(accountant.get_epsilon(delta))


def _event(noise_multiplier: float, sample_rate: float, steps: int) -> dp_accounting.DpEvent:
    if sample_rate >= 1:  # Gaussians compose exactly into one Gaussian
        return dp_accounting.GaussianDpEvent(noise_multiplier / math.sqrt(steps))
    gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
    return dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(sample_rate, gaussian), steps)


@functools.lru_cache(maxsize=1024)
def calibrate_noise_multiplier(target_epsilon: float, target_delta: float, sample_rate: float, steps: int) -> float:
    """The smallest noise multiplier (within a thousandth, from above) whose PLD epsilon stays at or below the target.

    Raises:
        PrivacyError: no multiplier up to 10**5 reaches the target.
    """

    def reached(noise_multiplier: float) -> bool:
        return _epsilon(((noise_multiplier, sample_rate, steps),), target_delta, "pld") <= target_epsilon

    low, high = 0.1, 1.0
    while not reached(high):
        low, high = high, high * 2
        if high > 1e5:
            raise PrivacyError(
                code="TARGET_UNREACHABLE",
                message=f"No noise reaches epsilon {target_epsilon} at delta {target_delta} over {steps} steps.",
                advice="Ask for a larger epsilon, fewer rounds or a lower sample rate.",
            )
    while high - low > SEARCH_TOLERANCE * high:
        # Epsilon falls about as a power of the multiplier: the geometric mean halves that interval.
        middle = math.sqrt(low * high)
        if reached(middle):
            high = middle
        else:
            low = middle
    return high
