"""How much privacy Poisson-sampled Gaussian releases really leave, without a grid: to check our accountant by.

For a pair (P, Q) with the loss ``L = log dP/dQ`` of one release under P, and K(t) = log E exp(t L),

    delta(epsilon) = 1 / (2 pi i) * integral of exp(steps K(t) - epsilon t) / (t (t + 1)) dt   along Re t = t0 > 0,

for any t0: the inverse Laplace transform of the hockey stick. Through the saddle point the integrand falls off like a
Gaussian, so deltas of any size, and any number of steps, come out to many digits. Nothing here is ours or
dp-accounting's. One release, and sampling with rate 1, have closed forms.
"""

import math

import numpy as np
from scipy import optimize, stats

__all__ = ["NotConvergedError", "exact_delta"]

NODES_A_DEVIATION, CHUNK, CHUNKS = 100, 128, 80


class NotConvergedError(Exception):
    """The integrand falls off too slowly, which it does for few releases with a tiny rate."""


def exact_delta(epsilon: float, noise_multiplier: float, sample_rate: float, steps: int) -> float:
    """The smallest delta at ``epsilon``, for an example added or removed."""
    if sample_rate >= 1:
        return _one_release(epsilon, noise_multiplier / math.sqrt(steps), 1.0, removed=True)
    pairs = (True, False)
    if steps == 1:
        return max(_one_release(epsilon, noise_multiplier, sample_rate, removed=removed) for removed in pairs)
    return max(_integral(epsilon, noise_multiplier, sample_rate, steps, removed=removed) for removed in pairs)


def _one_release(epsilon: float, z: float, q: float, *, removed: bool) -> float:
    """The mixture ``(1 - q) N(0, z^2) + q N(1, z^2)`` against ``N(0, z^2)``, or the other way round."""
    ratio = (math.expm1(epsilon if removed else -epsilon) + q) / q
    if ratio <= 0:
        return 0.0
    edge = z * z * math.log(ratio) + 0.5  # where the loss is epsilon
    side = stats.norm.sf if removed else stats.norm.cdf
    plain, shifted = side(edge / z), side((edge - 1) / z)
    mixed = (1 - q) * plain + q * shifted
    first, second = (mixed, plain) if removed else (plain, mixed)
    return float(first - math.exp(epsilon) * second)


def _integral(epsilon: float, z: float, q: float, steps: int, *, removed: bool) -> float:
    def exponent(t):
        t = np.atleast_1d(np.asarray(t, dtype=complex))
        return steps * _log_generating(t, z, q, removed=removed) - epsilon * t - np.log(t) - np.log1p(t)

    best = optimize.minimize_scalar(
        lambda log_t: exponent(math.exp(log_t))[0].real, bounds=(math.log(1e-3), math.log(1e6)), method="bounded",
        options={"xatol": 1e-4},
    )  # fmt: skip
    saddle, peak = math.exp(best.x), float(best.fun)
    near = 1e-3 * saddle
    curvature = sum(exponent(saddle + shift)[0].real for shift in (near, -near)) - 2 * peak
    step = near / math.sqrt(curvature) / 8
    total = 0.0
    for chunk in range(CHUNKS):
        heights = step * (chunk * CHUNK + np.arange(CHUNK))
        values = np.exp(exponent(saddle + 1j * heights) - peak)
        values[0] *= 0.5 if chunk == 0 else 1.0
        total += float(values.real.sum()) * step
        if np.abs(values[-16:]).max() * heights[-1] < 1e-4 * abs(total):
            return math.exp(peak) * total / math.pi
    raise NotConvergedError


def _log_generating(t: np.ndarray, z: float, q: float, *, removed: bool) -> np.ndarray:
    """log E exp(t L) [n] by the trapezoid rule, which for Gaussians converges exponentially."""
    low, high = -12.0, 12.0 + ((float(t.real.max()) + 1) / z if removed else 0.0)
    y = np.linspace(low, high, int((high - low) * NODES_A_DEVIATION) + 1)
    mixed = np.logaddexp(math.log1p(-q), math.log(q) + (2 * y * z - 1) / (2 * z * z))
    log_density = -0.5 * y * y - 0.5 * math.log(2 * math.pi) + (mixed if removed else 0.0)
    terms = log_density + t[:, None] * (mixed if removed else -mixed)
    largest = terms.real.max(axis=1, keepdims=True)
    sums = np.exp(terms - largest).sum(axis=1) * (y[1] - y[0])
    return np.log(sums) + largest[:, 0]
