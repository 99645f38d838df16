"""One canary, many releases: can its presence be told from a message?

The attacker knows everything but whether the canary took part. As an operator who does not follow the protocol it may
also choose the prompt that it sends, so that the canary's gradient stands out from the others' (after PromptMIA).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dpfpl_bench.auditing.bounds import two_world_bound
from dpfpl_bench.auditing.victim import Victim
from dpfpl_client.learning.methods import build_method
from dpfpl_client.learning.step import noised_step
from dpfpl_common.noise import NoiseSource

__all__ = ["Canary", "attack_with_canary", "crafted_context"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Canary:
    """Attributes: ``bound``, the lower bound on one step's epsilon with 95 % confidence; ``trials`` in each world."""

    bound: float
    trials: int


def attack_with_canary(
    victim: Victim,
    canary: int,
    others: npt.NDArray[np.int64],
    context: torch.Tensor,
    trials: int,
    noise: NoiseSource,
    delta: float,
) -> Canary:
    """Steps with and without the canary, all at one context; the score is the message along the canary's gradient.

    Args:
        victim: its experiment says how a step is clipped and noised.
        canary: example of the pool.
        others: examples that are in every step.
        context: [num_context, width]; the site's, or one that the attacker made it use.
        trials: steps in each of the two worlds.
        noise: real, or seeded for a test.
        delta: the claim's.
    """
    experiment = victim.experiment
    gradients = victim.gradients(context, np.append(others, canary))
    own = gradients[-1]
    generator = np.random.default_rng(0)  # of the factors' start, which is public
    method = build_method(experiment.prompt.method, experiment.context_shape, experiment.prompt.rank)
    nothing = np.zeros(experiment.context_shape)
    begun = method.begin(generator)
    directions = method.directions(nothing if begun is None else begun, generator)

    def scores(batch: Floats) -> Floats:
        return np.array([np.vdot(noised_step(experiment, directions, batch, noise).shared, own) for _ in range(trials)])

    return Canary(two_world_bound(scores(gradients), scores(gradients[:-1]), delta), trials)


def crafted_context(
    victim: Victim,
    canary: int,
    others: npt.NDArray[np.int64],
    generator: np.random.Generator,
    tries: int = 64,
) -> torch.Tensor:
    """Of many random contexts, the one at which the canary's gradient is longest beside the others'.

    Args:
        victim: model and classes.
        canary: example of the pool.
        others: examples of the pool that hide it.
        generator: draws the contexts.
        tries: how many.
    """
    shape = victim.experiment.context_shape
    size = float(victim.backbone.token_embedding.weight.std())
    found = []
    for _ in range(tries):
        context = torch.from_numpy((generator.normal(size=shape) * size * generator.uniform(1, 10)).astype(np.float32))
        lengths = np.linalg.norm(
            victim.gradients(context, np.append(others, canary)).reshape(len(others) + 1, -1), axis=1
        )
        found.append((lengths[-1] / max(float(np.median(lengths[:-1])), 1e-9), context))
    return max(found, key=lambda pair: pair[0])[1]
