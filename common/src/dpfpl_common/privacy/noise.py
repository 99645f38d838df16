"""Gaussian noise for releases: an exact discrete Gaussian from the operating system's entropy.

Why discrete. A float64 "Gaussian" has holes: which floats are reachable depends on the value it is added to, and that
tells neighbouring data sets apart (Mironov 2012; Jin et al. 2021). Here a release is an integer multiple of a public
grid step. The sum is rounded to the grid and an integer from the discrete Gaussian is added; the set of reachable
outputs is all integers whatever the data.

Grid and guarantee. With ``noise_stddev`` s the step is ``s / SCALE``, SCALE = 2**36, so the noise is always the
discrete Gaussian of integer parameter SCALE: ``P(z) ~ exp(-z^2 / (2 SCALE^2))``. By Canonne, Kamath and Steinke (2020,
theorem 4) it gives the zero-concentrated bound of the continuous Gaussian with the same parameter. Rounding
two neighbouring sums of n coordinates can drive them apart by at most ``sqrt(n)`` steps more, a relative growth of the
sensitivity of ``z sqrt(n) / SCALE``; the step is widened by ROUNDING_SLACK to pay for it, which suffices up to
``grid_allows``. The accountant treats the noise as continuous; at this scale the discrete law differs from the rounded
continuous one by a relative 1e-22, far below any delta (docs/explanation/mechanism.md).
"""

import decimal
import math
import os
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dpfpl_common.errors import PrivacyError

__all__ = [
    "SCALE",
    "NoiseSource",
    "SeededNoise",
    "SystemNoise",
    "check_grid",
    "discrete_gaussian",
    "from_steps",
    "grid_allows",
    "to_steps",
]

SCALE = 1 << 36
"""The discrete Gaussian's parameter, in grid steps: one standard deviation is 2**36 steps."""

LARGEST_STEPS = 2.0**52
"""Largest released sum before noise, in grid steps; float64 still counts them one by one."""

ROUNDING_SLACK = 1e-5
"""Relative widening of the noise that pays for rounding the sum to the grid."""

Floats = npt.NDArray[np.float64]


def grid_allows(noise_multiplier: float, size: int) -> bool:
    """Whether ROUNDING_SLACK pays for rounding a sum of ``size`` coordinates under this noise multiplier."""
    return noise_multiplier * math.sqrt(size) <= ROUNDING_SLACK * SCALE


def check_grid(noise_multiplier: float, size: int) -> None:
    """Refuse a release for which ``grid_allows`` does not hold.

    Raises:
        PrivacyError: the noise is too large for the noise grid.
    """
    if not grid_allows(noise_multiplier, size):
        raise PrivacyError(
            code="NOISE_GRID",
            message=f"Noise multiplier {noise_multiplier:g} is too large for a release of {size} numbers.",
            advice="Ask for a larger epsilon.",
        )


def grid_step(noise_stddev: float) -> float:
    """The public grid's step under noise of this standard deviation."""
    return noise_stddev * (1.0 + ROUNDING_SLACK) / SCALE


def to_steps(released: Floats, noise_stddev: float) -> npt.NDArray[np.int64]:
    """What a noise source gave, in whole grid steps of at most 2^52 + 2^42: post-processing, so it costs nothing."""
    most = LARGEST_STEPS + 2.0**42
    return np.rint(np.clip(released / grid_step(noise_stddev), -most, most)).astype(np.int64)


def from_steps(steps: npt.NDArray[np.int64], noise_stddev: float) -> Floats:
    """The inverse of ``to_steps``, also of sums of steps."""
    return np.asarray(steps * grid_step(noise_stddev))


class NoiseSource(Protocol):
    """Adds Gaussian noise to the sum of clipped contributions."""

    @property
    def is_private(self) -> bool:
        """Whether the noise can stand behind a privacy claim: unseedable and float-safe."""
        ...

    def add(self, total: Floats, noise_stddev: float) -> Floats:
        """``total`` plus independent noise of standard deviation ``noise_stddev`` in every coordinate."""
        ...


class SystemNoise:
    """Discrete Gaussian noise from ``os.urandom``: no seed, no state, no shared generator."""

    is_private = True

    def add(self, total: Floats, noise_stddev: float) -> Floats:
        """The released array, every value a multiple of ``noise_stddev (1 + ROUNDING_SLACK) / SCALE``.

        Args:
            total: any shape, finite; the sum whose sensitivity the caller has bounded.
            noise_stddev: standard deviation, finite and positive.

        Raises:
            ValueError: a value of ``total`` is not finite; a bad ``noise_stddev``.
        """
        _check(total, noise_stddev)
        step = grid_step(noise_stddev)
        # A sum beyond 2**16 standard deviations is held there: bringing coordinates into a range drives no two sums
        # apart, while refusing would tell something about the data.
        with np.errstate(over="ignore"):
            steps: Floats = np.rint(np.clip(np.asarray(total, dtype=np.float64) / step, -LARGEST_STEPS, LARGEST_STEPS))
        return np.asarray((steps.astype(np.int64) + discrete_gaussian(steps.size).reshape(steps.shape)) * step)


class SeededNoise:
    """Reproducible Gaussian noise for tests and simulations. Offers no privacy: the seed undoes it."""

    is_private = False

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def add(self, total: Floats, noise_stddev: float) -> Floats:
        """``total`` plus float64 Gaussian noise from the seeded generator."""
        _check(total, noise_stddev)
        return np.asarray(total + self._generator.normal(0.0, noise_stddev, size=total.shape))


def _check(total: Floats, noise_stddev: float) -> None:
    if not np.all(np.isfinite(total)):
        raise ValueError("The sum to be noised is not finite; clipping must come first.")
    if not (np.isfinite(noise_stddev) and noise_stddev > 0):
        raise ValueError(f"noise_stddev must be positive and finite, got {noise_stddev}.")


def discrete_gaussian(count: int, entropy: Callable[[int], bytes] = os.urandom) -> npt.NDArray[np.int64]:
    """``count`` independent integers with ``P(z) ~ exp(-z^2 / (2 SCALE^2))``, exactly.

    Rejection sampling in the manner of Karney (2016): ``z = +-(k SCALE + j)`` with k geometric of ratio exp(-1/2) and j
    uniform below SCALE is accepted with probability ``exp(-(k (k - 1) + x (2 k + x)) / 2)``, x = j / SCALE, which
    multiplies to ``exp(-(k + x)^2 / 2)``. Each accept decision compares a lazily extended uniform number with that
    probability: float64 decides where it safely can, exact decimal arithmetic decides the rest, so no probability is
    rounded.

    Args:
        count: how many.
        entropy: returns that many random bytes; the operating system's by default.
    """
    drawn: list[npt.NDArray[np.int64]] = []
    missing = count
    while missing > 0:
        candidates = max(64, 2 * missing)
        k = _geometric(candidates, entropy)
        words = _words(candidates, entropy)
        j = (words & np.uint64(SCALE - 1)).astype(np.int64)
        negative = (words >> np.uint64(63)).astype(bool)
        x = j / SCALE
        exponent = (k * (k - 1) + x * (2 * k + x)) / 2.0
        accepted = _bernoulli(exponent, lambda i, k=k, j=j: _exact_exponent(int(k[i]), int(j[i])), entropy)  # type: ignore[misc]
        magnitude = k * SCALE + j
        accepted &= ~(negative & (magnitude == 0))  # zero has one sign only
        values = np.where(negative, -magnitude, magnitude)[accepted][:missing]
        drawn.append(values)
        missing -= values.size
    return np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)


def _geometric(count: int, entropy: Callable[[int], bytes]) -> npt.NDArray[np.int64]:
    """How often in a row an event of probability exp(-1/2) happened."""
    successes = np.zeros(count, dtype=np.int64)
    alive = np.arange(count)
    while alive.size:
        half = np.full(alive.size, 0.5)
        alive = alive[_bernoulli(half, lambda _: decimal.Decimal("0.5"), entropy)]
        successes[alive] += 1
    return successes


def _bernoulli(
    exponent: Floats, exact_exponent: Callable[[int], decimal.Decimal], entropy: Callable[[int], bytes]
) -> npt.NDArray[np.bool_]:
    """Events of probability exp(-exponent), decided exactly.

    53 bits of a uniform number bound it to an interval of width 2**-53; where exp(-exponent), known to 2**-48, lies
    clearly outside, the event is decided. Elsewhere (about one draw in 2**47) more bits and exact arithmetic decide.
    """
    bits = _words(exponent.size, entropy) >> np.uint64(11)
    uniform = bits.astype(np.float64) * 2.0**-53
    probability = np.exp(-exponent)
    happened = uniform < probability
    unsure = np.flatnonzero(np.abs(uniform - probability) < 2.0**-47)
    for index in unsure:
        happened[index] = _decide(int(bits[index]), exact_exponent(int(index)), entropy)
    return np.asarray(happened)


def _decide(bits: int, exponent: decimal.Decimal, entropy: Callable[[int], bytes]) -> bool:
    """Whether the uniform number that starts with these 53 bits is below exp(-exponent)."""
    length = 53
    while True:
        bits = (bits << 64) | int.from_bytes(entropy(8), "big")
        length += 64
        with decimal.localcontext() as context:
            context.prec = length  # decimal digits, far more than ``length`` bits need
            probability = (-exponent).exp()
            low = decimal.Decimal(bits) / decimal.Decimal(1 << length)
            high = decimal.Decimal(bits + 1) / decimal.Decimal(1 << length)
            error = decimal.Decimal(10) ** (2 - length)
            if high <= probability - error:
                return True
            if low >= probability + error:
                return False


def _exact_exponent(k: int, j: int) -> decimal.Decimal:
    """(k (k - 1) + x (2 k + x)) / 2 with x = j / SCALE; a dyadic number, hence exact as a decimal."""
    numerator = k * (k - 1) * SCALE * SCALE + j * (2 * k * SCALE + j)
    with decimal.localcontext() as context:
        context.prec = 120
        return decimal.Decimal(numerator) / decimal.Decimal(2 * SCALE * SCALE)


def _words(count: int, entropy: Callable[[int], bytes]) -> npt.NDArray[np.uint64]:
    return np.frombuffer(entropy(8 * count), dtype=np.uint64)
