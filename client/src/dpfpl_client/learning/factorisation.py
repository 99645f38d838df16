"""The personal context as low-rank factors and a residual, afresh at every step.

Source: DP-FPL (Tran et al., ICLR 2025) section 4 and equation 4; the projection is that of Yu et al. (2021),
reparametrised gradient perturbation. Computed in float64: these are tiny matrices, and orthonormality carries the proof
that the projected blocks never exceed the gradient they come from.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Factors", "factorise", "truncated"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Factors:
    """``personal_context = left @ right + residual``, exactly.

    Attributes:
        left: u [num_context, rank], orthonormal columns.
        right: v [rank, width], orthonormal rows.
        residual: r [num_context, width].
    """

    left: Floats
    right: Floats
    residual: Floats

    def project(self, gradients: Floats) -> tuple[Floats, Floats]:
        """Gradients towards the two factors, without their overlap.

        ``t_u = (I - u u^T) g v^T`` and ``t_v = u^T g``, so that ``rebuild(t_u, t_v)`` is the orthogonal projection of g
        onto the tangent space of rank-k matrices at u v: each block's norm is at most that of g. Project before
        clipping, never after.

        Args:
            gradients: [..., num_context, width].

        Returns:
            t_u [..., num_context, rank] and t_v [..., rank, width].
        """
        to_right = self.left.T @ gradients
        to_left = gradients @ self.right.T
        return to_left - self.left @ (self.left.T @ to_left), to_right

    def rebuild(self, to_left: Floats, to_right: Floats) -> Floats:
        """The personal gradient [num_context, width] of equation 4: ``t_u v + u t_v``."""
        return np.asarray(to_left @ self.right + self.left @ to_right)


def factorise(personal_context: npt.ArrayLike, rank: int, generator: np.random.Generator) -> Factors:
    """One power iteration from a fresh random start, both factors orthonormalised, the rest kept as residual.

    Where the personal context is zero or has a lower rank than asked, the missing directions are random ones: noise far
    below the context's own size is mixed in. The choice of directions depends on the (already noised) personal context
    and on public randomness alone.

    Args:
        personal_context: [num_context, width].
        rank: k, at most min(num_context, width).
        generator: public randomness of the start.
    """
    matrix = np.asarray(personal_context, dtype=np.float64)
    rows, width = matrix.shape
    if not 1 <= rank <= min(rows, width):
        raise ValueError(f"rank is {rank}, expected 1 to {min(rows, width)}.")
    start = generator.standard_normal((width, rank))
    left = _orthonormal(_filled(matrix @ start, generator))
    right = _orthonormal(_filled(matrix.T @ left, generator)).T
    return Factors(left=left, right=right, residual=matrix - left @ right)


def truncated(matrix: Floats, rank: int) -> Floats:
    """The nearest matrix of rank ``rank`` at most, in every unitarily invariant norm: the largest singular values stay.

    Args:
        matrix: [rows, columns], finite.
        rank: at least 1; from min(rows, columns) on the matrix itself comes back.
    """
    if rank >= min(matrix.shape):
        return matrix
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray((left[:, :rank] * values[:rank]) @ right[:rank])


def _filled(columns: Floats, generator: np.random.Generator) -> Floats:
    noise = generator.standard_normal(columns.shape)
    size = float(np.linalg.norm(columns))
    return columns + noise * (1e-9 * size if size > 0 else 1.0)


def _orthonormal(columns: Floats) -> Floats:
    q, _ = np.linalg.qr(columns)
    return np.asarray(q)
