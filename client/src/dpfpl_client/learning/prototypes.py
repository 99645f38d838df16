"""``one_shot``: one noised sum of image features per class, released once; all training after it is post-processing.

The image tower is frozen, so an example enters training only through its unit feature z_x and its label. The sum
``S_c = sum_{x of class c} z_x`` over every class of the public list, each coordinate with Gaussian noise of standard
deviation z, is one Gaussian mechanism of L2 sensitivity 1: adding or removing an example changes one row by a vector of
norm 1. Everything computed from the noised sums costs nothing more, towards anybody.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpfpl_common.evidence import hidden_energy

__all__ = ["Prototypes", "prototypes_from"]

Floats = npt.NDArray[np.float64]

MOST_HIDDEN = 2.0
"""Weight of all classes that were not found, over that of those that were: at most this."""


@dataclass(frozen=True)
class Prototypes:
    """Pseudo-examples to train on.

    Attributes:
        features: [classes, feature_size]: direction of the class mean as far as it is known, of the class's text
            feature otherwise; each of norm at most 1.25.
        weights: [classes], adding up to 1, or all 0 where no class is found in the noise.
    """

    features: Floats
    weights: Floats


def prototypes_from(
    sums: Floats,
    noise_multiplier: float,
    expected: Floats,
    directions: Floats | None = None,
    absent_weight: float = 0.0,
) -> Prototypes:
    """How far to believe the noised sums; decided from them and from public facts alone, so it costs nothing.

    *Which rows.* The squared norm of pure noise in k dimensions exceeds ``z^2 (k + 2 sqrt(k t) + 2 t)`` with chance at
    most ``exp(-t)`` (``dpfpl_common.privacy_plan``). A row above that, t = ln(10^6), is a class that the site has, and
    counts by its signal. Below it a signal of ``z sqrt(2 sqrt(k t) + 2 t)`` may hide: such a class counts
    by that, with its text feature in the image's place, so that the prompt keeps a class that lacks evidence.

    *The absent.* With ever less noise nothing can hide any more, and the classes that a site lacks would cease to
    count: the prompt would be bent towards the site's own classes. ``absent_weight`` is the least share of all weight
    that the classes that were not found have together.

    *How far.* Of a found row the noise's share of the energy is subtracted, which leaves the share w, and what is
    missing is filled up with the class's own text feature: ``w (row / signal) + (1 - w) expected``, a Wiener filter
    whose prior mean is what zero-shot believes. With ever more noise first the rows become the text features, then none
    is found, nothing is learned, and the prompt stays the zero-shot text.

    *Directions.* Given k public ones, the rows are projected onto them first. Isotropic noise in d coordinates,
    projected, has the law of noise drawn in those k coordinates: norm ``z sqrt(k)`` instead of ``z sqrt(d)``.

    Args:
        sums: [classes, feature_size], noised.
        noise_multiplier: z.
        expected: [classes, feature_size], unit text features of the initial prompt.
        directions: [k, feature_size], orthonormal rows; None: all.
        absent_weight: from 0 to below 1.
    """
    size = sums.shape[1]
    if directions is not None:
        sums, size = sums @ directions.T @ directions, len(directions)
    energy = np.sum(sums**2, axis=1)
    pure_noise = noise_multiplier**2 * size
    hiding = hidden_energy(noise_multiplier, size)
    found = energy > pure_noise + hiding
    signal = np.sqrt(np.where(found, np.maximum(energy - pure_noise, 0.0), 0.0))
    norms = np.sqrt(np.maximum(energy, 1e-300))
    shrinking = (signal / norms)[:, None]  # sqrt(w)
    features = shrinking * sums / norms[:, None] + (1.0 - shrinking**2) * expected
    if not found.any():
        return Prototypes(features=features, weights=np.zeros(len(sums)))
    most = MOST_HIDDEN * float(signal.sum()) / max(1, int(np.sum(~found)))
    least = absent_weight / (1.0 - absent_weight) * float(signal.sum()) / max(1, int(np.sum(~found)))
    weights = np.where(found, signal, max(min(math.sqrt(hiding), most), least))
    return Prototypes(features=features, weights=weights / weights.sum())
