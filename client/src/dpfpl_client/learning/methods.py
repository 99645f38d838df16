"""What each method learns, and from which blocks of the gradient: the one place that knows methods apart.

A method trains *parameters*, an array that the optimizer moves along released gradients. For most of them that array is
the personal context itself. Whatever a method computes is a function of its parameters, of released (noised) blocks and
of public randomness, so no method can weaken the promise of ``dpfpl_client.learning.step``: it only chooses which
linear functions of the gradient are clipped and noised.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dpfpl_client.learning.factorisation import Factors, factorise, truncated

__all__ = ["DPFPL", "DPLoRA", "Directions", "FedOTP", "FedPGP", "Method", "PromptFL", "build_method"]

Floats = npt.NDArray[np.float64]


class Directions(Protocol):
    """How one step's gradient splits into the personal blocks that are released."""

    def split(self, gradients: Floats) -> list[Floats]:
        """Personal blocks [batch, ...] of per-example gradients [batch, num_context, width]; linear in them."""
        ...

    def merge(self, blocks: Sequence[Floats]) -> Floats:
        """The gradient of the parameters, in their shape, from the released blocks, each without the batch axis."""
        ...


class Method(Protocol):
    """One way to learn prompts in a federation, for contexts [num_context, width] and rank k."""

    @property
    def name(self) -> str:
        """Its name in experiment.toml."""
        ...

    def begin(self, generator: np.random.Generator) -> Floats | None:
        """Parameters before a site's first step, for a personal context of zero; None: they are that context."""
        ...

    def directions(self, parameters: Floats, generator: np.random.Generator) -> Directions:
        """The blocks of the next step, given the parameters so far; ``generator`` is public randomness."""
        ...

    def settled(self, parameters: Floats) -> Floats:
        """The parameters that are kept after a step of the optimizer."""
        ...

    def context(self, parameters: Floats) -> Floats:
        """The personal context p_L [num_context, width]."""
        ...


class _Sized:
    """What methods share whose parameters are the personal context itself."""

    def __init__(self, shape: tuple[int, int], rank: int) -> None:
        self._shape = shape
        self._rank = rank

    def begin(self, generator: np.random.Generator) -> Floats | None:
        """The context itself."""
        return None

    def settled(self, parameters: Floats) -> Floats:
        """All of them."""
        return parameters

    def context(self, parameters: Floats) -> Floats:
        """The parameters."""
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


class PromptFL(_Sized):
    """Global context only; every site uses the same prompt."""

    name = "promptfl"

    def directions(self, parameters: Floats, generator: np.random.Generator) -> Directions:
        """No personal block."""
        return _NoDirections(self._shape)


class FedOTP(_Sized):
    """Global context plus a full-rank personal one; its whole gradient is released."""

    name = "fedotp"

    def directions(self, parameters: Floats, generator: np.random.Generator) -> Directions:
        """One block [num_context, width]."""
        return _WholeGradient()


class FedPGP(_Sized):
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


class DPLoRA(_Sized):
    """DP-FPL without the residual: after every step the personal context is cut down to rank k.

    The cut keeps the k largest singular values, hence the context's size in the kept directions. (In the published code
    both factors are orthonormal, and what they forget is the size of the personal context.)
    """

    name = "dplora"

    def directions(self, parameters: Floats, generator: np.random.Generator) -> Directions:
        """Two blocks: towards the left and the right factor."""
        return _TangentDirections(factorise(parameters, self._rank, generator))

    def settled(self, parameters: Floats) -> Floats:
        """The nearest context of rank k."""
        return truncated(parameters, self._rank)


class DPFPL(_Sized):
    """Global context plus a full personal one, whose gradient is released through low-rank factors: the paper's own."""

    name = "dpfpl"

    def directions(self, parameters: Floats, generator: np.random.Generator) -> Directions:
        """Two blocks: towards the left and the right factor."""
        return _TangentDirections(factorise(parameters, self._rank, generator))


_METHODS: dict[str, Callable[[tuple[int, int], int], Method]] = {
    method.name: method for method in (DPFPL, DPLoRA, FedOTP, FedPGP, PromptFL)
}


def build_method(name: str, shape: tuple[int, int], rank: int) -> Method:
    """The method of that name for contexts of ``shape``; ``dpfpl_common.experiment.METHODS`` lists the names."""
    return _METHODS[name](shape, rank)


def _stacked(left: Floats, right: Floats) -> Floats:
    return np.concatenate([left, right.T])
