"""Clipping: the per-example scale that bounds what one example adds to a release, and sums under it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["GRAIN", "clipped_sums", "grid_sum", "joint_clip_factors"]

Floats = npt.NDArray[np.float64]

GRAIN = 2.0**-36
"""Contributions are whole numbers of this part of their bound: as fine as the noise's own grid."""


def joint_clip_factors(squared_norms: npt.ArrayLike, clipping_norms: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Scale factors under which every example's blocks obey one joint bound.

    Guarantee: with ``s = joint_clip_factors(...)[x]``, ``sum_b |s g_xb|^2 / C_b^2 <= 1`` for every example x, so
    adding or removing one example changes the sum of the scaled vectors by at most 1 in the metric ``sum_b |.|_b^2 /
    C_b^2`` (source: ALGORITHM in docs/explanation/mechanism.md, "joint clipping"). An example with a non-finite norm
    gets factor 0: a rule that looks at that example alone, so the bound holds for it too.

    Args:
        squared_norms: [batch, blocks], squared L2 norm of each block of each example's (projected) gradient.
        clipping_norms: [blocks], the bounds C_b, positive and finite.

    Returns:
        [batch] float64 factors in [0, 1]. A factor of 0 means that the example must be left out of the sum altogether
        (0 times infinity would be NaN).

    Raises:
        ValueError: shapes do not match, or a clipping norm is not positive and finite.
    """
    norms = np.asarray(squared_norms, dtype=np.float64)
    bounds = np.asarray(clipping_norms, dtype=np.float64)
    if norms.ndim != 2 or bounds.shape != (norms.shape[1],):
        raise ValueError(f"squared_norms {norms.shape} and clipping_norms {bounds.shape} do not match.")
    if not (np.all(np.isfinite(bounds)) and np.all(bounds > 0)):
        raise ValueError(f"clipping_norms must be positive and finite, got {bounds}.")
    finite = np.all(np.isfinite(norms) & (norms >= 0), axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        joint = np.sqrt(np.sum(np.where(finite[:, None], norms, 0.0) / bounds**2, axis=1))
    finite &= np.isfinite(joint)
    # A hair below 1/joint: rounding must never lift a vector above its bound.
    factors = np.minimum(1.0, (1.0 - 1e-12) / np.maximum(joint, 1e-300))
    return np.where(finite, factors, 0.0)


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
    shaped = [factors[kept, b].reshape(-1, *[1] * (block.ndim - 1)) * block[kept] for b, block in enumerate(blocks)]
    return [grid_sum(rows, norm) for rows, norm in zip(shaped, clipping_norms, strict=True)]


def grid_sum(contributions: Floats, bound: float) -> Floats:
    """Sum over the first axis of vectors of norm at most ``bound``, added up as whole numbers of ``bound * GRAIN``.

    What one example adds is rounded towards zero, so never beyond its bound, before anything is added: it is the same
    whatever the other examples are and in whatever order they come. Sums of floats would not have that property. Exact
    below 2^17 examples of full length; the total is never off by more than a part in 2^53.
    """
    whole = np.trunc(contributions / (bound * GRAIN)).astype(np.int64).sum(axis=0)
    total: Floats = whole.astype(np.float64) * (bound * GRAIN)
    return total
