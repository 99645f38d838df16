"""Opacus' ``DPOptimizer`` with this project's clipping and noise in its hooks.

Who knows Opacus finds the usual order here: per-example gradients in ``p.grad_sample``, ``clip_and_accumulate``,
``add_noise``, ``scale_grad``. Different are the clip (all blocks jointly, each with a bound of its own, non-finite
examples left out), the noise (from a ``NoiseSource``, never from torch's generators) and the divisor (public, so that
an empty batch is an ordinary one).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from opacus.optimizers import DPOptimizer

from dpfpl_common.clipping import joint_clip_factors
from dpfpl_common.noise import NoiseSource

__all__ = ["BlockDPOptimizer", "clipped_sums"]

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
