"""One training step, all contestants side by side: times, memory, exactness, and on a GPU where there is one."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from dpfpl_client.models.class_scorer import loss_scales
from dpfpl_client.models.text_tower.fast import FastTextTower
from dpfpl_client.models.text_tower.layers import FrozenProduct
from dpfpl_client.models.text_tower.plain import PlainTextTower
from research.speed import contestants
from research.speed.contestants import BOS, AutogradTower, Problem, SharedPrefixTextTower, make_problem, vit_b16
from research.speed.timing import cpu_seconds, peak_memory, take_turns

__all__ = ["measure_equality", "measure_gpu", "measure_memory", "measure_steps", "measured_rate", "step_flops"]

LAYERS, WIDTH, INNER = 12, 512, 2048
BATCH, LARGE_BATCH, NAIVE_EXAMPLES = 32, 160, 2
FEW = 3
EXACT = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-5, 1e-4)}
"""Largest relative errors allowed of features and of single gradients."""
Contestants = dict[str, tuple[Callable[[], object], int]]


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
        "default": flops / _usual_seconds(lambda: x @ weight.T),
        "chosen": flops / _usual_seconds(lambda: chosen(x)),
        "bfloat16": flops / _usual_seconds(lambda: chosen.pullback(g, coarse=True)),
        "rows": rows,
    }


def _usual_seconds(call: Callable[[], object]) -> float:
    call()
    return statistics.median(cpu_seconds(call) for _ in range(25))


def measure_steps(say: Callable[[str], None]) -> dict[str, Any]:
    """Rows by number of classes; ratios are over D, the shared prefix under autograd, of the same turn."""
    model = vit_b16()
    tower = FastTextTower(model.text_model, model.text_projection, BOS, coarse=True)
    results = {}
    for classes in (10, 100):
        say(f"steps, {classes} classes")
        timed = take_turns(_contestants(model, tower, classes), "shared_prefix", turns=9 if classes == 10 else 5)
        rows = {name: one.as_table() for name, one in timed.items()}
        if "naive_part" in rows:
            for name in ("cpu_seconds", "ratio"):
                rows["naive_part"][name + "_of_whole_batch"] = rows["naive_part"][name] * BATCH / NAIVE_EXAMPLES
        rows["private"]["flops"] = step_flops(make_problem(classes, BATCH), BATCH)
        rows["fast"]["flops"] = step_flops(make_problem(classes, BATCH), 1)
        results[str(classes)] = rows
    return results


def _contestants(model: Any, tower: FastTextTower, classes: int) -> Contestants:
    """Steps by name, and in how many turns at most."""
    text = model.text_model, model.text_projection
    plain, shared = PlainTextTower(*text), SharedPrefixTextTower(*text)
    problem = make_problem(classes, BATCH)
    found: Contestants = {
        "shared_prefix": (contestants.autograd(shared, problem), 9),
        "fast": (contestants.fast(tower, problem), 9),
        "truncated": (contestants.autograd(plain, problem), 3),
        "private": (contestants.private(tower, problem), 9),
        "private_bfloat16": (contestants.private(tower, problem, coarse=True), 9),
        "private_few": (contestants.private(tower, problem, classes=FEW), 9),
        "private_few_bfloat16": (contestants.private(tower, problem, coarse=True, classes=FEW), 9),
        "hugging_face": (contestants.autograd(plain, problem, contestants.padded(problem.tokens)), 2),
        "published_replica": (contestants.published_replica(model, problem), 2),
        "batched_autograd": (contestants.private(AutogradTower(*text), problem), 2),
    }
    if classes == 100:
        found["naive_part"] = (contestants.expanded(model, problem, NAIVE_EXAMPLES), 2)
        return found
    large = make_problem(classes, LARGE_BATCH)
    found |= {
        "naive": (contestants.expanded(model, problem), 2),
        "naive_opacus": (contestants.expanded_opacus(model, problem), 1),
        "private_160": (contestants.private(tower, large), 3),
        "private_bfloat16_160": (contestants.private(tower, large, coarse=True), 3),
        "private_few_bfloat16_160": (contestants.private(tower, large, coarse=True, classes=FEW), 3),
    }
    return found


def measure_memory(say: Callable[[str], None]) -> dict[str, int | None]:
    """Bytes that one private step of 32 examples and 10 classes needs at its peak."""
    say("memory")
    model = vit_b16()
    problem = make_problem(10, BATCH)
    steps = {
        "private": contestants.private(FastTextTower(model.text_model, model.text_projection, BOS), problem),
        "batched_autograd": contestants.private(AutogradTower(model.text_model, model.text_projection), problem),
        "naive": contestants.expanded(model, problem),
    }
    steps["private"]()  # kernels and their buffers are there before the fork
    return {name: peak_memory(step) for name, step in steps.items()}


def measure_equality(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Largest relative errors of features and single examples' gradients against a plain forward and a loop."""
    say("equality with the plain forward")
    rows = []
    for dtype, limits in EXACT.items():
        model = vit_b16().to(dtype)
        problem = make_problem(10, 4)
        context, features = problem.context.to(dtype), problem.features.to(dtype)
        ours = FastTextTower(model.text_model, model.text_projection, BOS).run(context, problem.tokens)
        theirs = PlainTextTower(model.text_model, model.text_projection).run(context, problem.tokens)
        scales = loss_scales(theirs, problem.scale, features, problem.labels)
        pairs = (
            ("features", ours.features, theirs.features),
            ("gradients", ours.rank_one_pullback(scales, features), theirs.rank_one_pullback(scales, features)),
        )
        for (what, a, b), limit in zip(pairs, limits, strict=True):
            error = float(((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max())
            rows.append({"name": f"{what} in {str(dtype).removeprefix('torch.')}", "error": error, "limit": limit})
    return rows


def measure_gpu(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Wall-clock seconds by batch and number of classes, float32 and bfloat16; empty without a CUDA device."""
    if not torch.cuda.is_available():
        return []
    say("GPU")
    model = vit_b16().to("cuda")
    tower = FastTextTower(model.text_model, model.text_projection, BOS, coarse=True)
    rows = []
    for classes in (10, 100, 1000):
        for batch in (32, 256, 1024):
            problem = make_problem(classes, batch, "cuda")
            plain = _gpu_seconds(contestants.fast(tower, problem))
            for precision in ("float32", "bfloat16"):
                private = _gpu_seconds(contestants.private(tower, problem, coarse=precision == "bfloat16"))
                rows.append(
                    {
                        "device": torch.cuda.get_device_name(),
                        "classes": classes,
                        "batch": batch,
                        "precision": precision,
                        "private_seconds": private,
                        "private_over_plain": private / plain,
                    }
                )
    return rows


def _gpu_seconds(step: Callable[[], object]) -> float:
    step()
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
