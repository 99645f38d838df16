"""Own classes against the others', as a site expects more or less of its usual mix, after one run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpfpl_bench.simulation.in_process import SimulatedSite
from dpfpl_client.learning.evidence import accuracies, alone_head, chosen_head, own_rows, rows_at_site, site_head
from dpfpl_client.learning.learner import PromptLearner, initial_context
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.backbone import Backbone
from dpfpl_common.experiment import Experiment
from dpfpl_server.runs.folder import Checkpoint
from dpfpl_server.runs.result import mean

__all__ = ["MIXES", "mix_curve", "own_at_equal_others"]

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
