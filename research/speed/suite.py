"""All measurements of ``make bench`` in one run, as bench.json."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dpfpl_client.models.text_tower.layers import prefers_onednn
from research.speed.caching import measure_cache
from research.speed.equality import measure_equality
from research.speed.estimates import measure_estimates
from research.speed.federation import measure_simulation
from research.speed.graphics import measure_gpu
from research.speed.images import measure_images
from research.speed.pooling import measure_pooling
from research.speed.profile import measure_profile
from research.speed.round_cost import measure_deployed_round
from research.speed.secure_cost import measure_secure
from research.speed.starting import measure_starting
from research.speed.steps import measure_memory, measure_steps, measured_rate
from research.speed.targets import targets

__all__ = ["run_suite"]


def run_suite(out: Path, *, quick: bool, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure everything on one thread; write and return what bench.json holds.

    Args:
        out: folder for bench.json.
        quick: about two minutes, without the slowest contestants and without a deployed federation.
        say: told what is going on.
    """
    started = time.monotonic()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": _machine(), "quick": quick}
    try:
        result["rate"] = measured_rate()
        result["steps"] = measure_steps(quick, say)
        result["rate_after"] = measured_rate()
        result["memory"] = measure_memory(say)
        result["equality"] = measure_equality(say)
        result["cache"] = measure_cache(quick, say)
        result["images"] = measure_images(quick, say)
        result["pooling"] = measure_pooling(quick, say)
        result["secure"] = measure_secure(quick, say)
        result["simulation"] = measure_simulation(quick, say)
        result["profile"] = measure_profile(quick, say)
        result["gpu"] = measure_gpu(quick, say)
        if not quick:
            result["starting"] = measure_starting(say)
            result["estimates"] = measure_estimates(say)
            with tempfile.TemporaryDirectory(prefix="dpfpl-") as folder:
                result["deployed"] = measure_deployed_round(Path(folder) / "round", 11, say)
    finally:
        torch.set_num_threads(threads)
    result["targets"] = targets(result)
    result["seconds"] = round(time.monotonic() - started, 1)
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads_used": 1,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "kernel_chosen": "oneDNN" if prefers_onednn(torch.float32) else "torch's default",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "opacus", "flwr", "numpy")},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
