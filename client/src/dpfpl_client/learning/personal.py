"""What a site keeps from round to round; without torch, for programs that only read it from the disk."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpfpl_common.experiment import Experiment
from dpfpl_common.optimizer import OptimizerState

__all__ = ["PersonalState"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PersonalState:
    """What a site keeps from round to round.

    Attributes:
        context: the personal context p_L [num_context, width]; a function of noised releases alone, but under the unit
            ``site`` of un-noised gradients, so it must not leave the site.
        optimizer: the optimizer's state for what the method trains.
        class_sums: what ``one_shot`` released, noised, [classes, feature_size]; None before, and under ``per_step``.
        vote: the noised vote that the site told and behind it the packed moment, [1 + k (k + 1) / 2]; None before. It
            votes once.
        parameters: what the method trains, where that is not the personal context itself; None elsewhere, and before
            the first step. As private as the context, which is a function of it.
    """

    context: Floats
    optimizer: OptimizerState
    class_sums: Floats | None = None
    parameters: Floats | None = None
    vote: Floats | None = None

    @classmethod
    def initial(cls, experiment: Experiment) -> "PersonalState":
        """No personalisation yet."""
        shape = experiment.context_shape
        return cls(context=np.zeros(shape), optimizer=OptimizerState.zeros(shape))
