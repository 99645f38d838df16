"""Attacks on the one release of ``one_shot``, the noised class sums: their reader looks for one image's feature.

The canary is one image with its label: its feature has norm 1, the most that one example may add, and the attacker
looks along it. This is the strongest test of the difference of two Gaussians, so the bound should come close to the
claim.
"""

import numpy as np
import numpy.typing as npt

from dpfpl_bench.audit.bounds import one_run_bound, two_world_bound
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_common.privacy.noise import NoiseSource
from dpfpl_common.privacy.one_shot import noised_class_sums

__all__ = ["many_canaries_in_the_sums", "one_canary_in_the_sums"]

Floats = npt.NDArray[np.float64]


def one_canary_in_the_sums(
    pool: LabelledFeatures,
    classes: int,
    canary: int,
    noise: NoiseSource,
    noise_multiplier: float,
    trials: int,
    delta: float,
) -> float:
    """A lower bound on the release's epsilon from many releases with the canary and as many without it.

    Args:
        pool: the site's images; all but the canary are in every release.
        classes: length of the class list.
        canary: example of the pool.
        noise: real, or seeded.
        noise_multiplier: z of the release.
        trials: releases in each world.
        delta: the claim's.
    """
    own, label = pool.features[canary].double().numpy(), int(pool.labels[canary])
    others = np.delete(np.arange(len(pool)), canary)

    def scores(chosen: npt.NDArray[np.int64]) -> Floats:
        part = pool.take(chosen)
        return np.array([_release(part, classes, noise, noise_multiplier)[label] @ own for _ in range(trials)])

    return two_world_bound(scores(np.arange(len(pool))), scores(others), delta)


def many_canaries_in_the_sums(
    pool: LabelledFeatures,
    coins: npt.NDArray[np.bool_],
    classes: int,
    noise: NoiseSource,
    noise_multiplier: float,
    delta: float,
) -> float:
    """A lower bound from a single release that holds the examples which the coins chose.

    The attacker knows all but the coins and solves for them: class by class, ridge regression of the noised sum on the
    canaries' features.
    """
    released = _release(pool.take(np.flatnonzero(coins)), classes, noise, noise_multiplier)
    features, labels = pool.features.double().numpy(), pool.labels.numpy()
    scores = np.zeros(len(pool))
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        rows = features[own]
        unexplained = rows @ (released[label] - 0.5 * rows.sum(axis=0))
        gram = 0.25 * rows @ rows.T + (noise_multiplier**2 + 1e-9) * np.eye(len(own))
        scores[own] = np.linalg.solve(gram, unexplained)
    return one_run_bound(coins, scores, delta)


def _release(part: LabelledFeatures, classes: int, noise: NoiseSource, noise_multiplier: float) -> Floats:
    return noised_class_sums(part.features.numpy(), part.labels.numpy(), classes, noise, noise_multiplier)
