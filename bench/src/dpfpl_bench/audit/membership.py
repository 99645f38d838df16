"""Was this image in the training set? Asked of a released prompt, with shadow prompts to compare with.

The attacker trains many prompts of its own on random halves of the same pool, and learns how a prompt treats an image
that was in and one that was out. Then it looks at the released prompt: at the confidence in the image's label (after
LiRA, Carlini et al. 2022), or at the prompt's vectors alone, without a single query (after PIPRA).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dpfpl_bench.audit.bounds import Finding, bounded, compared, one_run_bound
from dpfpl_bench.audit.victim import Victim, confidences, log_odds, without_noise
from dpfpl_bench.demo.scenarios import the_same_sites_in_process
from dpfpl_bench.simulation.in_process import SimulatedSite, Simulation
from dpfpl_client.learning.learner import initial_context
from dpfpl_client.learning.step import RandomnessSource
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.class_scorer import class_probabilities
from dpfpl_client.models.dual_encoder import DualEncoder, as_dual_encoder
from dpfpl_client.models.text_tower.states import ClassTokens
from dpfpl_client.use.prompt import SitePrompt, load_prompt
from dpfpl_common.errors import DpfplError, StateError
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy_plan import planned_events

__all__ = [
    "Demo",
    "Guesses",
    "Membership",
    "ReleasedPrompt",
    "attack_membership",
    "attack_released",
    "audit_released",
    "open_demo",
    "rates",
]

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


# The same asked of prompts that a run released: which of these images was it trained on?
#
# The attacker has a site's prompt, the model and images with their labels. Members are training images, the others
# test images of the same classes from the same draw, whose side was decided image by image. Members are thinned until
# both are equally likely, so what is left are fair coins and the one-run bound applies. The score is how much surer
# of the label the prompt is than the plain text, which takes out that some images are easy for everybody.


@dataclass(frozen=True)
class ReleasedPrompt:
    """A site's prompt, and the images whose membership is asked about.

    Attributes:
        prompt: the whole context [num_context, width] that the site's recipient holds.
        plain: the initial text's context, which is public.
        train, test: images of the site's classes, in and out of its training.
    """

    prompt: torch.Tensor
    plain: torch.Tensor
    train: LabelledFeatures
    test: LabelledFeatures


def attack_released(
    backbone: DualEncoder,
    tokens: ClassTokens,
    prompts: list[ReleasedPrompt],
    delta: float,
    generator: np.random.Generator,
) -> tuple[float, Guesses]:
    """The largest bound over the sites, each with its share of the error of 5 %, and success over all of them."""
    bounds, truths, scores = [], [], []
    for released in prompts:
        members = _thinned(released.train, released.test, generator)
        truth = np.repeat([True, False], [len(members), len(released.test)])
        found = np.concatenate([_surer(backbone, tokens, released, part) for part in (members, released.test)])
        confidence = 1 - 0.05 / len(prompts)
        bounds.append(one_run_bound(truth, found, delta, confidence))
        truths.append(truth)
        scores.append(found)
    return max(bounds), rates(np.concatenate(truths), np.concatenate(scores))


def _thinned(train: LabelledFeatures, test: LabelledFeatures, generator: np.random.Generator) -> LabelledFeatures:
    """Each member stays with the chance that makes a member as likely as another, whatever its class."""
    chance = min(1.0, len(test) / max(1, len(train)))
    return train.take(np.flatnonzero(generator.random(len(train)) < chance))


def _surer(backbone: DualEncoder, tokens: ClassTokens, released: ReleasedPrompt, part: LabelledFeatures) -> Floats:
    after, before = (
        log_odds(class_probabilities(backbone, context, tokens, part.features), part.labels)
        for context in (released.prompt, released.plain)
    )
    return after - before


# The demo's own prompts under attack: what its sites released, and the same federation with the noise off.


@dataclass(frozen=True)
class Demo:
    """What a finished demo left: its experiment, its sites' images, and the prompts that they hold."""

    experiment: Experiment
    backbone: DualEncoder
    sites: list[SimulatedSite]
    prompts: list[SitePrompt]


def open_demo(folder: Path, cache: Path) -> Demo:
    """Read a demo's folder; nothing in it is changed.

    Args:
        folder: what ``dpfpl-bench demo --out`` wrote.
        cache: for the images' features.

    Raises:
        StateError: there is no finished demo.
    """
    try:
        json.loads((folder / "result.json").read_text())
        backbone, sites = the_same_sites_in_process(cache)
        prompts = [load_prompt(folder / "work" / "kits" / site.name / "state") for site in sites]
    except (OSError, ValueError, DpfplError) as error:
        raise StateError(
            code="NO_DEMO",
            message=f"{folder} holds no finished demo ({error}).",
            advice="Run one first: dpfpl-bench demo --out DIR, or make demo.",
        ) from None
    return Demo(prompts[0].experiment, as_dual_encoder(backbone), sites, prompts)


def audit_released(demo: Demo, seeds: int, on_step: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """Membership in the training of the demo's released prompts, and of those that it would release without noise.

    Args:
        demo: opened.
        seeds: thinnings of the members, and trainings without noise; bounds are the largest, rates are means.
        on_step: told what is being done.
    """
    recipient, _, _ = planned_events(demo.experiment)
    delta = demo.experiment.privacy.target_delta
    claim = epsilon([recipient], delta)
    tokens = demo.backbone.class_tokens(demo.experiment.classes, demo.experiment.prompt.num_context)
    real = _released(demo, [(p.global_context, p.personal_context) for p in demo.prompts])
    found = []
    for seed in range(seeds):
        on_step(f"the demo's prompts, seed {seed}")
        outcome = Simulation(demo.backbone, demo.sites, seed).run(without_noise(demo.experiment))
        bare = _released(
            demo, [(outcome.checkpoint.global_context, outcome.personal[site.name]) for site in demo.sites]
        )
        found.append(
            [
                attack_released(demo.backbone, tokens, prompts, delta, np.random.default_rng([seed, 6]))
                for prompts in (real, bare)
            ]
        )
    name, who = "membership in the released prompts", "prompt_recipient: the prompt"
    (noised_bounds, noised), (bare_bounds, bare_rates) = (zip(*side, strict=True) for side in zip(*found, strict=True))
    auc, auc_off = (float(np.mean([g.auc for g in side])) for side in (noised, bare_rates))
    hits, hits_off = (float(np.mean([g.hits for g in side])) for side in (noised, bare_rates))
    return [
        bounded(name, who, max(noised_bounds), min(bare_bounds), claim),
        compared(name, who, "area under the curve", auc, auc_off, 0.5),
        compared(name, who, "hits at 5 % false alarms", hits, hits_off, 0.05),
    ]


def _released(demo: Demo, contexts: list) -> list[ReleasedPrompt]:  # type: ignore[type-arg]
    plain = initial_context(demo.backbone, demo.experiment)
    prompts = []
    for site, (shared, personal) in zip(demo.sites, contexts, strict=True):
        learned = np.asarray(shared, dtype=np.float64) + personal
        prompt = plain + plain.new_tensor(learned.astype(np.float32))
        prompts.append(ReleasedPrompt(prompt, plain, site.features.train, site.features.test))
    return prompts
