"""A site's contribution to one round under the unit ``site``: its whole update, clipped and noised once.

Guarantee. Neighbouring: one site's whole data set more or less. Whatever the data, the site adds a vector of L2 norm at
most C to the sum over sites; a site without data adds zero. With noise of standard deviation z C on that sum (the
server's under ``central``, shares of it under ``distributed``) a round is one Gaussian mechanism of multiplier z, on a
Poisson sample of the sites where they are sampled. Single examples are neither clipped nor noised, so what stays at the
site, its personal prompt above all, is not private.
"""

import numpy as np
import numpy.typing as npt

from dpfpl_common.clipping import joint_clip_factors
from dpfpl_common.experiment import Experiment
from dpfpl_common.noise import NoiseSource
from dpfpl_common.trust import site_noise_stddev

__all__ = ["ROUNDING_MARGIN", "batch_gradient", "released_update"]

Floats = npt.NDArray[np.float64]

ROUNDING_MARGIN = 1e-6
"""How far below a bound an update is held: more than sending it as float32 can lengthen it."""


def batch_gradient(experiment: Experiment, gradients: Floats) -> Floats:
    """Sum of the examples' gradients [batch, num_context, width] over the public expected batch size; not private.

    An example that is not finite is left out. A sum that overflows all the same counts as zero, so the site's state
    stays finite.
    """
    divisor = experiment.privacy.sample_rate * experiment.privacy.nominal_site_size
    finite = np.all(np.isfinite(gradients), axis=(1, 2))
    with np.errstate(over="ignore", invalid="ignore"):
        total = gradients[finite].sum(axis=0) / divisor
        return total if np.isfinite(np.square(total).sum()) else np.zeros_like(total)


def released_update(experiment: Experiment, update: Floats, noise: NoiseSource) -> Floats:
    """The round's update [num_context, width], clipped as a whole to C, with the site's share of the noise.

    An update that is not finite becomes zero; the noise is added all the same.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.square(update).sum()
    (factor,) = joint_clip_factors([[squared]], [experiment.privacy.clipping_norm * (1.0 - ROUNDING_MARGIN)])
    clipped = factor * update if factor > 0 else np.zeros_like(update)
    stddev = site_noise_stddev(experiment)
    return noise.add(clipped, stddev) if stddev > 0 else clipped
