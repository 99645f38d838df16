"""From how many images on a class stands out of the noise of ``one_shot``: public facts only."""

import math

__all__ = ["hidden_energy", "images_to_stand_out"]

FALSE_ALARM = 1e-6
"""Chance that a row of pure noise is taken for a class."""


def hidden_energy(noise_multiplier: float, size: int) -> float:
    """Squared norm of the signal that may hide in a noised row of ``size`` numbers.

    The squared norm of pure noise exceeds ``z^2 (k + 2 sqrt(k t) + 2 t)`` with chance at most ``exp(-t)`` (Laurent and
    Massart 2000, lemma 1), here t = ln(1 / FALSE_ALARM); this is that bound less its mean ``z^2 k``.
    """
    t = math.log(1.0 / FALSE_ALARM)
    return noise_multiplier**2 * (2 * math.sqrt(size * t) + 2 * t)


def images_to_stand_out(noise_multiplier: float, size: int) -> int:
    """From how many images on a class is found on average, if their unit features agree wholly; else from some more."""
    return math.ceil(math.sqrt(hidden_energy(noise_multiplier, size)))
