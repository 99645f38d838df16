"""What a site does in one step, and with which randomness: sample, differentiate, project, clip, add noise.

This is ``per_step``. The mechanisms themselves are in :mod:`dpfpl_common.privacy`; here an experiment's numbers are
handed to them. The default, ``one_shot``, adds its noise in :mod:`dpfpl_common.privacy.one_shot`.
"""

import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from opacus.optimizers import DPOptimizer

from dpfpl_client.learning.methods import Directions
from dpfpl_client.models.backbone import LabelledFeatures, Scorer
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.clipping import clipped_sums
from dpfpl_common.privacy.noise import NoiseSource, SeededNoise, SystemNoise
from dpfpl_common.privacy.sampling import Sampler, SeededSampler, SystemSampler
from dpfpl_common.privacy.steps import ROUNDING_MARGIN, noised
from dpfpl_common.privacy_plan import largest_signal, site_noise_stddev

__all__ = [
    "TEMPERATURE",
    "BlockDPOptimizer",
    "Pull",
    "Randomness",
    "RandomnessSource",
    "SeededRandomness",
    "StepRelease",
    "SystemRandomness",
    "batch_gradient",
    "contrast_cotangents",
    "noised_step",
    "public_pull",
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
# If you know Opacus, this is the usual order: per-example gradients in ``p.grad_sample``, ``clip_and_accumulate``,
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
        largest_sum: L2 norm to which the first block's sum is held before noise. Projecting two sums into a ball never
            moves them further apart. It keeps an honest site of any size below the server's cap.
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
        largest_sum: float = math.inf,
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
        self._largest_sum = largest_sum

    def clip_and_accumulate(self) -> None:
        """Sum the clipped per-example gradients of every block."""
        samples = [sample.numpy() for sample in self.grad_samples]
        totals = clipped_sums(samples, self._clipping_norms, self._clipping)
        totals[0] = totals[0] * min(1.0, self._largest_sum / max(float(np.linalg.norm(totals[0])), 1e-300))
        for p, total in zip(self.params, totals, strict=True):
            p.summed_grad = torch.from_numpy(total)

    def add_noise(self) -> None:
        """Noise of its own for every block, from the noise source."""
        for p, stddev in zip(self.params, self._noise_stddevs, strict=True):
            total = p.summed_grad.numpy()
            released = noised(total, stddev, self._noise)
            p.grad = torch.tensor(released)  # a copy: Opacus scales it in place

    def release(self, blocks: Sequence[Floats]) -> list[Floats]:
        """Per-example gradients [batch, ...] of each block in, released gradients [...] out."""
        for p, block in zip(self.params, blocks, strict=True):
            p.grad_sample = torch.from_numpy(np.ascontiguousarray(block, dtype=np.float64))
        self.pre_step()
        released = [p.grad.numpy().copy() for p in self.params]
        self.zero_grad()
        return released


# One noised step at one site: sample, differentiate, project, clip jointly, add noise.
#
# Guarantee. Neighbouring: one training example more or less. For every realisation of the other random choices the step
# is one Gaussian mechanism of L2 sensitivity 1 in the metric that scales block b by 1 / C_b, with noise multiplier z
# (minimum over the blocks), on a Poisson sample of rate q: one accountant entry per step. With separate clipping the
# blocks are Gaussian mechanisms of their own, 1 / z_eff^2 = sum 1 / z_b^2, still one entry. What multiplier each
# adversary faces is ``dpfpl_common.privacy_plan``.


@dataclass(frozen=True)
class StepRelease:
    """What one step releases, already noised; everything computed from it is post-processing.

    Attributes:
        shared: towards the server, [num_context, width]; under ``central`` trust it carries no noise yet.
        personal: gradient of what the method trains, in its shape; [num_context, width] where that is the context.
    """

    shared: Floats
    personal: Floats


def noised_step(experiment: Experiment, directions: Directions, gradients: Floats, noise: NoiseSource) -> StepRelease:
    """Clip and noise the per-example gradients of one Poisson sample.

    Args:
        experiment: clipping norms, trust and noise multiplier; its public ``sample_rate * nominal_site_size`` is the
            divisor, never the size of the drawn batch.
        directions: the method's split into personal blocks, made before this sample was drawn.
        gradients: [batch, num_context, width], float64; the batch may be empty; noise is released even then.
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
        largest_sum=(1.0 - ROUNDING_MARGIN) * largest_signal(experiment) * divisor,
    )
    shared, *released = optimizer.release(blocks)
    if privacy.trust == "local":
        released = [block[0] for block in directions.split(shared[None])]
    return StepRelease(shared=shared, personal=directions.merge(released))


def batch_gradient(experiment: Experiment, gradients: Floats) -> Floats:
    """Sum of the examples' gradients [batch, num_context, width] over the public expected batch size; not private.

    An example that is not finite is left out. A sum that still overflows counts as zero, so the site's state stays
    finite.
    """
    divisor = experiment.privacy.sample_rate * experiment.privacy.nominal_site_size
    finite = np.all(np.isfinite(gradients), axis=(1, 2))
    with np.errstate(over="ignore", invalid="ignore"):
        total = gradients[finite].sum(axis=0) / divisor
        return total if np.isfinite(np.square(total).sum()) else np.zeros_like(total)


# Terms of the loss that no image enters: functions of the prompts so far, the model and the class names.
#
# The prompts so far are functions of released values, the rest is public, so these gradients are post-processing: they
# need no clipping for privacy and no noise. They are held to the length that one example may have, so that neither they
# nor what is sent can grow beyond it.


TEMPERATURE = 0.5
"""Of the contrastive term, as published."""


@dataclass(frozen=True)
class Pull:
    """Gradients [num_context, width] to be added to the released ones: of the shared and of the personal context."""

    shared: Floats
    personal: Floats


def public_pull(
    experiment: Experiment, scorer: Scorer, initial: torch.Tensor, shared: torch.Tensor, whole: torch.Tensor
) -> Pull | None:
    """What the experiment's ``retention`` and ``contrast`` add to one step; None if it has neither.

    *Retention*: the loss on the class texts' features under the shared prompt alone, as if they were images: the
    personal part must go on telling all classes apart, also those that its site has no images of.

    *Contrast* (Cui et al. 2024, FedPGP): the shared prompt's class features are drawn towards those of the plain text
    and away from the personalised ones.

    Args:
        experiment: its weights.
        scorer: of the experiment's classes.
        initial: context of the plain text, [num_context, width].
        shared: context without the personal part.
        whole: context with it.
    """
    prompt = experiment.prompt
    if not (prompt.retention or prompt.contrast):
        return None
    longest = experiment.privacy.clipping_norm
    texts = scorer.class_features(shared)
    towards_shared = towards_personal = np.zeros(experiment.context_shape)
    if prompt.retention:
        pseudo = LabelledFeatures(texts, torch.arange(len(texts)))
        gradient = scorer.total_gradient(whole, pseudo, torch.full((len(texts),), 1.0 / len(texts)))
        towards_personal = towards_personal + prompt.retention * _held(gradient, longest)
    if prompt.contrast:
        on_shared, on_whole = contrast_cotangents(texts, scorer.class_features(whole), scorer.class_features(initial))
        # The whole context is a sum, so what pulls it pulls both of its parts.
        of_whole = scorer.feature_gradient(whole, on_whole)
        towards_personal = towards_personal + prompt.contrast * _held(of_whole, longest)
        both = of_whole + scorer.feature_gradient(shared, on_shared)
        towards_shared = towards_shared + prompt.contrast * _held(both, longest)
    return Pull(towards_shared, towards_personal)


def contrast_cotangents(
    shared: torch.Tensor, personal: torch.Tensor, plain: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the contrastive term by the shared and by the personalised class features.

    The term is the mean over classes of ``-log(e^(G.C / t) / (e^(G.C / t) + e^(G.P / t)))`` for unit rows G of the
    shared, C of the plain and P of the personalised prompt.

    Args:
        shared: unit class features [classes, feature_size].
        personal: the same shape.
        plain: the same shape.
    """
    gap = ((shared * personal).sum(dim=1) - (shared * plain).sum(dim=1)) / TEMPERATURE
    push = torch.sigmoid(gap)[:, None] / (TEMPERATURE * len(shared))
    return push * (personal - plain), push * shared


def _held(gradient: torch.Tensor, longest: float) -> Floats:
    found: Floats = gradient.double().numpy()
    return found * min(1.0, longest / max(float(np.linalg.norm(found)), 1e-300))
