"""Joint clipping: the bound holds for every vector there is, and nobody's factor depends on anybody else."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpfpl_common.privacy.clipping import joint_clip_factors

pytestmark = pytest.mark.privacy

NORMS = st.one_of(
    st.floats(min_value=0.0, max_value=4.0),
    st.floats(min_value=0.0, allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, 5e-324, 2.2e-308, 1e-200, 1.0, 1.0 + 2**-52, 1e150, 1.7e308, math.inf, math.nan, -1.0]),
)
BOUNDS = st.floats(min_value=1e-9, max_value=1e9)


@st.composite
def batches(draw):
    blocks = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(NORMS, min_size=blocks, max_size=blocks), max_size=6))
    return np.array(rows, dtype=np.float64).reshape(-1, blocks), draw(
        st.lists(BOUNDS, min_size=blocks, max_size=blocks)
    )


def weighted_norm(factor, squared_norms, bounds):
    """In Python's exact integers of rationals where float64 would overflow: |s g| in the joint metric."""
    return math.sqrt(math.fsum((factor * math.sqrt(q) / c) ** 2 for q, c in zip(squared_norms, bounds, strict=True)))


@given(batches())
@settings(max_examples=500, deadline=None)
@example((np.array([[math.nan, 1.0], [1.0, math.inf], [-1.0, 1.0], [4.0, 4.0]]), [1.0, 1.0]))
def test_P1_a_bad_example_gets_factor_zero_and_no_other_exceeds_the_joint_bound(batch):
    squared_norms, bounds = batch
    factors = joint_clip_factors(squared_norms, bounds)
    assert factors.shape == (len(squared_norms),)
    assert np.all((factors >= 0) & (factors <= 1))
    for factor, row in zip(factors, squared_norms, strict=True):
        if not all(math.isfinite(q) and q >= 0 for q in row):
            assert factor == 0
        elif factor > 0:
            assert weighted_norm(factor, row, bounds) <= 1 + 1e-6


@given(batches(), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_a_factor_depends_on_its_own_example_alone(batch, shuffler):
    squared_norms, bounds = batch
    together = joint_clip_factors(squared_norms, bounds)
    alone = [joint_clip_factors(row[None], bounds)[0] for row in squared_norms]
    assert together.tolist() == alone
    order = list(range(len(squared_norms)))
    shuffler.shuffle(order)
    assert joint_clip_factors(squared_norms[order], bounds).tolist() == together[order].tolist()


VECTORS = 1_000_000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_P2_a_million_vectors_of_every_size_are_bounded_in_float64(dtype):
    """Huge, tiny, subnormal and overflowing, in the type that they come in."""
    generator = np.random.default_rng(0)
    exponents = {torch.float16: 8, torch.float64: 320}.get(dtype, 45)  # beyond both ends of the type
    kept_in_all = 0
    for _ in range(VECTORS // 100_000):
        vectors = generator.normal(size=(100_000, 8))
        with np.errstate(over="ignore", invalid="ignore"):
            vectors = vectors * 10.0 ** generator.uniform(-exponents, exponents, (100_000, 1))
            given_in_type = torch.from_numpy(vectors).to(dtype).double().numpy()
            squared = np.square(given_in_type).sum(axis=1)
        factors = joint_clip_factors(squared[:, None], [0.3])
        kept = factors > 0
        assert np.all(np.isfinite(given_in_type[kept]))
        assert not np.any(kept & ~np.isfinite(squared))
        norms = np.linalg.norm(factors[kept, None] * given_in_type[kept], axis=1)
        assert np.all(norms <= 0.3 * (1 + 1e-6))
        inside = kept & (np.sqrt(squared) <= 0.3 * (1 - 1e-9))
        assert np.all(factors[inside] == 1.0), "what is inside the bound is left as it is"
        kept_in_all += int(kept.sum())
    assert VECTORS // 2 < kept_in_all < VECTORS


def test_a_vector_inside_the_bound_is_left_as_it_is_and_one_outside_is_put_on_it():
    factors = joint_clip_factors([[0.3, 0.6], [0.0, 0.0], [8.0, 8.0], [0.25, 1000.0]], [1.0, 2.0])
    assert factors[:2].tolist() == [1.0, 1.0]
    assert factors[2] == pytest.approx(1 / math.sqrt(10.0), rel=1e-11)
    assert factors[3] == pytest.approx(1 / math.sqrt(250.25), rel=1e-11)


def test_an_empty_batch_has_no_factors():
    assert joint_clip_factors(np.zeros((0, 3)), [1.0, 1.0, 1.0]).shape == (0,)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_bound_is_named(bad):
    with pytest.raises(ValueError, match="clipping_norms must be positive and finite"):
        joint_clip_factors([[1.0]], [bad])


@pytest.mark.parametrize(("norms", "bounds"), [([1.0], [1.0]), ([[1.0]], [1.0, 1.0]), ([[1.0, 1.0]], [1.0])])
def test_shapes_that_do_not_match_are_named(norms, bounds):
    with pytest.raises(ValueError, match="do not match"):
        joint_clip_factors(norms, bounds)
