"""Descent against PyTorch's own optimizers."""

import numpy as np
import pytest
import torch

from dpfpl_common.experiment import OptimizerSettings
from dpfpl_common.optimizer import OptimizerState, descend


@pytest.mark.parametrize(("name", "reference"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_descent_equals_pytorch(name, reference):
    generator = np.random.default_rng(0)
    start = generator.normal(size=(3, 4))
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    theirs = reference([parameter], lr=0.03)
    context, state = start, OptimizerState.zeros((3, 4))
    for step in range(25):
        gradient = generator.normal(size=(3, 4)) * 10.0 ** (step % 5 - 2)
        parameter.grad = torch.from_numpy(gradient.copy())
        theirs.step()
        context, state = descend(OptimizerSettings(name=name), 0.03, context, gradient, state)
        np.testing.assert_allclose(context, parameter.detach().numpy(), rtol=1e-12, atol=1e-12)
    assert state.steps == 25


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_nothing_moves_without_a_gradient_or_a_rate_and_no_input_is_changed(name):
    settings, state = OptimizerSettings(name=name), OptimizerState.zeros((2, 2))
    context = np.ones((2, 2))
    moved, after = descend(settings, 0.1, context, np.zeros((2, 2)), state)
    assert moved.tolist() == context.tolist()
    moved, after = descend(settings, 0.0, context, np.ones((2, 2)), after)
    assert moved.tolist() == context.tolist()
    descend(settings, 0.5, context, np.ones((2, 2)), state)
    assert context.tolist() == [[1, 1], [1, 1]]
    assert (state.steps, state.first.sum(), state.second.sum()) == (0, 0.0, 0.0)
    assert moved.dtype == np.float64
