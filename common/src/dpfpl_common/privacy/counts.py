"""Noised counts of right answers: how good several candidates are on held-back examples, within a privacy budget.

What is counted. For K public candidates (functions of earlier noised releases and public facts) and every held-back
example: +1 if the candidate answers it right, -1 if not; and 1 for the example itself. The vector of the K sums and of
the number of examples is released with Gaussian noise.

Sensitivity, exactly. Neighbouring: one held-back example added or removed. Whatever the example and the candidates, the
vector moves by ``(+-1, ..., +-1, 1)``, K + 1 coordinates of absolute value 1: by an L2 norm of exactly ``sqrt(K + 1)``,
for every example. Counting right answers from 0 instead would move it by up to the same norm, with twice the noise on a
count: ``right = (margin + of) / 2`` halves it here. So with noise of standard deviation ``z sqrt(K + 1)`` in every
coordinate the release is one Gaussian mechanism of multiplier z, without sampling; it has the same trade-off function
for every pair of neighbours, so nothing is given away.

Together with a release about the training part. The candidates may depend on training examples only through noised
releases that were charged. An example is in exactly one part (``dpfpl_client.data.split``), and it moves no other. For
an example of the training part this release is post-processing. For an example of the held-back part, the training
releases do not depend on it at all. So towards anybody the pair is as private as the worse of the two (parallel
composition, McSherry 2009), never their sum. That fails where an example was in both parts over time; the ledger then
adds them up.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpfpl_common.privacy.noise import NoiseSource, check_grid

__all__ = ["Score", "count_noise_stddev", "gain", "noised_counts", "scores_from"]

Floats = npt.NDArray[np.float64]

GRAIN = 1 << 20
"""Margins are whole numbers of 1 / GRAIN: their sum is the same in every order. (An example may be right in part.)"""

NORMAL_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Score:
    """An estimate from noised counts.

    Attributes:
        right: right answers, estimated; may be negative or above ``of``.
        of: held-back examples, estimated.
        value: the share of right answers, held to [0, 1]; None where the noise hides how many examples there are.
        low, high: 95 % interval of the true share on these very examples: it covers the noise that protects them, not
            how other examples would fare.
    """

    right: float
    of: float
    value: float | None
    low: float
    high: float


def count_noise_stddev(candidates: int, noise_multiplier: float) -> float:
    """Standard deviation of the noise on each coordinate of ``noised_counts``."""
    return noise_multiplier * math.sqrt(candidates + 1)


def noised_counts(right: Floats, noise: NoiseSource, noise_multiplier: float) -> Floats:
    """The release: margins (right less wrong) of K candidates and the number of examples, noised; [K + 1].

    Guarantee: one Gaussian mechanism with noise multiplier z, no sampling; neighbouring: one held-back example more or
    less. All coordinates are released whatever the data, also where there is no example. Margins are summed as whole
    numbers of 2^-20, so an example adds the same whatever stands before it.

    Args:
        right: [n, K], how right a candidate answers an example: 1 or 0, or between, where the sensitivity is an upper
            bound. What is not a number counts as wrong, what lies outside is cut. n may be 0, K is public.
        noise: source of the noise.
        noise_multiplier: z; 0 releases the counts themselves, for experiments that claim no privacy.

    Raises:
        PrivacyError: the noise is too large for the noise grid.
    """
    if right.ndim != 2 or right.shape[1] == 0:
        raise ValueError(f"right must be a [n, K] array with K > 0, got {right.shape}.")
    check_grid(noise_multiplier, right.shape[1] + 1)
    bounded = np.clip(np.nan_to_num(np.asarray(right, dtype=np.float64), nan=0.0), 0.0, 1.0)
    margins = np.rint((2.0 * bounded - 1.0) * GRAIN).astype(np.int64)
    totals = np.append(margins.sum(axis=0) / GRAIN, float(len(right)))
    stddev = count_noise_stddev(right.shape[1], noise_multiplier)
    return noise.add(totals, stddev) if stddev > 0 else totals


def scores_from(totals: Floats, noise_stddev: float) -> list[Score]:
    """The candidates' scores from noised counts, of one site or added up over sites.

    Post-processing: from noised numbers and public facts alone. The share is ``(1 + margin / of) / 2``. Its interval is
    Fieller's for the ratio of two numbers with independent normal noise of the same deviation: all r with
    ``(margin - r of)^2 <= q^2 s^2 (1 + r^2)``. Where that is everything (``of`` lost in the noise), it is [0, 1].

    Args:
        totals: [K + 1] as ``noised_counts`` gives them, or the sum over sites.
        noise_stddev: of each coordinate; over S sites with equal noise, sqrt(S) times one site's.
    """
    of = float(totals[-1])
    found = []
    for margin in totals[:-1]:
        low, high = _ratio_interval(float(margin), of, noise_stddev, noise_stddev, (-1.0, 1.0))
        value = None if of <= NORMAL_95 * noise_stddev else min(1.0, max(0.0, (1.0 + float(margin) / of) / 2.0))
        found.append(Score((float(margin) + of) / 2.0, of, value, (1.0 + low) / 2.0, (1.0 + high) / 2.0))
    return found


def gain(totals: Floats, noise_stddev: float, candidate: int, other: int) -> tuple[float | None, float, float]:
    """How much larger the share of ``candidate`` is than that of ``other``: estimate and 95 % interval.

    The difference of two margins has noise of deviation ``s sqrt(2)``, and that of the number of examples s.

    Args:
        totals: [K + 1].
        noise_stddev: s, of each coordinate.
        candidate: index of a candidate.
        other: index of another one.
    """
    difference, of = float(totals[candidate] - totals[other]), float(totals[-1])
    low, high = _ratio_interval(difference, of, math.sqrt(2.0) * noise_stddev, noise_stddev, (-2.0, 2.0))
    value = None if of <= NORMAL_95 * noise_stddev else min(1.0, max(-1.0, difference / of / 2.0))
    return value, low / 2.0, high / 2.0


def _ratio_interval(
    numerator: float,
    denominator: float,
    numerator_stddev: float,
    denominator_stddev: float,
    limits: tuple[float, float],
) -> tuple[float, float]:
    """Fieller's 95 % interval of a ratio, cut to what is possible."""
    a = denominator**2 - (NORMAL_95 * denominator_stddev) ** 2
    if denominator <= 0 or a <= 0:
        return limits
    middle = numerator * denominator / a
    inside = middle**2 - (numerator**2 - (NORMAL_95 * numerator_stddev) ** 2) / a
    half = math.sqrt(max(0.0, inside))
    low, high = limits
    return min(high, max(low, middle - half)), max(low, min(high, middle + half))
