"""Times and memory of one training step, all contestants side by side, at two numbers of classes."""

import time
from collections.abc import Callable
from typing import Any

import torch

from dpfpl_client.models.text_tower.fast import FastTextTower
from dpfpl_client.models.text_tower.layers import FrozenProduct
from research.speed import plain_steps, private_steps
from research.speed.problem import BOS, Problem, make_model, make_problem
from research.speed.timing import peak_memory, take_turns

__all__ = ["measure_steps", "measured_rate", "step_flops"]


# The floor: how long the products alone take at the rate that this machine reaches in one.


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


BATCH, LARGE_BATCH = 32, 160
NAIVE_EXAMPLES = 2
FEW = 3
Contestants = dict[str, tuple[Callable[[], object], int]]


def measure_steps(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Rows by number of classes; ratios are over D, the shared prefix under autograd, of the same turn."""
    model = make_model(vision=not quick)
    tower = FastTextTower(model.text_model, model.text_projection, BOS, coarse=True)
    results = {}
    for classes in (10, 100):
        say(f"steps, {classes} classes")
        contestants = _contestants(model, tower, classes, quick)
        timed = take_turns(contestants, "shared_prefix", turns=2 if quick else 9 if classes == 10 else 5)
        rows = {name: one.as_table() for name, one in timed.items()}
        if "naive_part" in rows:
            for name in ("cpu_seconds", "ratio"):
                rows["naive_part"][name + "_of_whole_batch"] = rows["naive_part"][name] * BATCH / NAIVE_EXAMPLES
        rows["private"]["flops"] = step_flops(make_problem(classes, BATCH), BATCH)
        rows["fast"]["flops"] = step_flops(make_problem(classes, BATCH), 1)
        results[str(classes)] = rows
    return results


def measure_memory(say: Callable[[str], None]) -> dict[str, int | None]:
    """Bytes that one private step of 32 examples and 10 classes needs at its peak."""
    say("memory")
    model = make_model(vision=False)
    tower = FastTextTower(model.text_model, model.text_projection, BOS)
    problem = make_problem(10, BATCH)
    steps = {
        "private": private_steps.fast_private(tower, problem),
        "batched_autograd": private_steps.batched_autograd(model, problem),
        "naive": private_steps.expanded(model, problem),
    }
    make_problem(2, 2)
    steps["private"]()  # kernels and their buffers are there before the fork
    return {name: peak_memory(step) for name, step in steps.items()}


def _contestants(model: Any, tower: FastTextTower, classes: int, quick: bool) -> Contestants:
    problem = make_problem(classes, BATCH)
    slow = 1 if quick else 2
    many = 9
    found: Contestants = {
        "shared_prefix": (plain_steps.shared_prefix(model, problem), many),
        "fast": (plain_steps.fast(tower, problem), many),
        "truncated": (plain_steps.truncated(model, problem), slow + 1),
        "private": (private_steps.fast_private(tower, problem), many),
        "private_bfloat16": (private_steps.fast_private(tower, problem, coarse=True), many),
        "private_few": (private_steps.fast_private(tower, problem, classes=FEW), many),
        "private_few_bfloat16": (private_steps.fast_private(tower, problem, coarse=True, classes=FEW), many),
    }
    if not quick:
        found["hugging_face"] = (plain_steps.hugging_face(model, problem), slow)
        found["published_replica"] = (plain_steps.published_replica(model, problem), slow)
        found["batched_autograd"] = (private_steps.batched_autograd(model, problem), slow)
    if classes == 10:
        found["naive"] = (private_steps.expanded(model, problem), slow)
        if not quick:
            found["naive_opacus"] = (private_steps.expanded_opacus(model, problem), 1)
            found |= _large_batch(tower, make_problem(classes, LARGE_BATCH))
    else:
        found["naive_part"] = (private_steps.expanded(model, problem, NAIVE_EXAMPLES), slow)
    return found


def _large_batch(tower: FastTextTower, problem: Problem) -> Contestants:
    return {
        "private_160": (private_steps.fast_private(tower, problem), 3),
        "private_bfloat16_160": (private_steps.fast_private(tower, problem, coarse=True), 3),
        "private_few_bfloat16_160": (private_steps.fast_private(tower, problem, coarse=True, classes=FEW), 3),
    }
