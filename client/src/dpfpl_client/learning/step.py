"""One noised step at one site: sample, differentiate, project, clip jointly, add noise.

Guarantee. Neighbouring: one training example more or less. For every realisation of the other random choices the step
is one Gaussian mechanism of L2 sensitivity 1 in the metric that scales block b by 1 / C_b, with noise multiplier z
(minimum over the blocks), on a Poisson sample of rate q: one accountant entry per step. With separate clipping the
blocks are Gaussian mechanisms of their own, 1 / z_eff^2 = sum 1 / z_b^2, still one entry. What multiplier each adversary
faces is ``dpfpl_common.trust``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dpfpl_client.learning.methods import Directions
from dpfpl_common.clipping import joint_clip_factors
from dpfpl_common.experiment import Experiment
from dpfpl_common.noise import NoiseSource
from dpfpl_common.trust import site_noise_stddev

__all__ = ["Sampler", "SeededSampler", "StepRelease", "SystemSampler", "clipped_sums", "noised_step"]

Floats = npt.NDArray[np.float64]


class Sampler(Protocol):
    """Draws a Poisson sample of the training examples."""

    def draw(self, count: int, sample_rate: float) -> npt.NDArray[np.int64]:
        """Indices of the sampled examples among ``count``; each joins independently with chance ``sample_rate``."""
        ...


class SeededSampler:
    """Reproducible Poisson sampling, for tests and simulations."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def draw(self, count: int, sample_rate: float) -> npt.NDArray[np.int64]:
        """See ``Sampler``."""
        return np.flatnonzero(self._generator.random(count) < sample_rate)


class SystemSampler:
    """Poisson sampling from the operating system's entropy."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy

    def draw(self, count: int, sample_rate: float) -> npt.NDArray[np.int64]:
        """See ``Sampler``; the rate is met to 2**-53, rounded down so that it is never exceeded."""
        words = np.frombuffer(self._entropy(8 * count), dtype=np.uint64) >> np.uint64(11)
        return np.flatnonzero(words < np.uint64(int(sample_rate * 2**53)))


@dataclass(frozen=True)
class StepRelease:
    """What one step releases, already noised; everything computed from it is post-processing.

    Attributes:
        shared: towards the server, [num_context, width]; under ``central`` trust it carries no noise yet.
        personal: gradient of the personal context, [num_context, width].
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
    if privacy.trust == "local":
        # One block, released once with its whole noise; the personal gradient is derived from the noised message.
        (total,) = clipped_sums([gradients], [privacy.clipping_norm])
        shared = _noised(noise, total, site_noise_stddev(experiment))
        personal = directions.merge([block[0] for block in directions.split(shared[None])])
        return StepRelease(shared=shared / divisor, personal=personal / divisor)
    personal_blocks = directions.split(gradients)
    clipping_norms = [privacy.clipping_norm, *[privacy.factor_norm] * len(personal_blocks)]
    totals = clipped_sums([gradients, *personal_blocks], clipping_norms, privacy.clipping)
    shared = _noised(noise, totals[0], site_noise_stddev(experiment))
    factor_stddev = (privacy.noise_multiplier or 0.0) * privacy.factor_norm
    blocks = [_noised(noise, total, factor_stddev) for total in totals[1:]]
    return StepRelease(shared=shared / divisor, personal=directions.merge(blocks) / divisor)


def clipped_sums(blocks: list[Floats], clipping_norms: list[float], clipping: str = "joint") -> list[Floats]:
    """Sums over the batch of clipped blocks [batch, ...]; a non-finite example is left out of all of them.

    ``joint``: one example moves all the sums together by at most 1 in the metric ``sum_b |.|_b^2 / C_b^2``.
    ``separate``: it moves each sum b by at most C_b on its own.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.stack([np.square(block).sum(axis=tuple(range(1, block.ndim))) for block in blocks], axis=1)
    if clipping == "joint":
        factors = np.repeat(joint_clip_factors(squared, clipping_norms)[:, None], len(blocks), axis=1)
    else:
        each = [joint_clip_factors(squared[:, [b]], [norm]) for b, norm in enumerate(clipping_norms)]
        factors = np.stack(each, axis=1)
        factors[np.any(factors == 0, axis=1)] = 0.0
    kept = factors[:, 0] > 0
    return [np.tensordot(factors[kept, b], block[kept], axes=1) for b, block in enumerate(blocks)]


def _noised(noise: NoiseSource, total: Floats, noise_stddev: float) -> Floats:
    return noise.add(total, noise_stddev) if noise_stddev > 0 else total
