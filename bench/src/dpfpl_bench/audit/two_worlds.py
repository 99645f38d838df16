"""Two worlds at the epsilon that people run: one example more or less, its releases made many times.

``python -m dpfpl_bench.audit.two_worlds`` prints the table of docs/results/audits.md. The example is the worst there
is: a feature of norm 1 alone in its class, a whole vote, a residual that no other has, and every candidate answers it
right. The attacker has the best test there is of two Gaussians and knows everything but whether the example is there.
It is in the training part or in the held-back one, and the attacker of both releases does not know in which. The noise
is the experiment's, a half of it, and a hundredth: where the bound on epsilon does not pass the claim with a half, the
attack would not have noticed either.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpfpl_bench.audit.bounds import gaussian_bound
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.privacy.counts import count_noise_stddev, noised_counts
from dpfpl_common.privacy.noise import NoiseSource, SeededNoise
from dpfpl_common.privacy.one_shot import noised_class_sums, noised_moment, noised_vote
from dpfpl_common.privacy_plan import (
    class_sums_multiplier,
    resolve_noise,
    score_noise_multiplier,
    scored,
    vote_multiplier,
)

__all__ = ["ATTACKS", "Row", "attack", "default_experiment"]

Floats = npt.NDArray[np.float64]

ATTACKS = ("class sums, vote and moment", "scores", "both, a trained example", "both, a held-back example")
NOISE = (1.0, 0.5, 0.01)
FEATURES, OTHERS = 4, 2


@dataclass(frozen=True)
class Row:
    """Lower bounds on epsilon at 95 % confidence, by the share of the noise that was left."""

    attack: str
    claimed_epsilon: float
    bounds: dict[float, float]


def default_experiment(target_epsilon: float) -> Experiment:
    """What people run unless they say otherwise, of two classes and three sites."""
    experiment = Experiment(
        name="two-worlds",
        classes=("a", "b"),
        sites=("north", "south", "west"),
        model=ModelSettings(width=8),
        privacy=PrivacySettings(target_epsilon=target_epsilon),
        rounds=RoundSettings(number=2),  # with a single one nothing is voted on
    )
    return resolve_noise(experiment)


def attack(target_epsilon: float, trials: int, seed: int = 0) -> list[Row]:
    """All attacks on the releases of one experiment.

    Args:
        target_epsilon: what is claimed.
        trials: releases in each world.
        seed: of the noise.
    """
    experiment, noise = default_experiment(target_epsilon), SeededNoise(np.random.default_rng(seed))
    found: dict[str, dict[float, float]] = {name: {} for name in ATTACKS}
    delta = experiment.privacy.target_delta
    for share in NOISE:
        rows = {there: _rows(experiment, noise, share, trials, there=there) for there in (False, True)}
        counts = {there: _counts(experiment, noise, share, trials, there=there) for there in (False, True)}
        # How much likelier both are if the example is in either part, with equal chance.
        trained, held_back, absent = (
            np.logaddexp(rows[trains], counts[tests]) - np.log(2)
            for trains, tests in ((True, False), (False, True), (False, False))
        )
        for name, with_member, without in zip(
            ATTACKS,
            (rows[True], counts[True], trained, held_back),
            (rows[False], counts[False], absent, absent),
            strict=True,
        ):
            found[name][share] = gaussian_bound(with_member, without, delta)
    return [Row(name, target_epsilon, bounds) for name, bounds in found.items()]


def _rows(experiment: Experiment, noise: NoiseSource, share: float, trials: int, *, there: bool) -> Floats:
    """[trials], logarithms of how much likelier each release of class sums, vote and moment is with the example."""
    own = np.eye(FEATURES)[0]
    features = np.concatenate([np.eye(FEATURES)[1 : 1 + OTHERS], own[None]])[: OTHERS + there]
    labels = np.array([1] * OTHERS + [0])[: OTHERS + there]
    z = share * np.array([class_sums_multiplier(experiment), *[vote_multiplier(experiment)] * 2])
    seen = [
        (
            noised_class_sums(features, labels, 2, noise, z[0])[0] @ own,
            noised_vote(np.ones(len(features)), noise, z[1]) - OTHERS,
            noised_moment(features, noise, z[2])[0],
        )
        for _ in range(trials)
    ]
    return np.asarray(((np.array(seen) - 0.5) / z**2).sum(axis=1))


def _counts(experiment: Experiment, noise: NoiseSource, share: float, trials: int, *, there: bool) -> Floats:
    """[trials], the same of scores; the other examples' answers are known and taken off."""
    candidates, z = len(scored(experiment)), score_noise_multiplier(experiment) * share
    right = np.ones((OTHERS + there, candidates))
    stddev = count_noise_stddev(candidates, z)
    seen = [noised_counts(right, noise, z).sum() for _ in range(trials)]
    moved = candidates + 1
    return (np.array(seen) - OTHERS * moved - moved / 2.0) / stddev**2


def _table(rows: list[Row]) -> str:
    lines = ["| epsilon claimed | released | with its noise | half the noise | a hundredth |", "|---|---|---|---|---|"]
    for row in rows:
        shown = " | ".join(f"{row.bounds[share]:.2f}" for share in NOISE)
        lines.append(f"| {row.claimed_epsilon:g} | {row.attack} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    TRIALS = 40_000
    most = gaussian_bound(np.ones(TRIALS), -np.ones(TRIALS), 1e-5)
    print(_table([row for epsilon in (8.0, 2.0) for row in attack(epsilon, TRIALS)]))
    print(f"{TRIALS} releases in each world; more than {most:.1f} cannot be shown")
