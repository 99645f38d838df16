"""What the cheaper gradient estimates cost in accuracy: the demo's digits, the same seeds, estimate against exact."""

import statistics
from collections.abc import Callable
from typing import Any, Final

from dpfpl_bench.simulation.in_process import Simulation
from dpfpl_common.experiment import GradientSettings
from research.speed.profile import demo_sites, fixed_noise

__all__ = ["measure_estimates"]

ESTIMATES: Final = {
    "exact": GradientSettings(),
    "bfloat16": GradientSettings(precision="bfloat16"),
    "3 classes": GradientSettings(classes=3),
    "3 classes, bfloat16": GradientSettings(classes=3, precision="bfloat16"),
}
SEEDS: Final = 5
ROUNDS: Final = 10


def measure_estimates(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Mean accuracies in percent after ten rounds, over seeds; noise and samples of a seed are the same for all."""
    backbone, sites = demo_sites()
    rows = []
    for name, settings in ESTIMATES.items():
        say(f"accuracy of the estimate {name}")
        experiment = fixed_noise(backbone, sites, ROUNDS, gradients=settings)
        finals = [list(Simulation(backbone, sites, seed).run(experiment).final.values()) for seed in range(SEEDS)]
        row: dict[str, Any] = {"estimate": name, "seeds": SEEDS}
        for where in ("local", "neighbour"):
            each = [100 * statistics.mean(m[f"personal_{where}"] for m in final) for final in finals]
            row[where] = statistics.mean(each)
            row[f"{where}_spread"] = statistics.stdev(each)
        rows.append(row)
    return rows
