"""Does a site's update hold anything but noise? What can be told from single noised messages, and no more.

An honest message of ``d`` coordinates is a signal plus Gaussian noise of known standard deviation s, so its squared
norm over s^2 is d plus the signal's, give or take sqrt(2 d). A site that sends noise alone stays at d; one that adds
less noise than agreed, and nothing else, falls below. Where the noise drowns every site's signal nobody can be told
from a free-rider, and nothing is said. A site that sends more noise than agreed, or copies what it saw, is not found
out.

The scores are functions of the messages as they were sent: they cost no privacy.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dpfpl_common.experiment import Experiment
from dpfpl_common.payload import Context
from dpfpl_common.trust import site_noise_stddev

__all__ = ["TOO_LITTLE_NOISE", "ZERO_SIGNAL", "signal_score", "verdicts"]

ZERO_SIGNAL = "zero_signal"
TOO_LITTLE_NOISE = "too_little_noise"
SEEN, CLEAR = 3.0, 6.0
"""Standard deviations: above SEEN a signal is there; only if the others are CLEAR is its absence remarkable."""
LARGEST = 1e6


def signal_score(experiment: Experiment, update: Context) -> float:
    """How far the squared norm of ``update`` lies above its noise alone, in standard deviations, at most LARGEST.

    Without noise of its own (``central`` trust, ``one_shot``) a message is zero (score 0) or not (LARGEST).
    """
    squared, size = float(np.sum(np.square(update, dtype=np.float64))), update.size
    stddev = _noise_stddev(experiment)
    if stddev == 0:
        return LARGEST if squared > 0 else 0.0
    return max(-LARGEST, min(LARGEST, (squared / stddev**2 - size) / math.sqrt(2 * size)))


def verdicts(history: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What the rounds' ``signal`` scores say of the sites worth a word: ZERO_SIGNAL or TOO_LITTLE_NOISE, by site."""
    scores: dict[str, list[float]] = {}
    for entry in history:
        for site, score in entry.get("signal", {}).items():
            scores.setdefault(site, []).append(score)
    joint = {site: sum(values) / math.sqrt(len(values)) for site, values in scores.items()}
    found = {}
    for site, score in joint.items():
        others = [value for other, value in joint.items() if other != site]
        if score < -SEEN - 1:
            found[site] = TOO_LITTLE_NOISE
        elif score < SEEN and others and statistics.median(others) > CLEAR:
            found[site] = ZERO_SIGNAL
    return found


def _noise_stddev(experiment: Experiment) -> float:
    """Of one coordinate of one site's update."""
    privacy = experiment.privacy
    if privacy.mechanism == "one_shot":
        return 0.0
    stddev = site_noise_stddev(experiment)
    if privacy.unit == "site":
        return stddev
    divisor = privacy.sample_rate * privacy.nominal_site_size
    return stddev / divisor / math.sqrt(experiment.rounds.local_steps)
