"""How released gradients move a context. Its input is already noised, so adaptivity costs no privacy."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpfpl_common.experiment import OptimizerSettings

__all__ = ["OptimizerState", "descend"]

Floats = npt.NDArray[np.float64]

FIRST_DECAY, SECOND_DECAY, STABILITY = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class OptimizerState:
    """Adam's moments, each of the context's shape, and the number of steps made. SGD only counts steps."""

    first: Floats
    second: Floats
    steps: int = 0

    @classmethod
    def zeros(cls, shape: tuple[int, ...]) -> "OptimizerState":
        """The state before the first step."""
        return cls(first=np.zeros(shape), second=np.zeros(shape))


def descend(
    settings: OptimizerSettings, learning_rate: float, context: Floats, gradient: Floats, state: OptimizerState
) -> tuple[Floats, OptimizerState]:
    """One step of the experiment's optimizer; returns the new context and state, both float64 of the context's shape.

    Adam is Kingma and Ba (2015) with bias correction; a gradient that is zero everywhere moves nothing.
    """
    steps = state.steps + 1
    if settings.name == "sgd":
        return context - learning_rate * gradient, OptimizerState(state.first, state.second, steps)
    first = FIRST_DECAY * state.first + (1 - FIRST_DECAY) * gradient
    second = SECOND_DECAY * state.second + (1 - SECOND_DECAY) * gradient**2
    corrected_first = first / (1 - FIRST_DECAY**steps)
    corrected_second = second / (1 - SECOND_DECAY**steps)
    moved = context - learning_rate * corrected_first / (np.sqrt(corrected_second) + STABILITY)
    return moved, OptimizerState(first, second, steps)
