"""Each method's split is linear and its merge is what the server's gradient deserves."""

import numpy as np
import pytest

from dpfpl_client.learning.methods import method_named
from dpfpl_common.experiment import METHODS

PERSONAL = np.random.default_rng(0).normal(size=(4, 8))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_an_experiment_exists_and_is_linear(name):
    method = method_named(name)
    assert method.name == name
    directions = method.directions(PERSONAL, 2, np.random.default_rng(0))
    a, b = np.random.default_rng(1).normal(size=(2, 3, 4, 8))
    for left, right, both in zip(directions.split(a), directions.split(b), directions.split(2 * a - b), strict=True):
        np.testing.assert_allclose(2 * left - right, both, atol=1e-12)
    merged = directions.merge([block[0] for block in directions.split(a)])
    assert merged.shape == (4, 8)


def test_promptfl_learns_nothing_personal():
    directions = method_named("promptfl").directions(PERSONAL, 2, np.random.default_rng(0))
    assert directions.split(np.ones((3, 4, 8))) == []
    assert not directions.merge([]).any()


def test_dpfpl_merges_the_projection_of_the_gradient():
    directions = method_named("dpfpl").directions(PERSONAL, 4, np.random.default_rng(0))
    g = np.random.default_rng(1).normal(size=(1, 4, 8))
    np.testing.assert_allclose(directions.merge([b[0] for b in directions.split(g)]), g[0], atol=1e-12)  # full rank
