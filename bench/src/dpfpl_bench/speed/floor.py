"""The floor: how long the products alone take at the rate that this machine reaches in one."""

import time
from typing import Any

import torch

from dpfpl_bench.speed.problem import Problem
from dpfpl_client.learning.products import FrozenProduct

__all__ = ["measured_rate", "step_flops"]

LAYERS, WIDTH, INNER = 12, 512, 2048


def step_flops(problem: Problem, cotangents: int) -> float:
    """Floating point operations of the products of one forward pass and so many pullbacks, whatever computes them.

    Every token of context and class names once through every layer; of the last layer only keys and values, but for the
    classes' ends; attention itself, under one percent, is left out, and so is the begin token, which is constant.
    """
    square = 2.0 * WIDTH * WIDTH
    token = 4 * square + 2 * 2.0 * WIDTH * INNER
    last = problem.rows * 2 * square + problem.classes * (token - 2 * square)
    forward = (LAYERS - 1) * problem.rows * token + last + problem.classes * square
    return forward * (1 + cotangents)


def measured_rate(rows: int = 512) -> dict[str, Any]:
    """Operations a second of one thread in a layer's large product: torch's default, the chosen kernel, bfloat16."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, WIDTH, generator=generator)
    weight = torch.randn(INNER, WIDTH, generator=generator)
    chosen = FrozenProduct(weight, None, coarse=True)
    g = torch.randn(rows, INNER, generator=generator)
    flops = 2.0 * rows * WIDTH * INNER
    return {
        "default": flops / _best(lambda: x @ weight.T),
        "chosen": flops / _best(lambda: chosen(x)),
        "bfloat16": flops / _best(lambda: chosen.pullback(g, coarse=True)),
        "rows": rows,
    }


def _best(call: Any) -> float:
    call()
    times = []
    for _ in range(25):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return sorted(times)[len(times) // 2]
