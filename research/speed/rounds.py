"""Simulated rounds: time and memory by the number of sites, where a round's time goes, what estimates cost."""

import copy
import cProfile
import pstats
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from dpfpl_bench.demo.scenarios import the_same_sites_in_process
from dpfpl_bench.simulation.in_process import SimulatedSite, Simulation, site_names
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.models.backbone import Backbone, LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import Experiment, GradientSettings, ModelSettings, PrivacySettings, RoundSettings
from research.speed.contestants import AutogradTower

__all__ = ["PARTS", "measure_estimates", "measure_profile", "measure_simulation"]

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGES = 60
PARTS: Final = {
    "gradients": ("class_scorer.py", "per_example_gradients"),
    "clipping and noise": ("step.py", "noised_step"),
    "factorisation": ("methods.py", "factorise"),
    "evaluation": ("learner.py", "evaluate"),
    "ledger": ("book.py", "reserve"),
    "budget check": ("budget.py", "check_budget"),
    "aggregation": ("aggregation.py", ""),
}
"""File and function of each part of a round; without a function, all of the file's."""
ESTIMATES: Final = {
    "exact": GradientSettings(),
    "bfloat16": GradientSettings(precision="bfloat16"),
    "3 classes": GradientSettings(classes=3),
    "3 classes, bfloat16": GradientSettings(classes=3, precision="bfloat16"),
}
SEEDS, ROUNDS = 5, 10


def measure_simulation(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rounds with the embedded model, 60 training images a site, one noised step a round, at growing numbers of sites.

    CPU seconds a round and site; resident memory beyond one run with a single site, for each further site.
    """
    backbone, rounds = load_backbone("embedded"), 3
    _largest_while(backbone, 1, 2)
    base, rows = _resident(), []
    for count in (10, 100, 1000):
        say(f"simulation, {count} sites")
        began = time.process_time()
        grown = _largest_while(backbone, count, rounds)
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


def _largest_while(backbone: Backbone, count: int, rounds: int) -> int:
    """Resident memory while everything of such a run is alive."""
    generator = torch.Generator().manual_seed(count)

    def images(number: int) -> LabelledFeatures:
        features = torch.randn(number, backbone.feature_size, generator=generator)
        labels = torch.randint(len(CLASSES), (number,), generator=generator)
        return LabelledFeatures(torch.nn.functional.normalize(features, dim=1), labels)

    sites = [
        SimulatedSite(name, SiteFeatures(images(IMAGES), images(10), images(10), CLASSES), len(CLASSES))
        for name in site_names(count)
    ]
    experiment = _fixed_noise(backbone, sites, RoundSettings(number=rounds, local_steps=1, evaluate_every=1000))
    seen: list[int] = []
    Simulation(backbone, sites, seed=0).run(experiment, lambda status: seen.append(_resident()))
    return max(seen)


def _resident() -> int:
    """Bytes of this process in memory now (Linux), or its peak."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_profile(say: Callable[[str], None]) -> dict[str, Any]:
    """One round of the demo's sites in one process, ``before`` and ``after`` the text tower was written out by hand.

    Before is what stood in its place: the shared prefix under autograd, its products for 64 examples at a time.
    """
    say("profile of a round")
    backbone, sites = _demo_sites()
    old: Any = copy.copy(backbone)
    old._tower = AutogradTower(old._model.text_model, old._model.text_projection)
    return {
        "sites": len(sites),
        "local_steps": RoundSettings().local_steps,
        "before": _profile(old, sites, 1),
        "after": _profile(backbone, sites, 3),
    }


def _profile(backbone: Backbone, sites: list[SimulatedSite], rounds: int) -> dict[str, Any]:
    """CPU seconds a round without a profiler, and each part's share with one."""
    experiment = _fixed_noise(backbone, sites, RoundSettings(number=rounds))
    Simulation(backbone, sites, 0).run(_fixed_noise(backbone, sites, RoundSettings(number=1)))
    began = time.process_time()
    Simulation(backbone, sites, 0).run(experiment)
    seconds = (time.process_time() - began) / rounds
    profiler = cProfile.Profile()
    profiler.runcall(Simulation(backbone, sites, 0).run, experiment)
    found: Any = pstats.Stats(profiler)
    shares: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for (path, _, function), (_, _, own, cumulative, _) in found.stats.items():
        for part, (file, name) in PARTS.items():
            if str(path).endswith("/" + file) and (function == name or not name):
                shares[part] += (cumulative if name else own) / found.total_tt
    shares["everything else"] = max(0.0, 1.0 - sum(shares.values()))
    return {"cpu_seconds_a_round": seconds, "shares": shares}


def measure_estimates(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Mean accuracies in percent after ten rounds of the demo's digits, over seeds; noise and samples of a seed are the
    same for all estimates.
    """
    backbone, sites = _demo_sites()
    rows = []
    for name, settings in ESTIMATES.items():
        say(f"accuracy of the estimate {name}")
        experiment = _fixed_noise(backbone, sites, RoundSettings(number=ROUNDS), gradients=settings)
        finals = [list(Simulation(backbone, sites, seed).run(experiment).final.values()) for seed in range(SEEDS)]
        row: dict[str, Any] = {"estimate": name, "seeds": SEEDS}
        for where in ("local", "neighbour"):
            each = [100 * statistics.mean(m[f"personal_{where}"] for m in final) for final in finals]
            row |= {where: statistics.mean(each), f"{where}_spread": statistics.stdev(each)}
        rows.append(row)
    return rows


def _demo_sites() -> tuple[Backbone, list[SimulatedSite]]:
    """The demo's digits, split among four sites by class."""
    with tempfile.TemporaryDirectory(prefix="dpfpl-") as folder:
        return the_same_sites_in_process(Path(folder))


def _fixed_noise(backbone: Backbone, sites: list[SimulatedSite], rounds: RoundSettings, **changes: Any) -> Experiment:
    """An experiment of these sites with noise multiplier 1."""
    size = round(sum(len(site.features.train) for site in sites) / len(sites))
    return Experiment(
        name="speed",
        classes=sites[0].features.classes,
        sites=tuple(site.name for site in sites),
        model=ModelSettings(width=backbone.width, fingerprint=backbone.fingerprint),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0, nominal_site_size=size),
        rounds=rounds,
        **changes,
    )
