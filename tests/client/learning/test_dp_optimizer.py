"""Opacus' optimizer with this project's clip, noise and divisor."""

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer

from dpfpl_client.learning.step import BlockDPOptimizer
from dpfpl_common.privacy.clipping import clipped_sums
from no_noise import NoNoise

pytestmark = pytest.mark.privacy

SHAPES = ((4, 3), (4, 2), (2, 3))


def batch(count, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [scale * rng.normal(size=(count, *shape)) for shape in SHAPES]


def parameters():
    return [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]


def test_with_equal_bounds_and_no_noise_it_is_opacus_own_step():
    blocks = batch(7)
    ours = BlockDPOptimizer(
        parameters(), clipping_norms=[0.8] * 3, noise_stddevs=[0.0] * 3, noise=NoNoise(), expected_batch_size=5
    ).release(blocks)
    plain = parameters()
    stock = DPOptimizer(torch.optim.SGD(plain, lr=1.0), noise_multiplier=0.0, max_grad_norm=0.8, expected_batch_size=5)
    for parameter, block in zip(plain, blocks, strict=True):
        parameter.grad_sample = torch.from_numpy(block)
    stock.pre_step()
    for released, parameter in zip(ours, plain, strict=True):
        # Opacus adds 1e-6 to every norm, so it clips a hair more.
        np.testing.assert_allclose(released, parameter.grad.numpy(), rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_the_divisor_is_public_and_an_empty_batch_is_an_ordinary_one(count):
    optimizer = BlockDPOptimizer(
        parameters(), clipping_norms=[1.0] * 3, noise_stddevs=[0.0] * 3, noise=NoNoise(), expected_batch_size=8
    )
    blocks = batch(count)
    for released, total in zip(optimizer.release(blocks), clipped_sums(blocks, [1.0] * 3), strict=True):
        np.testing.assert_allclose(released * 8, total, atol=1e-15)


def test_separate_clipping_bounds_every_block_on_its_own():
    blocks = batch(1, scale=100.0)
    norms = [0.5, 1.0, 2.0]
    for total, norm in zip(clipped_sums(blocks, norms, "separate"), norms, strict=True):
        assert np.linalg.norm(total) == pytest.approx(norm, rel=1e-9)
        assert np.linalg.norm(total) <= norm
    joint = clipped_sums(blocks, norms)
    assert sum((np.linalg.norm(t) / n) ** 2 for t, n in zip(joint, norms, strict=True)) <= 1


def test_an_example_that_is_not_finite_in_one_block_is_left_out_of_all():
    for clipping in ("joint", "separate"):
        blocks = batch(3)
        blocks[2][1, 0, 0] = np.nan
        kept = [block[[0, 2]] for block in blocks]
        for total, expected in zip(
            clipped_sums(blocks, [1.0] * 3, clipping), clipped_sums(kept, [1.0] * 3, clipping), strict=True
        ):
            np.testing.assert_array_equal(total, expected)
