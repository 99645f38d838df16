"""Simulated rounds: time and memory as the number of sites in one process grows."""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dpfpl_bench.simulation.in_process import SimulatedSite, Simulation, site_names
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.models.backbone import Backbone, LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings

__all__ = ["measure_simulation"]

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGES = 60


def measure_simulation(quick: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rounds with the embedded model, 60 training images a site, one noised step a round, at growing numbers of sites.

    CPU seconds a round and site; resident memory beyond one run with a single site, for each further site.
    """
    backbone = load_backbone("embedded")
    _run(backbone, 1, 2)
    base, rows = _resident(), []
    for count in (10, 100) if quick else (10, 100, 1000):
        say(f"simulation, {count} sites")
        began = time.process_time()
        grown, rounds = _run(backbone, count, 3)
        seconds = time.process_time() - began
        rows.append(
            {
                "sites": count,
                "cpu_seconds_a_round": seconds / rounds,
                "cpu_milliseconds_a_round_and_site": 1e3 * seconds / rounds / count,
                "bytes_a_site": max(0, grown - base) / count,
            }
        )
    return rows


def _run(backbone: Backbone, count: int, rounds: int) -> tuple[int, int]:
    """Resident memory while everything of the run is alive, and how many rounds there were."""
    names = site_names(count)
    generator = torch.Generator().manual_seed(count)

    def images(number: int) -> LabelledFeatures:
        features = torch.randn(number, backbone.feature_size, generator=generator)
        labels = torch.randint(len(CLASSES), (number,), generator=generator)
        return LabelledFeatures(torch.nn.functional.normalize(features, dim=1), labels)

    sites = [
        SimulatedSite(name, SiteFeatures(images(IMAGES), images(10), images(10), CLASSES), len(CLASSES))
        for name in names
    ]
    experiment = Experiment(
        name="bench",
        classes=CLASSES,
        sites=tuple(names),
        model=ModelSettings(width=backbone.width),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0, nominal_site_size=IMAGES),
        rounds=RoundSettings(number=rounds, local_steps=1, evaluate_every=1000),
    )
    seen: list[int] = []
    Simulation(backbone, sites, seed=0).run(experiment, lambda status: seen.append(_resident()))
    return max(seen), rounds


def _resident() -> int:
    """Bytes of this process in memory now (Linux), or its peak."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
