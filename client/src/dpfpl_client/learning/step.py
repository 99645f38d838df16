"""A site's contribution to one round under the unit ``site``: its whole update, clipped and noised once.

Guarantee. Neighbouring: one site's whole data set more or less. Whatever the data, the site adds a vector of L2 norm at
most C to the sum over sites; a site without data adds zero. With noise of standard deviation z C on that sum (the
server's under ``central``, shares of it under ``distributed``) a round is one Gaussian mechanism of multiplier z, on a
Poisson sample of the sites where they are sampled. Single examples are neither clipped nor noised, so what stays at the
site, its personal prompt above all, is not private.
"""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from opacus.optimizers import DPOptimizer

from dpfpl_client.learning.methods import Directions
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.clipping import joint_clip_factors
from dpfpl_common.privacy.noise import NoiseSource, SeededNoise, SystemNoise
from dpfpl_common.privacy.sampling import Sampler, SeededSampler, SystemSampler
from dpfpl_common.privacy_plan import site_noise_stddev

__all__ = [
    "ROUNDING_MARGIN",
    "BlockDPOptimizer",
    "Randomness",
    "RandomnessSource",
    "SeededRandomness",
    "StepRelease",
    "SystemRandomness",
    "batch_gradient",
    "clipped_sums",
    "noised_step",
    "released_update",
]


# The three random sources of a site's step, real or reproducible.


@dataclass(frozen=True)
class Randomness:
    """Sources for one round: ``noise`` and ``sampler`` are secret, ``factors`` may be public."""

    noise: NoiseSource
    sampler: Sampler
    factors: np.random.Generator


class SystemRandomness:
    """Fresh entropy of the operating system at every call; what every site with data of its own uses."""

    is_private = True

    def for_round(self, site: str, round_number: int) -> Randomness:
        """Sources for one round; nothing about them can be repeated."""
        return Randomness(noise=SystemNoise(), sampler=SystemSampler(os.urandom), factors=np.random.default_rng())


class SeededRandomness:
    """The same sources for the same (seed, site, round), in any process: for tests and simulations only."""

    is_private = False

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def for_round(self, site: str, round_number: int) -> Randomness:
        """Sources for one round, a function of the seed, the site's name and the round."""
        streams = [
            np.random.default_rng([self._seed, zlib.crc32(site.encode()), round_number, purpose])
            for purpose in range(3)
        ]
        return Randomness(noise=SeededNoise(streams[0]), sampler=SeededSampler(streams[1]), factors=streams[2])


RandomnessSource = SystemRandomness | SeededRandomness


# Opacus' ``DPOptimizer`` with this project's clipping and noise in its hooks.
#
# Who knows Opacus finds the usual order here: per-example gradients in ``p.grad_sample``, ``clip_and_accumulate``,
# ``add_noise``, ``scale_grad``. Different are the clip (all blocks jointly, each with a bound of its own, non-finite
# examples left out), the noise (from a ``NoiseSource``, never from torch's generators) and the divisor (public, so that
# an empty batch is an ordinary one).


Floats = npt.NDArray[np.float64]


class BlockDPOptimizer(DPOptimizer):  # type: ignore[misc]
    """Releases the blocks of one step: its parameters' ``grad`` hold the noised, scaled sums after ``pre_step``.

    Guarantee: with joint clipping and noise of ``z C_b`` in every block b, one step is one Gaussian mechanism of noise
    multiplier z (add or remove one example); a block whose noise another party adds (standard deviation 0) is left as
    the clipped sum.

    Args:
        blocks: parameters, one a block; their values are not used.
        clipping_norms: C_b of each block.
        noise_stddevs: absolute standard deviation of each block's noise, 0 for none.
        noise: source of the noise.
        expected_batch_size: public divisor.
        clipping: ``joint`` or ``separate``.
    """

    def __init__(
        self,
        blocks: Sequence[torch.nn.Parameter],
        *,
        clipping_norms: Sequence[float],
        noise_stddevs: Sequence[float],
        noise: NoiseSource,
        expected_batch_size: float,
        clipping: str = "joint",
    ) -> None:
        super().__init__(
            torch.optim.SGD(blocks, lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            expected_batch_size=expected_batch_size,
        )
        self._clipping_norms = list(clipping_norms)
        self._noise_stddevs = list(noise_stddevs)
        self._noise = noise
        self._clipping = clipping

    def clip_and_accumulate(self) -> None:
        """Sum the clipped per-example gradients of every block."""
        samples = [sample.numpy() for sample in self.grad_samples]
        for p, total in zip(self.params, clipped_sums(samples, self._clipping_norms, self._clipping), strict=True):
            p.summed_grad = torch.from_numpy(total)

    def add_noise(self) -> None:
        """Noise of its own for every block, from the noise source."""
        for p, stddev in zip(self.params, self._noise_stddevs, strict=True):
            total = p.summed_grad.numpy()
            released = self._noise.add(total, stddev) if stddev > 0 else total
            p.grad = torch.tensor(released)  # a copy: Opacus scales it in place

    def release(self, blocks: Sequence[Floats]) -> list[Floats]:
        """Per-example gradients [batch, ...] of each block in, released gradients [...] out."""
        for p, block in zip(self.params, blocks, strict=True):
            p.grad_sample = torch.from_numpy(np.ascontiguousarray(block, dtype=np.float64))
        self.pre_step()
        released = [p.grad.numpy().copy() for p in self.params]
        self.zero_grad()
        return released


def clipped_sums(blocks: Sequence[Floats], clipping_norms: Sequence[float], clipping: str = "joint") -> list[Floats]:
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


# One noised step at one site: sample, differentiate, project, clip jointly, add noise.
#
# Guarantee. Neighbouring: one training example more or less. For every realisation of the other random choices the step
# is one Gaussian mechanism of L2 sensitivity 1 in the metric that scales block b by 1 / C_b, with noise multiplier z
# (minimum over the blocks), on a Poisson sample of rate q: one accountant entry per step. With separate clipping the
# blocks are Gaussian mechanisms of their own, 1 / z_eff^2 = sum 1 / z_b^2, still one entry. What multiplier each
# adversary faces is ``dpfpl_common.trust``.


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
