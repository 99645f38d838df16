"""The three random sources of a site's step, real or reproducible."""

import os
import zlib
from dataclasses import dataclass

import numpy as np

from dpfpl_common.noise import NoiseSource, SeededNoise, SystemNoise
from dpfpl_common.sampling import Sampler, SeededSampler, SystemSampler

__all__ = ["Randomness", "RandomnessSource", "SeededRandomness", "SystemRandomness"]


@dataclass(frozen=True)
class Randomness:
    """Sources for one round: ``noise`` and ``sampler`` are secret, ``factors`` may be public."""

    noise: NoiseSource
    sampler: Sampler
    factors: np.random.Generator


class SystemRandomness:
    """Fresh entropy of the operating system at every call; what every site with data of its own uses."""

    is_private = True

    def for_round(self, site: str, round_number: int) -> Randomness:
        """Sources for one round; nothing about them can be repeated."""
        return Randomness(noise=SystemNoise(), sampler=SystemSampler(os.urandom), factors=np.random.default_rng())


class SeededRandomness:
    """The same sources for the same (seed, site, round), in any process: for tests and simulations only."""

    is_private = False

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def for_round(self, site: str, round_number: int) -> Randomness:
        """Sources for one round, a function of the seed, the site's name and the round."""
        streams = [
            np.random.default_rng([self._seed, zlib.crc32(site.encode()), round_number, purpose])
            for purpose in range(3)
        ]
        return Randomness(noise=SeededNoise(streams[0]), sampler=SeededSampler(streams[1]), factors=streams[2])


RandomnessSource = SystemRandomness | SeededRandomness
