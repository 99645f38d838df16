"""What ``one_shot`` releases of a site's images: a noised sum of features for every class, a vote and a second moment.

An image enters the class sums through its unit feature and its label alone, the vote as one number, and the moment as
the outer product of one vector of norm 1. All are Gaussian mechanisms of sensitivity 1. The later ones may depend on
what the first released: adaptively composed, with multipliers z1, z2 and z2, the three together are one Gaussian
mechanism of multiplier z, ``1 / z^2 = 1 / z1^2 + 2 / z2^2`` (Dong, Roth and Su 2022, corollary 3.3).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from dpfpl_common.privacy.clipping import GRAIN
from dpfpl_common.privacy.noise import NoiseSource, check_grid

__all__ = [
    "VOTE_SHARE",
    "bounded",
    "noised_class_sums",
    "noised_moment",
    "noised_vote",
    "packed_moment",
    "shared_out",
]

Floats = npt.NDArray[np.float64]

VOTE_SHARE = 0.05
"""Of ``1 / z^2``, what the vote takes, and the moment, if there is one, as much. The class sums get the rest: they have
1.03 times the noise that they had alone, with a moment 1.05 times. docs/explanation/evidence.md has what more or less
would change."""

AT_ONCE = 256
"""Images whose outer products are in memory together."""


def shared_out(noise_multiplier: float, *, moment: bool) -> tuple[float, float]:
    """Multipliers of the class sums, and of the vote, that compose to ``noise_multiplier``; 0 stays 0.

    With a ``moment`` both and a moment with the vote's multiplier do.
    """
    rest = 1 - (1 + moment) * VOTE_SHARE
    return noise_multiplier / math.sqrt(rest), noise_multiplier / math.sqrt(VOTE_SHARE)


def noised_class_sums(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    num_classes: int,
    noise: NoiseSource,
    noise_multiplier: float,
) -> Floats:
    """S_c + N(0, z^2 I) for every class of the public list, [num_classes, feature_size].

    Guarantee: Gaussian mechanism with noise multiplier z, sensitivity 1 (add or remove one example), no sampling. A
    feature that is not finite is left out; one that is longer than 1 is scaled to norm 1.

    Args:
        features: [n, feature_size] unit image features; n may be 0.
        labels: [n], indices below num_classes.
        num_classes: length of the public class list.
        noise: source of the noise.
        noise_multiplier: z; 0 releases the sums themselves, for experiments that claim no privacy.

    Raises:
        PrivacyError: the noise is too large for the noise grid.
    """
    check_grid(noise_multiplier, num_classes * features.shape[1])
    rows, finite = bounded(features)
    whole = np.zeros((num_classes, features.shape[1]), dtype=np.int64)
    np.add.at(whole, labels[finite], np.trunc(rows[finite] / GRAIN).astype(np.int64))  # as ``clipping.grid_sum``
    sums = whole.astype(np.float64) * GRAIN
    return noise.add(sums, noise_multiplier) if noise_multiplier > 0 else sums


def noised_vote(votes: Floats, noise: NoiseSource, noise_multiplier: float) -> float:
    """``sum_x v_x + N(0, z^2)``, every v_x held to [-1, 1].

    Guarantee: Gaussian mechanism with noise multiplier z, sensitivity 1 (add or remove one example), where v_x depends
    on example x and on what was released before, and on no other example. A vote that is not a number counts 0.

    Args:
        votes: [n]; n may be 0.
        noise: source of the noise.
        noise_multiplier: z; 0 releases the sum itself, for experiments that claim no privacy.

    Raises:
        PrivacyError: the noise is too large for the noise grid.
    """
    check_grid(noise_multiplier, 1)
    held = np.clip(np.nan_to_num(np.asarray(votes, dtype=np.float64), nan=0.0), -1.0, 1.0)
    total = np.array([np.rint(held / GRAIN).astype(np.int64).sum() * GRAIN])
    return float((noise.add(total, noise_multiplier) if noise_multiplier > 0 else total)[0])


def noised_moment(residuals: Floats, noise: NoiseSource, noise_multiplier: float) -> Floats:
    """``sum_x r_x r_x^T + N(0, z^2 I)``, packed: [k (k + 1) / 2].

    Guarantee: Gaussian mechanism with noise multiplier z, sensitivity 1 (add or remove one example), where r_x depends
    on example x and on what was released before, and on no other example. Every r_x is held to norm 1, and packing
    keeps distances (``packed_moment``), so one example adds a vector of norm ``|r_x|^2 <= 1``; rounding it towards zero
    makes it no longer. A residual that is not finite counts 0.

    Args:
        residuals: [n, k]; n may be 0.
        noise: source of the noise.
        noise_multiplier: z; 0 releases the sum itself, for experiments that claim no privacy.

    Raises:
        PrivacyError: the noise is too large for the noise grid.
    """
    held, _ = bounded(residuals)
    whole = np.zeros(len(packed_moment(np.zeros((held.shape[1],) * 2))), dtype=np.int64)
    check_grid(noise_multiplier, whole.size)
    for start in range(0, len(held), AT_ONCE):
        some = held[start : start + AT_ONCE]
        each = packed_moment(some[:, :, None] * some[:, None, :])
        whole += np.trunc(each / GRAIN).astype(np.int64).sum(axis=0)
    total = whole.astype(np.float64) * GRAIN
    return noise.add(total, noise_multiplier) if noise_multiplier > 0 else total


def packed_moment(moment: Floats) -> Floats:
    """[..., k (k + 1) / 2] of symmetric [..., k, k]: the upper triangle, off the diagonal times sqrt(2).

    The Euclidean norm of the one is the Frobenius norm of the other.
    """
    across, down = np.triu_indices(moment.shape[-1])
    return np.asarray(moment[..., across, down] * np.where(across == down, 1.0, math.sqrt(2)))


def bounded(features: npt.NDArray[np.floating[Any]]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Features [n, feature_size] of norm at most 1, and which of them are finite, [n]; the others are zero."""
    rows = np.asarray(features, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(rows, axis=1)
    finite = np.isfinite(norms)
    safe = np.where(finite[:, None], rows, 0.0)
    scale = np.minimum(1.0, (1.0 - 1e-12) / np.maximum(np.where(finite, norms, 1.0), 1e-300))
    return safe * scale[:, None], finite
