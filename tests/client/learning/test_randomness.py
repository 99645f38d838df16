"""Seeded sources repeat for the same seed, site and round; the system's never do."""

import numpy as np
import pytest

from dpfpl_client.learning.step import SeededRandomness, SystemRandomness
from dpfpl_common.privacy.noise import SystemNoise

pytestmark = pytest.mark.privacy


def drawn(source, site="north", number=1):
    randomness = source.for_round(site, number)
    return (
        randomness.noise.add(np.zeros(20), 1.0).tobytes(),
        randomness.sampler.draw(200, 0.5).tobytes(),
        randomness.factors.standard_normal(20).tobytes(),
    )


def test_seeded_sources_are_a_function_of_seed_site_and_round():
    assert drawn(SeededRandomness(1)) == drawn(SeededRandomness(1))
    base = drawn(SeededRandomness(1))
    for other in (SeededRandomness(2), "south"), (SeededRandomness(1), "south"), (SeededRandomness(2), "north"):
        assert all(a != b for a, b in zip(base, drawn(*other), strict=True))
    assert all(a != b for a, b in zip(base, drawn(SeededRandomness(1), number=2), strict=True))
    assert base[0] != base[2]
    assert SeededRandomness.is_private is False


def test_the_systems_sources_never_repeat():
    source = SystemRandomness()
    assert all(a != b for a, b in zip(drawn(source), drawn(source), strict=True))
    assert isinstance(source.for_round("north", 1).noise, SystemNoise)
    assert source.is_private
    assert source.for_round("north", 1).noise.is_private
