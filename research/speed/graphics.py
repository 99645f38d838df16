"""The private step on a GPU, where there is one: untested rows of their own, never mixed with the processor's."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from dpfpl_client.models.text_tower.fast import FastTextTower
from research.speed import plain_steps, private_steps
from research.speed.problem import BOS, make_model, make_problem

__all__ = ["measure_gpu"]


def measure_gpu(quick: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Wall-clock seconds by batch and number of classes, float32 and bfloat16; empty without a CUDA device."""
    if not torch.cuda.is_available():
        return []
    say("GPU")
    model = make_model("cuda", vision=False)
    tower = FastTextTower(model.text_model, model.text_projection, BOS, coarse=True)
    rows = []
    for classes in (100,) if quick else (10, 100, 1000):
        for batch in (256,) if quick else (32, 256, 1024):
            problem = make_problem(classes, batch, "cuda")
            plain = _seconds(plain_steps.fast(tower, problem))
            for coarse in (False, True):
                private = _seconds(private_steps.fast_private(tower, problem, coarse=coarse))
                rows.append(
                    {
                        "device": torch.cuda.get_device_name(),
                        "classes": classes,
                        "batch": batch,
                        "precision": "bfloat16" if coarse else "float32",
                        "plain_seconds": plain,
                        "private_seconds": private,
                        "private_over_plain": private / plain,
                    }
                )
    return rows


def _seconds(step: Callable[[], object]) -> float:
    step()
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
