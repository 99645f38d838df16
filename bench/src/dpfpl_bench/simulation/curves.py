"""Own classes against the others', after one run: what a preference, a strength or a mix does at use time."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpfpl_bench.simulation.in_process import SimulatedSite
from dpfpl_client.learning.evidence import accuracies, alone_head, chosen_head, own_rows, rows_at_site, site_head
from dpfpl_client.learning.learner import PromptLearner, SiteFeatures, initial_context
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.backbone import Backbone, LabelledFeatures
from dpfpl_client.models.class_scorer import ClassScorer
from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_common.experiment import Experiment
from dpfpl_common.wire.payloads import Context
from dpfpl_server.runs.folder import Checkpoint
from dpfpl_server.runs.result import mean

__all__ = [
    "MIXES",
    "PREFERENCES",
    "STRENGTHS",
    "mix_curve",
    "own_at_equal_others",
    "plain_at_equal_others",
    "preference_curve",
    "strength_curve",
]


# How far a mere preference for a site's own classes goes, without any training: the sceptic's control.
#
# A site with few classes is right more often as soon as its own classes are preferred, whatever the prompt. So a gain
# on own classes that costs others' accuracy says little by itself. Here a constant is added to the scores of a site's
# own classes (calibrated stacking: Chao et al., 2016), under the plain text prompt and under the personalised one: what
# the second is ahead of the first at *equal* accuracy on the others' classes is what training taught.


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


def plain_at_equal_others(curve: Sequence[Mapping[str, float | None]]) -> float | None:
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


# Own classes against the others', as a site expects more or less of its usual mix.


MIXES = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
WAYS = ("federated", "alone", "zero_shot")


def mix_curve(
    backbone: Backbone, sites: Sequence[SimulatedSite], experiment: Experiment, checkpoint: Checkpoint, seed: int
) -> list[dict[str, float | None]]:
    """Means over the sites for each ``usual_mix``: of what the votes chose, of class vectors from the site's own noised
    rows alone, and of the plain text.

    Measured on test images, so the best mix of a curve is no fair choice for the same images. ``seed`` is the run's.
    """
    evidence, scorer = checkpoint.evidence, backbone.scorer(experiment)
    initial, chosen = initial_context(backbone, experiment), evidence.chosen(experiment)
    points: dict[float, list[dict[str, float]]] = {mix: [] for mix in MIXES}
    for site in sites:
        if site.name not in evidence.rows:
            continue
        learner = PromptLearner(backbone, experiment, site.features)
        shared = learner.context(checkpoint.global_context, np.zeros(experiment.context_shape))
        packed = evidence.packed(experiment, site.name)
        text = chosen_head(scorer, initial, packed, "text", None)
        sums = evidence.rows[site.name].astype(np.float64)
        alone = own_rows(experiment, sums, evidence.votes.get(site.name))
        assert alone is not None  # rows of single sites are there
        noise = SeededRandomness(seed).for_round(site.name, experiment.rounds.number + 2)  # the run's
        own = rows_at_site(experiment, sums, learner.own_moment(packed, alone, noise))
        heads = {
            "federated": chosen_head(scorer, initial, packed, chosen, shared, alone, own),
            "alone": alone_head(text.vectors, text.scale, alone, packed),
            "zero_shot": text,
        }
        for mix, found in points.items():
            row: dict[str, float] = {}
            for way, head in heads.items():
                used = site_head(head, learner.label_shares, mix)
                measured = accuracies(used, site.features.test, site.features.neighbour_test, learner.label_shares)
                row |= {f"{way}_{column}": measured[column] for column in ("local", "neighbour") if column in measured}
            found.append(row)
    names = [f"{way}_{column}" for way in WAYS for column in ("local", "neighbour")]
    curve = []
    for mix, rows in points.items():
        point: dict[str, float | None] = {"usual_mix": mix}
        curve.append(point | {name: mean(row.get(name) for row in rows) for name in names})
    return curve


def own_at_equal_others(curve: Sequence[Mapping[str, Any]], slack: float = 0.02) -> dict[str, float | None]:
    """The best own accuracy of each way whose accuracy on the others' stays at the plain text's less ``slack``."""
    level = next((point["zero_shot_neighbour"] for point in curve if point["usual_mix"] == 0.0), None)
    if level is None:
        return dict.fromkeys(WAYS)
    return {
        way: max(
            (point[f"{way}_local"] for point in curve if (point[f"{way}_neighbour"] or 0.0) >= level - slack),
            default=None,
        )
        for way in WAYS
    }
