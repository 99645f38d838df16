"""``dpfpl-bench audit``: every attack against one site's training, with its noise and with the noise off.

An attack that finds nothing may be a weak attack. So each is run against the same training without noise first;
only one that succeeds there says something where it fails. Bounds on epsilon are held against what the accountant
claims. When an attack counts as alive, and when a claim holds, are the rules of :class:`Finding`, the same for all
and fixed beforehand.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dpfpl_bench.audit.bounds import Finding, bounded, compared
from dpfpl_bench.audit.canary import (
    attack_with_canary,
    audit_in_one_run,
    crafted_context,
    many_canaries_in_the_sums,
    one_canary_in_the_sums,
)
from dpfpl_bench.audit.inversion import attack_messages
from dpfpl_bench.audit.membership import attack_membership
from dpfpl_bench.audit.victim import Victim, without_noise
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy.noise import SeededNoise
from dpfpl_common.privacy_plan import planned_events, resolve_noise, site_noise_stddev

__all__ = ["AuditSettings", "audit", "victim_experiment", "with_canaries"]


@dataclass(frozen=True)
class AuditSettings:
    """How hard to attack.

    Attributes:
        canaries: mislabelled examples whose membership is guessed in one run.
        trials: releases in each world of the one-canary attacks.
        trainings: prompts trained for membership inference.
        crowd: examples of the site in each of these trainings, on average; few, as few are least hidden in a crowd.
        inversions: messages inverted in each trust mode.
        seed: of everything.
    """

    canaries: int = 150
    trials: int = 2000
    trainings: int = 40
    crowd: int = 8
    inversions: int = 8
    seed: int = 0


def victim_experiment(experiment: Experiment) -> Experiment:
    """The experiment as one site alone would run it under the same promise; see ``dpfpl_bench.audit.victim``.

    Every step is a round of its own, with as many steps in all: the attacker sees more than it would, each step's
    message and context instead of a round's mean.
    """
    privacy = dataclasses.replace(
        experiment.privacy, trust="local", tolerated_dropouts=0, tolerated_colluders=0, clipping="joint"
    )
    if privacy.target_epsilon is not None:
        privacy = dataclasses.replace(privacy, noise_multiplier=None)
    rounds = dataclasses.replace(
        experiment.rounds, number=experiment.total_steps, local_steps=1, min_sites=0, evaluate_every=100_000
    )
    return resolve_noise(dataclasses.replace(experiment, sites=("victim",), privacy=privacy, rounds=rounds))


def with_canaries(pool: LabelledFeatures, classes: int, generator: np.random.Generator) -> LabelledFeatures:
    """The same images with random wrong labels: examples that nothing but their membership can explain."""
    shift = torch.from_numpy(generator.integers(1, classes, len(pool)))
    return LabelledFeatures(pool.features, (pool.labels + shift) % classes)


def audit(
    backbone: DualEncoder,
    experiment: Experiment,
    train: LabelledFeatures,
    settings: AuditSettings,
    on_step: Callable[[str], None] = lambda text: None,
) -> list[Finding]:
    """Attack the training of one site that has these images.

    Args:
        backbone: the frozen model.
        experiment: any trust mode; noise level resolved.
        train: the site's training images.
        settings: how hard.
        on_step: told what is being tried.
    """
    generator = np.random.default_rng(settings.seed)
    pool = with_canaries(train, len(experiment.classes), generator)
    if experiment.privacy.mechanism == "one_shot":
        on_step("canaries in the class sums")
        return _class_sums(resolve_noise(experiment), pool, settings)
    real = Victim(backbone, victim_experiment(experiment), pool)
    bare = Victim(backbone, without_noise(real.experiment), pool)
    order = generator.permutation(len(pool))
    findings = []
    for text, attack in (
        ("many canaries in one training", _one_run),
        ("one canary in many messages", _one_canary),
        ("membership in the training of a released prompt", _membership),
        ("inverting messages", functools.partial(_inversion, experiment)),
    ):
        on_step(text)
        findings += attack(real, bare, order, settings)
    return findings


def _class_sums(experiment: Experiment, pool: LabelledFeatures, settings: AuditSettings) -> list[Finding]:
    """The one release of ``one_shot``; everything that is trained afterwards is made from it."""
    claim, delta, classes = _claim(experiment), experiment.privacy.target_delta, len(experiment.classes)
    multiplier = experiment.privacy.noise_multiplier or 0.0
    coins = np.random.default_rng([settings.seed, 1]).random(len(pool)) < 0.5
    single, many = [], []
    for z in (multiplier, multiplier / 100):  # without any noise a release is the same each time
        noise = SeededNoise(np.random.default_rng([settings.seed, 5]))
        single.append(one_canary_in_the_sums(pool, classes, 0, noise, z, settings.trials, delta))
        many.append(many_canaries_in_the_sums(pool, coins, classes, noise, z, delta))
    who = "anybody: the class sums"
    return [
        bounded("one canary, one release", who, single[0], single[1], claim),
        bounded("many canaries, one release", who, many[0], many[1], claim),
    ]


def _claim(experiment: Experiment, steps: int | None = None) -> float:
    recipient, _, _ = planned_events(experiment, steps)
    return epsilon([recipient], experiment.privacy.target_delta)


def _one_run(real: Victim, bare: Victim, order: Any, settings: AuditSettings) -> list[Finding]:
    chosen = order[: settings.canaries]
    coins = np.random.default_rng([settings.seed, 1]).random(len(chosen)) < 0.5
    delta, claim = real.experiment.privacy.target_delta, _claim(real.experiment)
    noised, open_ = (
        audit_in_one_run(_small(v, chosen), coins, SeededRandomness(settings.seed), delta) for v in (real, bare)
    )
    return [
        bounded("many canaries, one training", who, a, b, claim)
        for who, a, b in (
            ("operator: every message", noised[0], open_[0]),
            ("prompt_recipient: the prompt", noised[1], open_[1]),
        )
    ]


def _one_canary(real: Victim, bare: Victim, order: Any, settings: AuditSettings) -> list[Finding]:
    claim, delta = _claim(real.experiment, 1), real.experiment.privacy.target_delta
    generator = np.random.default_rng([settings.seed, 2])
    others = order[1:32]
    plain = real.backbone.text_embeddings(real.experiment.prompt.init_text, real.experiment.prompt.num_context)
    found = []
    for name, context in (
        ("one canary, one message", plain),
        ("one canary, prompt made by the operator", crafted_context(real, int(order[0]), others, generator)),
    ):
        noised, open_ = (
            attack_with_canary(v, int(order[0]), others, context, settings.trials, SeededNoise(generator), delta)
            for v in (real, _little_noise(bare, real))
        )
        found.append(bounded(name, "operator: one message", noised, open_, claim))
    return found


def _little_noise(bare: Victim, real: Victim) -> Victim:
    """A hundredth of the noise: without any, a message is the same each time and there is nothing to count."""
    multiplier = (real.experiment.privacy.noise_multiplier or 0.0) / 100
    return Victim(bare.backbone, real.experiment.with_noise_multiplier(multiplier), bare.pool)


def _membership(real: Victim, bare: Victim, order: Any, settings: AuditSettings) -> list[Finding]:
    crowd = order[: 2 * settings.crowd]
    noised, open_ = (
        attack_membership(
            _small(v, crowd),
            np.arange(len(crowd)),
            settings.trainings,
            SeededRandomness(settings.seed),
            np.random.default_rng([settings.seed, 3]),
        )
        for v in (real, bare)
    )
    found = []
    for name, a, b in (
        ("membership, asking the prompt", noised.by_confidence, open_.by_confidence),
        ("membership, the prompt's vectors alone", noised.by_vectors, open_.by_vectors),
    ):
        found.append(compared(name, "prompt_recipient: the prompt", "area under the curve", a.auc, b.auc, 0.5))
        found.append(compared(name, "prompt_recipient: the prompt", "hits at 5 % false alarms", a.hits, b.hits, 0.05))
    return found


def _small(victim: Victim, chosen: Any) -> Victim:
    """The same training on half of the chosen examples, on average: few, as few are least hidden in a crowd."""
    privacy = dataclasses.replace(victim.experiment.privacy, nominal_site_size=max(1, len(chosen) // 2))
    return Victim(victim.backbone, dataclasses.replace(victim.experiment, privacy=privacy), victim.pool.take(chosen))


def _inversion(
    experiment: Experiment, real: Victim, bare: Victim, order: Any, settings: AuditSettings
) -> list[Finding]:
    """A message made by one image, as each trust mode lets the operator see it."""
    context = real.backbone.text_embeddings(real.experiment.prompt.init_text, real.experiment.prompt.num_context)
    chosen = order[: settings.inversions]
    clipping_norm = experiment.privacy.clipping_norm
    gradients = real.gradients(context, chosen)
    lengths = np.linalg.norm(gradients.reshape(len(chosen), -1), axis=1)[:, None, None]
    clipped = gradients * np.minimum(1.0, clipping_norm / lengths)
    noise = SeededNoise(np.random.default_rng([settings.seed, 4]))
    bare_result = attack_messages(bare, clipped, chosen, context)
    found = []
    for trust in ("distributed", "local"):
        seen = dataclasses.replace(experiment, privacy=dataclasses.replace(experiment.privacy, trust=trust))
        stddev = site_noise_stddev(seen)
        messages = np.stack([noise.add(message, stddev) for message in clipped]) if stddev else clipped
        noised = attack_messages(real, messages, chosen, context)
        for measure, a, b, guess in (
            ("images found", noised.found, bare_result.found, bare_result.chance),
            ("cosine to the image's feature", noised.similarity, bare_result.similarity, bare_result.baseline),
        ):
            found.append(compared(f"inversion, one image, {trust}", "operator: one message", measure, a, b, guess))
    return found
