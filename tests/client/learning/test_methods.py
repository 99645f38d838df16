"""What each method trains: linear splits, merges that descend, ranks that hold, and a start at zero."""

import numpy as np
import pytest

from dpfpl_client.learning.methods import build_method, truncated
from dpfpl_common.experiment import METHODS, Experiment, ModelSettings, PrivacySettings, PromptSettings
from dpfpl_common.privacy_plan import BLOCKS, separate_blocks

SHAPE = (8, 16)
RANKS = (1, 2, 4, 8)  # 8 is full rank
CUT = ("dplora", "fedpgp")
"""Methods whose personal context has rank k at most."""


def some_parameters(method, rank, seed=0):
    """Parameters as after a few steps."""
    rng = np.random.default_rng(seed)
    if method.name == "fedpgp":
        return rng.normal(size=(sum(SHAPE), rank))
    return method.settled(rng.normal(size=SHAPE))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_splits_linearly_into_the_blocks_that_are_accounted_for(name, rank):
    method = build_method(name, SHAPE, rank)
    assert method.name == name
    parameters = some_parameters(method, rank)
    directions = method.directions(parameters, np.random.default_rng(0))
    a, b = np.random.default_rng(1).normal(size=(2, 3, *SHAPE))
    blocks = directions.split(a)
    for left, right, both in zip(blocks, directions.split(b), directions.split(2 * a - b), strict=True):
        np.testing.assert_allclose(2 * left - right, both, atol=1e-12)
    merged = directions.merge([block[0] for block in blocks])
    assert merged.shape == parameters.shape
    assert method.context(parameters).shape == SHAPE
    # Separate clipping pays for every block; the rounding of the noise grid is paid for three contexts of coordinates.
    assert BLOCKS[name] == 1 + len(blocks)
    assert sum(block[0].size for block in blocks) <= 2 * np.prod(SHAPE)
    experiment = Experiment(
        name="m",
        classes=("a", "b"),
        sites=("s",),
        model=ModelSettings(width=SHAPE[1]),
        prompt=PromptSettings(method=name, num_context=SHAPE[0], rank=rank),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0, clipping="separate"),
    )
    assert separate_blocks(experiment) == 1 + len(blocks)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_begins_with_a_personal_context_of_zero(name, rank):
    method = build_method(name, SHAPE, rank)
    begun = method.begin(np.random.default_rng(0))
    context = np.zeros(SHAPE) if begun is None else method.context(begun)
    assert not context.any()


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", [name for name in METHODS if name != "promptfl"])
def test_the_merged_blocks_are_a_direction_of_descent(name, rank):
    """A small step against the merged gradient lowers the linear loss <g, p_L>, also from the very start."""
    method = build_method(name, SHAPE, rank)
    g = np.random.default_rng(1).normal(size=SHAPE)
    begun = method.begin(np.random.default_rng(0))
    start = np.zeros(SHAPE) if begun is None else begun
    for parameters in (start, some_parameters(method, rank)):
        directions = method.directions(parameters, np.random.default_rng(0))
        gradient = directions.merge([block[0] for block in directions.split(g[None])])
        moved = method.settled(parameters - 1e-6 * gradient)
        assert np.vdot(g, method.context(moved) - method.context(parameters)) < 0


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", CUT)
def test_cut_methods_keep_the_rank_over_many_steps(name, rank):
    method = build_method(name, SHAPE, rank)
    rng = np.random.default_rng(3)
    begun = method.begin(rng)
    parameters = np.zeros(SHAPE) if begun is None else begun
    for _ in range(12):
        directions = method.directions(parameters, rng)
        gradient = directions.merge([block[0] for block in directions.split(rng.normal(size=(1, *SHAPE)))])
        parameters = method.settled(parameters - 0.3 * np.sign(gradient))  # as Adam does: not of low rank
        values = np.linalg.svd(method.context(parameters), compute_uv=False)
        assert np.all(values[rank:] <= 1e-12 * values[0])
    assert values[rank - 1] > 1e-3 * values[0], "and it uses the rank it has"


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_methods_with_a_residual_do_not_cut(rank):
    for name in ("dpfpl", "fedotp"):
        method = build_method(name, SHAPE, rank)
        full = np.random.default_rng(0).normal(size=SHAPE)
        assert method.context(method.settled(full)) is full


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e6])
@pytest.mark.parametrize("rank", RANKS)
def test_dplora_keeps_the_size_of_the_personal_context(size, rank):
    """Two orthonormal factors alone would make every context one of norm sqrt(k)."""
    rng = np.random.default_rng(0)
    low = size * rng.normal(size=(SHAPE[0], rank)) @ rng.normal(size=(rank, SHAPE[1]))
    np.testing.assert_allclose(build_method("dplora", SHAPE, rank).settled(low), low, rtol=0, atol=1e-13 * size * 100)


@pytest.mark.parametrize("rank", RANKS)
def test_truncation_drops_exactly_the_smallest_singular_values(rank):
    matrix = np.random.default_rng(0).normal(size=SHAPE)
    values = np.linalg.svd(matrix, compute_uv=False)
    dropped = np.linalg.norm(matrix - truncated(matrix, rank))
    assert dropped == pytest.approx(np.linalg.norm(values[rank:]), abs=1e-12)
    assert not truncated(np.zeros(SHAPE), rank).any()
    wide = truncated(matrix.T, rank)
    np.testing.assert_allclose(wide, truncated(matrix, rank).T, atol=1e-12)


@pytest.mark.parametrize("rank", RANKS)
def test_fedpgps_blocks_are_the_derivatives_towards_its_factors(rank):
    method = build_method("fedpgp", SHAPE, rank)
    parameters = some_parameters(method, rank)
    g = np.random.default_rng(1).normal(size=SHAPE)
    directions = method.directions(parameters, np.random.default_rng(0))
    gradient = directions.merge([block[0] for block in directions.split(g[None])])
    for index in ((0, 0), (SHAPE[0] - 1, rank - 1), (SHAPE[0], 0), (sum(SHAPE) - 1, rank - 1)):
        shifted = parameters.copy()
        shifted[index] += 1e-6
        slope = np.vdot(g, method.context(shifted) - method.context(parameters)) / 1e-6
        assert slope == pytest.approx(gradient[index], rel=1e-6)


def test_promptfl_learns_nothing_personal():
    directions = build_method("promptfl", SHAPE, 2).directions(np.zeros(SHAPE), np.random.default_rng(0))
    assert directions.split(np.ones((3, *SHAPE))) == []
    assert not directions.merge([]).any()


@pytest.mark.parametrize("name", ["dpfpl", "dplora", "fedotp"])
def test_at_full_rank_the_merged_blocks_are_the_gradient(name):
    method = build_method(name, SHAPE, 8)
    directions = method.directions(some_parameters(method, 8), np.random.default_rng(0))
    g = np.random.default_rng(1).normal(size=(1, *SHAPE))
    np.testing.assert_allclose(directions.merge([b[0] for b in directions.split(g)]), g[0], atol=1e-12)
