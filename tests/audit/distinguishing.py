"""Epsilon from below: how well a canary's presence can be told from what was released."""

import math

import numpy as np
from scipy import stats


def epsilon_lower_bound(with_canary: np.ndarray, without: np.ndarray, delta: float, confidence: float = 0.95) -> float:
    """A lower bound on epsilon that holds with this confidence, from scores of independent runs.

    The threshold is chosen on one half of the scores; on the other half, Clopper-Pearson bounds of the true and false
    positive rates go into ``epsilon >= ln((TPR - delta) / FPR)`` and its mirror image.
    """
    best = 0.0
    half = len(with_canary) // 2
    thresholds = np.quantile(np.concatenate([with_canary[:half], without[:half]]), np.linspace(0.005, 0.995, 199))
    level = (1 - confidence) / 2

    def bound(members: np.ndarray, others: np.ndarray, threshold: float) -> float:
        hits, alarms, m, n = np.sum(members > threshold), np.sum(others > threshold), len(members), len(others)
        low = stats.beta.ppf(level, hits, m - hits + 1) if hits else 0.0
        high = stats.beta.ppf(1 - level, alarms + 1, n - alarms) if alarms < n else 1.0
        return math.log((low - delta) / high) if low > delta else -math.inf

    for members, others in ((with_canary, without), (-without, -with_canary)):
        signs = thresholds if members is with_canary else -thresholds
        chosen = max(signs, key=lambda t, m=members, o=others: bound(m[:half], o[:half], t))
        best = max(best, bound(members[half:], others[half:], chosen))
    return best
