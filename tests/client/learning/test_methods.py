"""What each method trains: linear splits, merges that descend, ranks that hold, and a start at zero."""

import numpy as np
import pytest

from dpfpl_client.learning.methods import build_method, factorise, truncated
from dpfpl_common.experiment import METHODS, Experiment, ModelSettings, PrivacySettings, PromptSettings
from dpfpl_common.privacy_plan import BLOCKS, separate_blocks

pytestmark = pytest.mark.privacy

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


# Factors and projection: exact, orthonormal, and never longer than the gradient they come from.


def matrix(kind, rows=6, width=20):
    generator = np.random.default_rng(3)
    if kind == "zero":
        return np.zeros((rows, width))
    if kind == "rank one":
        return np.outer(generator.normal(size=rows), generator.normal(size=width))
    if kind == "one row":
        return generator.normal(size=(1, width))
    if kind == "one column":
        return generator.normal(size=(rows, 1))
    scale = {"full": 1.0, "tiny": 1e-150, "huge": 1e100}[kind]
    return generator.normal(size=(rows, width)) * scale


CASES = [(kind, rank) for kind in ("zero", "rank one", "full", "tiny", "huge") for rank in (1, 2, 6)]
CASES += [("one row", 1), ("one column", 1)]


@pytest.fixture(params=CASES, ids=str)
def case(request):
    kind, rank = request.param
    personal = matrix(kind)
    return personal, factorise(personal, rank, np.random.default_rng(0)), rank


def test_the_parts_add_up_and_the_factors_are_orthonormal(case):
    personal, factors, rank = case
    size = max(1.0, np.abs(personal).max())
    assert np.abs(factors.left @ factors.right + factors.residual - personal).max() <= 1e-12 * size
    assert np.abs(factors.left.T @ factors.left - np.eye(rank)).max() < 1e-12
    assert np.abs(factors.right @ factors.right.T - np.eye(rank)).max() < 1e-12


def test_rebuilding_is_equation_four(case):
    personal, factors, _ = case
    g = np.random.default_rng(1).normal(size=personal.shape)
    u, v = factors.left, factors.right
    du, dv = g @ v.T, u.T @ g
    expected = du @ v + u @ dv - u @ u.T @ du @ v
    assert np.abs(factors.rebuild(*factors.project(g)) - expected).max() < 1e-12


def test_rebuilding_is_an_orthogonal_projection(case):
    personal, factors, _ = case
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(2, *personal.shape))
    project = lambda g: factors.rebuild(*factors.project(g))  # noqa: E731
    assert np.abs(project(project(a)) - project(a)).max() < 1e-12
    assert abs(np.sum(project(a) * b) - np.sum(a * project(b))) < 1e-11
    assert np.linalg.norm(project(a)) <= np.linalg.norm(a) * (1 + 1e-12)


def test_no_block_is_longer_than_its_gradient_and_together_they_are_the_projection(case):
    personal, factors, _ = case
    generator = np.random.default_rng(4)
    # Along the factors themselves, where the bound is met, and anywhere else.
    gradients = [generator.normal(size=personal.shape) for _ in range(20)]
    gradients += [factors.left @ generator.normal(size=factors.right.shape)]
    for g in gradients:
        to_left, to_right = factors.project(g)
        assert max(np.linalg.norm(to_left), np.linalg.norm(to_right)) <= np.linalg.norm(g) * (1 + 1e-12)
        rebuilt = np.linalg.norm(factors.rebuild(to_left, to_right))
        assert np.hypot(np.linalg.norm(to_left), np.linalg.norm(to_right)) == pytest.approx(rebuilt, rel=1e-12)


def test_a_batch_is_projected_example_by_example():
    factors = factorise(matrix("full"), 3, np.random.default_rng(0))
    batch = np.random.default_rng(5).normal(size=(4, 6, 20))
    to_left, to_right = factors.project(batch)
    assert to_left.shape == (4, 6, 3)
    assert to_right.shape == (4, 3, 20)
    for i, g in enumerate(batch):
        left, right = factors.project(g)
        np.testing.assert_allclose(to_left[i], left, atol=1e-14)
        np.testing.assert_allclose(to_right[i], right, atol=1e-14)
    assert factors.project(np.zeros((0, 6, 20)))[1].shape == (0, 3, 20)


def test_power_iteration_finds_a_dominant_direction_and_starts_afresh():
    personal = matrix("rank one")
    factors = factorise(personal, 1, np.random.default_rng(0))
    left, _, right = np.linalg.svd(personal)
    assert abs(left[:, 0] @ factors.left[:, 0]) == pytest.approx(1, abs=1e-6)
    assert abs(right[0] @ factors.right[0]) == pytest.approx(1, abs=1e-6)
    generator = np.random.default_rng(0)
    assert not np.allclose(factorise(matrix("zero"), 2, generator).left, factorise(matrix("zero"), 2, generator).left)


@pytest.mark.parametrize("rank", [0, -1, 7])
def test_an_impossible_rank_is_named(rank):
    with pytest.raises(ValueError, match=f"rank is {rank}, expected 1 to 6"):
        factorise(matrix("full"), rank, np.random.default_rng(0))
