"""Canaries: examples whose presence in a site's training somebody looks for, in messages, prompts or class sums."""

import numpy as np
import numpy.typing as npt
import torch

from dpfpl_bench.audit.bounds import one_run_bound, two_world_bound
from dpfpl_bench.audit.victim import Released, Victim, confidences
from dpfpl_client.learning.methods import build_method
from dpfpl_client.learning.step import RandomnessSource, noised_step
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_common.privacy.noise import NoiseSource
from dpfpl_common.privacy.one_shot import noised_class_sums

__all__ = [
    "attack_with_canary",
    "audit_in_one_run",
    "crafted_context",
    "many_canaries_in_the_sums",
    "one_canary_in_the_sums",
]

Floats = npt.NDArray[np.float64]


# One canary, many releases: can its presence be told from a message?
#
# The attacker knows everything but whether the canary took part. As an operator who does not follow the protocol it may
# also choose the prompt that it sends, so that the canary's gradient stands out from the others' (after PromptMIA).


def attack_with_canary(
    victim: Victim,
    canary: int,
    others: npt.NDArray[np.int64],
    context: torch.Tensor,
    trials: int,
    noise: NoiseSource,
    delta: float,
) -> float:
    """A lower bound on one step's epsilon, with 95 % confidence, from steps with and without the canary at one context.

    The score is the message along the canary's gradient.

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

    return two_world_bound(scores(gradients), scores(gradients[:-1]), delta)


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


# Many canaries in one training: each is put in by a fair coin, and the attacker guesses the coins.
#
# The attacker sees every message and knows every context, as the operator does, or has only the released prompt, as its
# recipient does. Source: Steinke, Nasr, Jagielski, Privacy Auditing with One (1) Training Run, 2023.


def audit_in_one_run(
    victim: Victim,
    coins: npt.NDArray[np.bool_],
    randomness: RandomnessSource,
    delta: float,
) -> tuple[float, float]:
    """Train once on what the coins chose, then guess them: lower bounds on epsilon with 95 % confidence each.

    The first is of who sees every message, the second of who receives the prompt.

    Args:
        victim: what is attacked.
        coins: [pool], the truth: every example of the pool is a canary, and nothing else is in.
        randomness: of the training.
        delta: the claim's.
    """
    released = victim.train(coins, randomness)
    presence = _presence(victim, released)
    sureness = confidences(victim, released.prompt, np.arange(len(coins)))
    return one_run_bound(coins, presence, delta), one_run_bound(coins, sureness, delta)


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


# Canaries in the one release of ``one_shot``, the noised class sums: their reader looks for one image's feature.
#
# A canary is one image with its label: its feature has norm 1, the most that one example may add, and the attacker
# looks along it. This is the strongest test of the difference of two Gaussians, so the bound should come close to the
# claim.


def one_canary_in_the_sums(
    pool: LabelledFeatures,
    classes: int,
    canary: int,
    noise: NoiseSource,
    noise_multiplier: float,
    trials: int,
    delta: float,
) -> float:
    """A lower bound on the release's epsilon from many releases with the canary and as many without it.

    Args:
        pool: the site's images; all but the canary are in every release.
        classes: length of the class list.
        canary: example of the pool.
        noise: real, or seeded.
        noise_multiplier: z of the release.
        trials: releases in each world.
        delta: the claim's.
    """
    own, label = pool.features[canary].double().numpy(), int(pool.labels[canary])
    others = np.delete(np.arange(len(pool)), canary)

    def scores(chosen: npt.NDArray[np.int64]) -> Floats:
        part = pool.take(chosen)
        return np.array([_release(part, classes, noise, noise_multiplier)[label] @ own for _ in range(trials)])

    return two_world_bound(scores(np.arange(len(pool))), scores(others), delta)


def many_canaries_in_the_sums(
    pool: LabelledFeatures,
    coins: npt.NDArray[np.bool_],
    classes: int,
    noise: NoiseSource,
    noise_multiplier: float,
    delta: float,
) -> float:
    """A lower bound from a single release that holds the examples which the coins chose.

    The attacker knows all but the coins and solves for them: class by class, ridge regression of the noised sum on the
    canaries' features.
    """
    released = _release(pool.take(np.flatnonzero(coins)), classes, noise, noise_multiplier)
    features, labels = pool.features.double().numpy(), pool.labels.numpy()
    scores = np.zeros(len(pool))
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        rows = features[own]
        unexplained = rows @ (released[label] - 0.5 * rows.sum(axis=0))
        gram = 0.25 * rows @ rows.T + (noise_multiplier**2 + 1e-9) * np.eye(len(own))
        scores[own] = np.linalg.solve(gram, unexplained)
    return one_run_bound(coins, scores, delta)


def _release(part: LabelledFeatures, classes: int, noise: NoiseSource, noise_multiplier: float) -> Floats:
    return noised_class_sums(part.features.numpy(), part.labels.numpy(), classes, noise, noise_multiplier)
