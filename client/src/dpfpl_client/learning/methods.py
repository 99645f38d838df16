"""What each method learns, and from which blocks of the gradient: the one place that knows methods apart.

A method trains *parameters*, an array that the optimizer moves along released gradients. For most of them that array is
the personal context itself. Whatever a method computes is a function of its parameters, of released (noised) blocks and
of public randomness, so no method can weaken the promise of ``dpfpl_client.learning.step``: it only chooses which
linear functions of the gradient are clipped and noised.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "DPFPL",
    "DPLoRA",
    "Directions",
    "Factors",
    "FedOTP",
    "FedPGP",
    "Method",
    "PromptFL",
    "build_method",
    "factorise",
    "truncated",
]


# The personal context as low-rank factors and a residual, computed again at every step.
#
# Source: DP-FPL (Tran et al., ICLR 2025) section 4 and equation 4; the projection is that of Yu et al. (2021),
# reparametrised gradient perturbation. Computed in float64: these are tiny matrices, and orthonormality carries the
# proof that the projected blocks never exceed the gradient they come from.


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


class Directions(Protocol):
    """How one step's gradient splits into the personal blocks that are released."""

    def split(self, gradients: Floats) -> list[Floats]:
        """Personal blocks [batch, ...] of per-example gradients [batch, num_context, width]; linear in them."""
        ...

    def merge(self, blocks: Sequence[Floats]) -> Floats:
        """The gradient of the parameters, in their shape, from the released blocks, each without the batch axis."""
        ...


class Method:
    """One way to learn prompts in a federation, for contexts [num_context, width] and rank k.

    Unless a method says otherwise its parameters are the personal context itself.

    Attributes:
        name: in experiment.toml.
    """

    name: str

    def __init__(self, shape: tuple[int, int], rank: int) -> None:
        self._shape = shape
        self._rank = rank

    def begin(self, generator: np.random.Generator) -> Floats | None:
        """Parameters before a site's first step, for a personal context of zero; None: they are that context."""
        return None

    def directions(self, parameters: Floats, generator: np.random.Generator) -> Directions:
        """The blocks of the next step, given the parameters so far; ``generator`` is public randomness."""
        raise NotImplementedError

    def settled(self, parameters: Floats) -> Floats:
        """The parameters that are kept after a step of the optimizer."""
        return parameters

    def context(self, parameters: Floats) -> Floats:
        """The personal context p_L [num_context, width]."""
        return parameters


class _TangentDirections:
    """Two blocks, towards the left and the right factor; merged as in equation 4 of the paper."""

    def __init__(self, factors: Factors) -> None:
        self._factors = factors

    def split(self, gradients: Floats) -> list[Floats]:
        return list(self._factors.project(gradients))

    def merge(self, blocks: Sequence[Floats]) -> Floats:
        to_left, to_right = blocks
        return self._factors.rebuild(to_left, to_right)


class _NoDirections:
    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape

    def split(self, gradients: Floats) -> list[Floats]:
        return []

    def merge(self, blocks: Sequence[Floats]) -> Floats:
        return np.zeros(self._shape)


class _WholeGradient:
    def split(self, gradients: Floats) -> list[Floats]:
        return [gradients]

    def merge(self, blocks: Sequence[Floats]) -> Floats:
        (whole,) = blocks
        return whole


class _FactorGradients:
    """Gradients of two trained factors: ``g v^T`` [num_context, k] and ``u^T g`` [k, width], merged as parameters."""

    def __init__(self, left: Floats, right: Floats) -> None:
        self._left, self._right = left, right

    def split(self, gradients: Floats) -> list[Floats]:
        return [gradients @ self._right.T, self._left.T @ gradients]

    def merge(self, blocks: Sequence[Floats]) -> Floats:
        to_left, to_right = blocks
        return _stacked(to_left, to_right)


class PromptFL(Method):
    """Global context only; every site uses the same prompt."""

    name = "promptfl"

    def directions(self, parameters: Floats, generator: np.random.Generator) -> Directions:
        """No personal block."""
        return _NoDirections(self._shape)


class FedOTP(Method):
    """Global context plus a full-rank personal one; its whole gradient is released."""

    name = "fedotp"

    def directions(self, parameters: Floats, generator: np.random.Generator) -> Directions:
        """One block [num_context, width]."""
        return _WholeGradient()


class FedPGP(Method):
    """Global context plus u v, where u [num_context, k] and v [k, width] are what is trained; there is no residual.

    The parameters are u with the transpose of v below it, [num_context + width, k]. They are made once: u orthonormal
    and random, v zero, so that the personal context starts at zero as with every other method.
    """

    name = "fedpgp"

    def begin(self, generator: np.random.Generator) -> Floats | None:
        """Random orthonormal u, zero v."""
        left = factorise(np.zeros(self._shape), self._rank, generator).left
        return _stacked(left, np.zeros((self._rank, self._shape[1])))

    def directions(self, parameters: Floats, generator: np.random.Generator) -> Directions:
        """Two blocks: the gradients of u and of v. They may be longer than the context's; clipping bounds them."""
        return _FactorGradients(*self._factors(parameters))

    def context(self, parameters: Floats) -> Floats:
        """``u v``, of rank k at most."""
        left, right = self._factors(parameters)
        return np.asarray(left @ right)

    def _factors(self, parameters: Floats) -> tuple[Floats, Floats]:
        rows = self._shape[0]
        return parameters[:rows], parameters[rows:].T


class DPFPL(Method):
    """Global context plus a full personal one, whose gradient is released through low-rank factors: the paper's own."""

    name = "dpfpl"

    def directions(self, parameters: Floats, generator: np.random.Generator) -> Directions:
        """Two blocks: towards the left and the right factor."""
        return _TangentDirections(factorise(parameters, self._rank, generator))


class DPLoRA(DPFPL):
    """DP-FPL without the residual: after every step the personal context is cut down to rank k.

    The cut keeps the k largest singular values, hence the context's size in the kept directions. (In the published code
    both factors are orthonormal, and what they forget is the size of the personal context.)
    """

    name = "dplora"

    def settled(self, parameters: Floats) -> Floats:
        """The nearest context of rank k."""
        return truncated(parameters, self._rank)


_METHODS: dict[str, type[Method]] = {method.name: method for method in (DPFPL, DPLoRA, FedOTP, FedPGP, PromptFL)}


def build_method(name: str, shape: tuple[int, int], rank: int) -> Method:
    """The method of that name for contexts of ``shape``; ``dpfpl_common.experiment.METHODS`` lists the names."""
    return _METHODS[name](shape, rank)


def _stacked(left: Floats, right: Floats) -> Floats:
    return np.concatenate([left, right.T])
