"""Poisson sampling: who takes part is drawn independently, from real or seeded randomness."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Sampler", "SeededSampler", "SystemSampler"]


class Sampler(Protocol):
    """Draws a Poisson sample of a site's training examples, or of a federation's sites."""

    def draw(self, count: int, sample_rate: float) -> npt.NDArray[np.int64]:
        """Indices of the sampled ones among ``count``; each joins independently with chance ``sample_rate``."""
        ...


class SeededSampler:
    """Reproducible Poisson sampling, for tests and simulations."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def draw(self, count: int, sample_rate: float) -> npt.NDArray[np.int64]:
        """See ``Sampler``."""
        return np.flatnonzero(self._generator.random(count) < sample_rate)


class SystemSampler:
    """Poisson sampling from the operating system's entropy."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy

    def draw(self, count: int, sample_rate: float) -> npt.NDArray[np.int64]:
        """See ``Sampler``; the rate is met to 2**-53, rounded down so that it is never exceeded."""
        words = np.frombuffer(self._entropy(8 * count), dtype=np.uint64) >> np.uint64(11)
        return np.flatnonzero(words < np.uint64(int(sample_rate * 2**53)))
