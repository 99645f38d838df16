"""Factors and projection: exact, orthonormal, and never longer than the gradient they come from."""

import numpy as np
import pytest

from dpfpl_client.learning.methods import factorise

pytestmark = pytest.mark.privacy


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
