"""One noised step at one site: sample, differentiate, project, clip jointly, add noise.

Guarantee. Neighbouring: one training example more or less. For every realisation of the other random choices the step
is one Gaussian mechanism of L2 sensitivity 1 in the metric that scales block b by 1 / C_b, with noise multiplier z
(minimum over the blocks), on a Poisson sample of rate q: one accountant entry per step. With separate clipping the
blocks are Gaussian mechanisms of their own, 1 / z_eff^2 = sum 1 / z_b^2, still one entry. What multiplier each
adversary faces is ``dpfpl_common.trust``.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dpfpl_client.learning.dp_optimizer import BlockDPOptimizer
from dpfpl_client.learning.methods import Directions
from dpfpl_common.experiment import Experiment
from dpfpl_common.noise import NoiseSource
from dpfpl_common.trust import site_noise_stddev

__all__ = ["StepRelease", "noised_step"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StepRelease:
    """What one step releases, already noised; everything computed from it is post-processing.

    Attributes:
        shared: towards the server, [num_context, width]; under ``central`` trust it carries no noise yet.
        personal: gradient of what the method trains, in its shape; [num_context, width] where that is the context.
    """

    shared: Floats
    personal: Floats


def noised_step(
    experiment: Experiment,
    directions: Directions,
    gradients: Floats,
    noise: NoiseSource,
) -> StepRelease:
    """Clip and noise the per-example gradients of one Poisson sample.

    Args:
        experiment: clipping norms, trust and noise multiplier; its public ``sample_rate * nominal_site_size`` is the
            divisor, never the size of the drawn batch.
        directions: the method's split into personal blocks, made before this sample was drawn.
        gradients: [batch, num_context, width], float64; the batch may be empty, noise is released all the same.
        noise: source of the noise.

    Returns:
        Both gradients, divided by the public expected batch size.
    """
    privacy = experiment.privacy
    divisor = privacy.sample_rate * privacy.nominal_site_size
    shared_stddev = site_noise_stddev(experiment)
    factor_stddev = (privacy.noise_multiplier or 0.0) * privacy.factor_norm
    # Under local trust one block is released, once and with its whole noise; the personal gradient is derived from it.
    personal_blocks = [] if privacy.trust == "local" else directions.split(gradients)
    blocks = [gradients, *personal_blocks]
    optimizer = BlockDPOptimizer(
        [torch.nn.Parameter(torch.zeros(block.shape[1:], dtype=torch.float64)) for block in blocks],
        clipping_norms=[privacy.clipping_norm, *[privacy.factor_norm] * len(personal_blocks)],
        noise_stddevs=[shared_stddev, *[factor_stddev] * len(personal_blocks)],
        noise=noise,
        expected_batch_size=divisor,
        clipping=privacy.clipping,
    )
    shared, *released = optimizer.release(blocks)
    if privacy.trust == "local":
        released = [block[0] for block in directions.split(shared[None])]
    return StepRelease(shared=shared, personal=directions.merge(released))
