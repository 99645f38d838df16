"""Where the time of a round of the embedded demo goes, by what the code is doing."""

import copy
import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dpfpl_bench.demo.scenarios import the_same_sites_in_process
from dpfpl_bench.simulation.in_process import SimulatedSite, Simulation
from dpfpl_client.models.backbone import Backbone
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from research.speed.autograd_tower import AutogradTower

__all__ = ["demo_sites", "fixed_noise", "measure_profile"]

PARTS: Final = {
    "gradients": ("class_scorer.py", "per_example_gradients"),
    "clipping and noise": ("step.py", "noised_step"),
    "factorisation": ("methods.py", "factorise"),
    "evaluation": ("learner.py", "evaluate"),
    "ledger": ("book.py", "reserve"),
    "budget check": ("budget.py", "check_budget"),
    "aggregation": ("aggregation.py", ""),
}
SITES: Final = 4


def measure_profile(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """One round of the demo's sites in one process, ``before`` and ``after`` the text tower was written out by hand.

    Before is what stood in its place: the shared prefix under autograd, its products for 64 examples at a time.
    """
    say("profile of a round")
    backbone, sites = demo_sites()
    rounds = 1 if quick else 3
    old: Any = copy.copy(backbone)
    old._tower = AutogradTower(old._model.text_model, old._model.text_projection)
    return {
        "sites": SITES,
        "local_steps": RoundSettings().local_steps,
        "before": _profile(old, sites, 1),
        "after": _profile(backbone, sites, rounds),
    }


def _profile(backbone: Backbone, sites: list[SimulatedSite], rounds: int) -> dict[str, Any]:
    """CPU seconds a round without a profiler, and each part's share with one."""
    experiment = fixed_noise(backbone, sites, rounds)
    Simulation(backbone, sites, 0).run(fixed_noise(backbone, sites, 1))
    began = time.process_time()
    Simulation(backbone, sites, 0).run(experiment)
    seconds = (time.process_time() - began) / rounds
    profiler = cProfile.Profile()
    profiler.runcall(Simulation(backbone, sites, 0).run, experiment)
    statistics: Any = pstats.Stats(profiler)
    total = statistics.total_tt
    shares: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for (path, _, function), (_, _, own, cumulative, _) in statistics.stats.items():
        for part, (file, name) in PARTS.items():
            if str(path).endswith("/" + file) and (function == name or not name):
                shares[part] += (cumulative if name else own) / total
    shares["everything else"] = max(0.0, 1.0 - sum(shares.values()))
    return {"cpu_seconds_a_round": seconds, "shares": shares}


def demo_sites() -> tuple[Backbone, list[SimulatedSite]]:
    """The demo's digits, split among four sites by class."""
    with tempfile.TemporaryDirectory(prefix="dpfpl-") as folder:
        return the_same_sites_in_process(Path(folder))


def fixed_noise(backbone: Backbone, sites: list[SimulatedSite], rounds: int, **changes: Any) -> Experiment:
    """The demo's experiment, its noise multiplier fixed."""
    size = round(sum(len(site.features.train) for site in sites) / len(sites))
    return Experiment(
        name="profile",
        classes=sites[0].features.classes,
        sites=tuple(site.name for site in sites),
        model=ModelSettings(width=backbone.width, fingerprint=backbone.fingerprint),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0, nominal_site_size=size),
        rounds=RoundSettings(number=rounds),
        **changes,
    )
