"""Was this image in the training set? Asked of a released prompt, with shadow prompts to compare with.

The attacker trains many prompts of its own on random halves of the same pool, and learns how a prompt treats an image
that was in and one that was out. Then it looks at the released prompt: at the confidence in the image's label (after
LiRA, Carlini et al. 2022), or at the prompt's vectors alone, without a single query (after PIPRA).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpfpl_bench.audit.victim import Victim, confidences
from dpfpl_client.learning.step import RandomnessSource

__all__ = ["Guesses", "Membership", "attack_membership", "rates"]

Floats = npt.NDArray[np.float64]
LOW_FALSE_POSITIVES = 0.05


@dataclass(frozen=True)
class Guesses:
    """Attributes: ``auc`` (0.5 is guessing); ``hits`` = true positive rate at a false positive rate of 5 %."""

    auc: float
    hits: float


@dataclass(frozen=True)
class Membership:
    """Success over all targets and trainings: of who may ask the prompt, and of who only has its vectors."""

    by_confidence: Guesses
    by_vectors: Guesses


def attack_membership(
    victim: Victim,
    targets: npt.NDArray[np.int64],
    trainings: int,
    randomness: RandomnessSource,
    generator: np.random.Generator,
) -> Membership:
    """Train on random halves and their complements; a pair is attacked with all the other pairs as shadows.

    Members and held-out examples come from the same pool and, being every target's two states, have the same labels.

    Args:
        victim: what is attacked.
        targets: examples of the pool that are asked about.
        trainings: how many, an even number of at least eight.
        randomness: of the trainings; each draws under a name of its own.
        generator: draws the halves.
    """
    halves = _complementary_halves(trainings // 2, len(victim.pool), generator)
    trainings = len(halves)
    confidence = np.zeros((trainings, len(targets)))
    vectors = []
    for number, members in enumerate(halves):
        released = victim.train(members, randomness, name=f"victim-{number}")
        confidence[number] = confidences(victim, released.prompt, targets)
        vectors.append(released.displacement.ravel())
    inside = halves[:, targets]
    matrix = np.stack(vectors)
    by_confidence = np.zeros_like(confidence)
    by_vectors = np.zeros_like(confidence)
    for number in range(trainings):
        # Without its complement too: else a target's two states would be unequally many among the shadows, which tells.
        shadows = np.arange(trainings) // 2 != number // 2
        for column in range(len(targets)):
            known = inside[shadows, column]
            by_confidence[number, column] = _log_ratio(confidence[number, column], confidence[shadows, column], known)
            by_vectors[number, column] = _towards(matrix[number], matrix[shadows], known)
    return Membership(rates(inside.ravel(), by_confidence.ravel()), rates(inside.ravel(), by_vectors.ravel()))


def rates(truth: npt.NDArray[np.bool_], scores: Floats) -> Guesses:
    """How well scores tell members from others."""
    members, others = scores[truth], scores[~truth]
    order = np.searchsorted(np.sort(others), members, side="left") + np.searchsorted(
        np.sort(others), members, side="right"
    )
    threshold = np.quantile(others, 1 - LOW_FALSE_POSITIVES)
    return Guesses(auc=float(order.mean() / (2 * len(others))), hits=float((members > threshold).mean()))


def _complementary_halves(pairs: int, size: int, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Random halves, each followed by its complement, [2 pairs, size]."""
    first = generator.random((pairs, size)).argsort(axis=1) < size // 2
    return np.stack([first, ~first], axis=1).reshape(2 * pairs, size)


def _log_ratio(value: float, shadows: Floats, inside: npt.NDArray[np.bool_]) -> float:
    """Log-likelihood ratio of two Gaussians with one spread."""
    members, others = shadows[inside], shadows[~inside]
    spread = max(float(np.concatenate([members - members.mean(), others - others.mean()]).std()), 1e-6)
    return float(((value - others.mean()) ** 2 - (value - members.mean()) ** 2) / (2 * spread**2))


def _towards(vector: Floats, shadows: Floats, inside: npt.NDArray[np.bool_]) -> float:
    """On which side of the middle between the mean prompts with and without the target this prompt lies."""
    direction = shadows[inside].mean(axis=0) - shadows[~inside].mean(axis=0)
    middle = (shadows[inside].mean(axis=0) + shadows[~inside].mean(axis=0)) / 2
    return float((vector - middle) @ direction / max(float(np.linalg.norm(direction)), 1e-12))
