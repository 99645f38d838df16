"""What each method learns, and from which blocks of the gradient: the one place that knows methods apart."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dpfpl_client.learning.factorisation import Factors, factorise

__all__ = ["DPFPL", "Directions", "Method", "PromptFL", "method_named"]

Floats = npt.NDArray[np.float64]


class Directions(Protocol):
    """How one step's gradient splits into the personal blocks that are released."""

    def split(self, gradients: Floats) -> list[Floats]:
        """Personal blocks [batch, ...] of per-example gradients [batch, num_context, width]; linear in them."""
        ...

    def merge(self, blocks: Sequence[Floats]) -> Floats:
        """The personal gradient [num_context, width] from the released blocks, each without the batch axis."""
        ...


class Method(Protocol):
    """One way to learn prompts in a federation."""

    @property
    def name(self) -> str:
        """Its name in experiment.toml."""
        ...

    def directions(self, personal_context: Floats, rank: int, generator: np.random.Generator) -> Directions:
        """The blocks of the next step, given the personal context [num_context, width] so far."""
        ...


class _FactorDirections:
    def __init__(self, factors: Factors) -> None:
        self._factors = factors

    def split(self, gradients: Floats) -> list[Floats]:
        return list(self._factors.project(gradients))

    def merge(self, blocks: Sequence[Floats]) -> Floats:
        to_left, to_right = blocks
        return self._factors.rebuild(to_left, to_right)


class _NoDirections:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def split(self, gradients: Floats) -> list[Floats]:
        return []

    def merge(self, blocks: Sequence[Floats]) -> Floats:
        return np.zeros(self._shape)


class DPFPL:
    """Global context plus a full personal one, whose gradient is released through low-rank factors: the paper's own."""

    name = "dpfpl"

    def directions(self, personal_context: Floats, rank: int, generator: np.random.Generator) -> Directions:
        """Two blocks: towards the left and the right factor."""
        return _FactorDirections(factorise(personal_context, rank, generator))


class PromptFL:
    """Global context only; every site uses the same prompt."""

    name = "promptfl"

    def directions(self, personal_context: Floats, rank: int, generator: np.random.Generator) -> Directions:
        """No personal block."""
        return _NoDirections(personal_context.shape)


_METHODS: dict[str, Method] = {method.name: method for method in (DPFPL(), PromptFL())}


def method_named(name: str) -> Method:
    """The method of that name; ``dpfpl_common.experiment.METHODS`` lists them."""
    return _METHODS[name]
