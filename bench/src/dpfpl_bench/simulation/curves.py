"""What the strength of the personal part does at use time: own classes against the others', after one run."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpfpl_bench.simulation.in_process import SimulatedSite
from dpfpl_client.learning.learner import PromptLearner, SiteFeatures
from dpfpl_client.models.backbone import Backbone, LabelledFeatures
from dpfpl_client.models.class_scorer import ClassScorer
from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_common.experiment import Experiment
from dpfpl_common.wire.payloads import Context
from dpfpl_server.runs.result import mean

__all__ = ["PREFERENCES", "STRENGTHS", "own_at_equal_others", "preference_curve", "strength_curve"]


# How far a mere preference for a site's own classes goes, without any training: the sceptic's control.
#
# A site with few classes is right more often as soon as its own classes are preferred, whatever the prompt. So a gain
# on
# own classes that costs others' accuracy says little by itself. Here a constant is added to the scores of a site's own
# classes (calibrated stacking: Chao et al., 2016), under the plain text prompt and under the personalised one: what the
# second is ahead of the first at *equal* accuracy on the others' classes is what training taught.


PREFERENCES = (-2.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
"""Added to the logits of a site's own classes; 1 is a factor e between two classes' probabilities."""


def preference_curve(
    backbone: DualEncoder,
    sites: Sequence[SimulatedSite],
    experiment: Experiment,
    global_context: Context,
    personal: Mapping[str, npt.NDArray[np.float64]],
) -> list[dict[str, float | None]]:
    """Means over the sites of own and others' accuracy for each preference, plain and personalised; nothing is trained.

    A site's own classes are those that it has training images of.
    """
    scorer = ClassScorer(backbone, backbone.class_tokens(experiment.classes, experiment.prompt.num_context))
    nothing = np.zeros(experiment.context_shape)
    prompts: dict[str, list[tuple[SiteFeatures, Tensor]]] = {"zero_shot": [], "personalised": []}
    for site in sites:
        if site.name in personal:
            learner = PromptLearner(backbone, experiment, site.features)
            strong = experiment.prompt.personal_strength * personal[site.name]
            for name, context in (
                ("zero_shot", learner.context(nothing, nothing)),
                ("personalised", learner.context(global_context, strong)),
            ):
                prompts[name].append((site.features, scorer.class_features(context)))
    curve: list[dict[str, float | None]] = []
    for preference in PREFERENCES:
        bonus = preference / backbone.logit_scale
        point: dict[str, float | None] = {"preference": preference}
        for name, found in prompts.items():
            point[f"{name}_local"] = mean(_accuracy(text, bonus * _own(site), site.test) for site, text in found)
            point[f"{name}_neighbour"] = mean(
                _accuracy(text, bonus * _own(site), site.neighbour_test) for site, text in found
            )
        curve.append(point)
    return curve


def own_at_equal_others(curve: Sequence[Mapping[str, float | None]]) -> float | None:
    """Own accuracy of the plain prompt with the preference that gives it the personalised prompt's others' accuracy.

    Between two points of the curve a straight line; None where the curve does not reach so far.
    """
    (level,) = (point["personalised_neighbour"] for point in curve if point["preference"] == 0.0)
    points = [(point["zero_shot_local"], point["zero_shot_neighbour"]) for point in curve]
    if level is None:
        return None
    for (own, others), (next_own, next_others) in itertools.pairwise(points):
        if own is None or others is None or next_own is None or next_others is None:
            return None
        if next_others <= level <= others:
            share = 0.0 if others == next_others else (others - level) / (others - next_others)
            return own + share * (next_own - own)
    return None


def _own(site: SiteFeatures) -> Tensor:
    """1 for a class of which the site has a training image, 0 otherwise."""
    return torch.isin(torch.arange(len(site.classes)), site.train.labels).float()


def _accuracy(text_features: Tensor, bonus: Tensor, images: LabelledFeatures) -> float | None:
    if len(images) == 0:
        return None
    predicted = (images.features @ text_features.T + bonus).argmax(dim=1)
    return float((predicted == images.labels).double().mean())


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
