"""What the strength of the personal part does at use time: own classes against the others', after one run."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dpfpl_bench.simulation import SimulatedSite
from dpfpl_client.learning.backbone import Backbone
from dpfpl_client.learning.learner import PromptLearner
from dpfpl_common.experiment import Experiment
from dpfpl_common.payload import Context
from dpfpl_server.result import mean

__all__ = ["STRENGTHS", "strength_curve"]

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def strength_curve(
    backbone: Backbone,
    sites: Sequence[SimulatedSite],
    experiment: Experiment,
    global_context: Context,
    personal: Mapping[str, npt.NDArray[np.float64]],
) -> list[dict[str, float | None]]:
    """Accuracies of ``p_G + alpha p_L`` for each alpha: means over the sites and the worst site; nothing is trained.

    Measured on test images, so the best alpha of a curve is no fair choice for the same images.
    """
    plain = dataclasses.replace(experiment, prompt=dataclasses.replace(experiment.prompt, personal_strength=1.0))
    learners = {s.name: PromptLearner(backbone, plain, s.features) for s in sites if s.name in personal}
    curve: list[dict[str, float | None]] = []
    for alpha in STRENGTHS:
        found = [learner.evaluate(global_context, alpha * personal[name]) for name, learner in learners.items()]
        local = [metrics["personal_local"] for metrics in found if "personal_local" in metrics]
        curve.append(
            {
                "strength": alpha,
                "local": mean(local),
                "neighbour": mean(metrics.get("personal_neighbour") for metrics in found),
                "worst_site": min(local, default=None),
            }
        )
    return curve
