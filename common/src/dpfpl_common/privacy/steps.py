"""Releases of ``per_step``: noised sums of clipped gradients, and under the unit ``site`` one noised update a round.

One step, unit ``example``. Neighbouring: one training example more or less. Blocks clipped jointly
(:func:`dpfpl_common.privacy.clipping.clipped_sums`) with noise of standard deviation ``z C_b`` on every block b are
one Gaussian mechanism of multiplier z, on a Poisson sample of rate q: one accountant entry a step, never one a block.
Clipped separately, each block is a mechanism of its own and ``1 / z_eff^2 = sum_b 1 / z_b^2``, still one entry.

One round, unit ``site``. Neighbouring: one site's whole data set more or less. Whatever the data, the site adds a
vector of L2 norm at most C to the sum over sites; a site without data adds zero. With noise of standard deviation z C
on that sum (the server's under ``central``, shares of it under ``distributed``) a round is one Gaussian mechanism of
multiplier z, on a Poisson sample of the sites where they are sampled. Single examples are neither clipped nor noised,
so what stays at the site, its personal prompt above all, is not private.
"""

import numpy as np
import numpy.typing as npt

from dpfpl_common.privacy.clipping import joint_clip_factors
from dpfpl_common.privacy.noise import NoiseSource

__all__ = ["ROUNDING_MARGIN", "noised", "noised_update"]

Floats = npt.NDArray[np.float64]

ROUNDING_MARGIN = 1e-6
"""How far below a bound an update is held: more than sending it as float32 can lengthen it."""


def noised(total: Floats, noise_stddev: float, noise: NoiseSource) -> Floats:
    """A clipped sum with this party's noise: ``total + N(0, noise_stddev^2)`` on every coordinate, any shape.

    Args:
        total: finite.
        noise_stddev: absolute; 0 where another party adds the noise, and then the sum is given as it is.
        noise: source of the noise.
    """
    return noise.add(total, noise_stddev) if noise_stddev > 0 else total


def noised_update(update: Floats, clipping_norm: float, noise_stddev: float, noise: NoiseSource) -> Floats:
    """The round's update [num_context, width], clipped as a whole to C, with the site's share of the noise.

    An update that is not finite becomes zero; the noise is still added.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.square(update).sum()
    (factor,) = joint_clip_factors([[squared]], [clipping_norm * (1.0 - ROUNDING_MARGIN)])
    return noised(factor * update if factor > 0 else np.zeros_like(update), noise_stddev, noise)
