"""What is released keeps the claim at an epsilon that people run; with half of the noise it would not."""

import pytest

from dpfpl_bench.audit.two_worlds import attack

pytestmark = pytest.mark.privacy


def test_what_is_released_keeps_the_claim_and_half_of_the_noise_would_not():
    for row in attack(2.0, 4000):
        assert 0.9 < row.bounds[1.0] <= row.claimed_epsilon
        assert row.bounds[0.5] > row.claimed_epsilon, row.attack
        assert row.bounds[0.01] > 15
