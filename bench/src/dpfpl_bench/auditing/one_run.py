"""Many canaries in one training: each is put in by a fair coin, and the attacker guesses the coins.

The attacker sees every message and knows every context, as the operator does, or has only the released prompt, as its
recipient does. Source: Steinke, Nasr, Jagielski, Privacy Auditing with One (1) Training Run, 2023.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpfpl_bench.auditing.bounds import one_run_bound
from dpfpl_bench.auditing.victim import Released, Victim, confidences
from dpfpl_client.learning.randomness import RandomnessSource

__all__ = ["OneRun", "audit_in_one_run"]

Floats = npt.NDArray[np.float64]


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
