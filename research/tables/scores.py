"""The table of scores in docs/results/audits.md: estimates from noised counts against the exact shares, on digits.

``python -m research.tables.scores`` runs each federation once, keeps which held-back images every candidate answers
right, and draws the release of the counts 200 times.
"""

import math
from typing import Final
from unittest import mock

import numpy as np
import torch

from dpfpl_bench.simulation.in_process import Simulation, prepare_sites, site_names
from dpfpl_bench.simulation.settings import RunPrivacy, RunSettings, build_experiment
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.data import DataSettings, list_classes, partition_sites, read_pool
from dpfpl_client.learning import learner
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import RoundSettings
from dpfpl_common.privacy.counts import count_noise_stddev, gain, noised_counts, scores_from
from dpfpl_common.privacy.noise import SeededNoise
from dpfpl_common.privacy_plan import score_noise_multiplier, scored
from research.writing import table

REPETITIONS: Final = 200
HEAD: Final = (
    "sites", "epsilon", "held-back images", "z", "mean error, points", "half an interval, points",
    "covers the exact share", "gain's interval covers", "nothing to be said",
)  # fmt: skip


def coverage(sites: int, epsilon: float, seed: int = 0) -> list[str]:
    """One row of the table: of all candidates the mean error, how wide the intervals are, what they cover."""
    settings, backbone = DataSettings("digits"), load_backbone("embedded")
    names = list_classes(settings)
    parts = partition_sites(read_pool(settings, names, None).records, names, "iid", sites, seed)
    prepared = prepare_sites(parts, names, FeatureCache(None, backbone), site_names(sites))
    run = RunSettings(
        sites=sites, partition="iid", privacy=RunPrivacy(target_epsilon=epsilon), rounds=RoundSettings(number=3)
    )
    experiment = build_experiment("scores", run, backbone, names, prepared)
    answers: list[np.ndarray] = []

    def kept(right, noise, noise_multiplier):  # type: ignore[no-untyped-def]
        answers.append(right)
        return noised_counts(right, noise, noise_multiplier)

    with mock.patch.object(learner, "noised_counts", kept):
        Simulation(backbone, prepared, seed).run(experiment)
    truth, candidates = np.concatenate(answers).mean(axis=0), scored(experiment)
    z, noise = score_noise_multiplier(experiment), SeededNoise(np.random.default_rng(seed))
    stddev = math.sqrt(sites) * count_noise_stddev(len(candidates), z)
    errors, widths, inside, gained = [], [], 0, 0
    for _ in range(REPETITIONS):
        totals = np.sum([noised_counts(right, noise, z) for right in answers], axis=0)
        for score, share in zip(scores_from(totals, stddev), truth, strict=True):
            errors += [] if score.value is None else [abs(score.value - share)]
            widths.append(score.high - score.low)
            inside += score.low <= share <= score.high
        best = len(candidates) - 1
        _, low, high = gain(totals, stddev, best, 0)
        gained += low <= truth[best] - truth[0] <= high
    images, hidden = sum(map(len, answers)), 1 - len(errors) / (REPETITIONS * len(candidates))
    cells = (f"{sites}", f"{epsilon:g}", f"{images}", f"{z:.2f}", f"{100 * np.mean(errors):.1f}" if errors else "–",
             f"{100 * np.mean(widths) / 2:.1f}", f"{inside / REPETITIONS / len(candidates):.1%}",
             f"{gained / REPETITIONS:.1%}", f"{hidden:.1%}")  # fmt: skip
    return [cell.replace("%", " %") for cell in cells]


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = [coverage(count, target) for count in (4, 16) for target in (8.0, 2.0, 1.0)]
    print(table(HEAD, rows))
