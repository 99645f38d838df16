"""Many canaries in one training: each is put in by a fair coin, and the attacker guesses the coins.

The attacker sees every message and knows every context, as the operator does, or has only the released prompt, as its
recipient does. Source: Steinke, Nasr, Jagielski, Privacy Auditing with One (1) Training Run, 2023.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dpfpl_bench.audit.bounds import one_run_bound, two_world_bound
from dpfpl_bench.audit.victim import Released, Victim, confidences
from dpfpl_client.learning.methods import build_method
from dpfpl_client.learning.step import RandomnessSource, noised_step
from dpfpl_common.privacy.noise import NoiseSource

__all__ = ["Canary", "OneRun", "attack_with_canary", "audit_in_one_run", "crafted_context"]


# One canary, many releases: can its presence be told from a message?
#
# The attacker knows everything but whether the canary took part. As an operator who does not follow the protocol it may
# also choose the prompt that it sends, so that the canary's gradient stands out from the others' (after PromptMIA).


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


@dataclass(frozen=True)
class OneRun:
    """What the attack found; lower bounds on epsilon with 95 % confidence each.

    Attributes:
        canaries: how many coins were thrown.
        from_messages: the bound of who sees every message.
        from_prompt: the bound of who receives the prompt.
    """

    canaries: int
    from_messages: float
    from_prompt: float


def audit_in_one_run(
    victim: Victim,
    coins: npt.NDArray[np.bool_],
    randomness: RandomnessSource,
    delta: float,
) -> OneRun:
    """Train once on what the coins chose, then guess them.

    Args:
        victim: what is attacked.
        coins: [pool], the truth: every example of the pool is a canary, and nothing else is in.
        randomness: of the training.
        delta: the claim's.
    """
    released = victim.train(coins, randomness)
    presence = _presence(victim, released)
    return OneRun(
        canaries=len(coins),
        from_messages=one_run_bound(coins, presence, delta),
        from_prompt=one_run_bound(coins, confidences(victim, released.prompt, np.arange(len(coins))), delta),
    )


def _presence(victim: Victim, released: Released) -> Floats:
    """How much of each canary the messages hold, summed over the steps, [pool].

    The attacker knows all but the coins. It explains a message by the canaries' clipped gradients: ridge regression,
    the best linear estimate where the noise is as large as it is.
    """
    privacy = victim.experiment.privacy
    divisor = privacy.sample_rate * privacy.nominal_site_size
    mean = 0.5 * privacy.sample_rate  # in by a fair coin, and then sampled
    variance = ((privacy.noise_multiplier or 0.0) * privacy.clipping_norm) ** 2 + 1e-12
    everyone = np.arange(len(victim.pool))
    total = np.zeros(len(everyone))
    for message, context in zip(released.messages, released.contexts, strict=True):
        own = _clipped(victim.gradients(context, everyone), privacy.clipping_norm)
        unexplained = own @ (message.ravel() * divisor - mean * own.sum(axis=0))
        gram = own @ own.T * (mean * (1 - mean))
        total += np.linalg.solve(gram + variance * np.eye(len(own)), unexplained)
    return total


def _clipped(gradients: Floats, bound: float) -> Floats:
    flat = gradients.reshape(len(gradients), -1)
    clipped: Floats = flat * np.minimum(1.0, bound / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12))
    return clipped
