"""What a federation must beat: each site alone, with its noise and without, and all data in one place.

All are run with the federation's own learner and the same number of steps. ``local_only`` keeps the federation's noise
level: it is what a site could do alone under the same promise. ``local_only_no_noise`` is the same without the promise.
``centralised`` is not private either: all images in one place, one shared prompt, trained until the loss on them falls
no more. Each has its worst site beside its means.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from dpfpl_bench.simulation.in_process import SimulatedSite, Simulation
from dpfpl_client.learning.learner import PromptLearner, SiteFeatures, initial_context
from dpfpl_client.models.backbone import Backbone, LabelledFeatures
from dpfpl_client.models.class_scorer import ClassScorer
from dpfpl_common.experiment import Experiment, RoundSettings
from dpfpl_common.optimizer import OptimizerState, descend
from dpfpl_common.wire.payloads import Context
from dpfpl_server.runs.result import columns

__all__ = ["centralised", "local_only", "trained_floors"]

MOST_STEPS, CHECK_EVERY, LEAST_FALL = 1500, 50, 0.005
"""Training in one place ends when the loss, looked at every 50 steps, has not fallen by 0.005 three times."""

Floor = dict[str, float | None]


def trained_floors(
    backbone: Backbone,
    sites: Sequence[SimulatedSite],
    experiment: Experiment,
    seed: int,
    on_step: Callable[[str], None] = lambda text: None,
    on_count: Callable[[int, int], None] = lambda done, total: None,
    *,
    which: str = "all",
) -> dict[str, Floor]:
    """The floors that are trained, by their names in result.json's ``floors``.

    Args:
        backbone: the frozen model.
        sites: the federation's.
        experiment: the federation's, noise level resolved.
        seed: of the trainings.
        on_step: told what is trained.
        on_count: told how many sites, or of all data how many steps at most, are done.
        which: ``all``, ``alone`` for the one under the same promise only, ``none``.
    """
    if which == "none":
        return {}
    on_step("baseline: every site alone, under the same promise")
    floors = _alone("local_only", backbone, sites, experiment, seed, on_count)
    if which == "alone":
        return floors
    if experiment.is_private and experiment.privacy.unit == "example":
        on_step("baseline: every site alone, without noise")
        floors |= _alone("local_only_no_noise", backbone, sites, experiment, seed, on_count, 0.0)
    else:  # it was the same training, and repeating it would tell nothing
        floors |= {name.replace("local_only", "local_only_no_noise"): floor for name, floor in floors.items()}
    on_step("baseline: all data in one place")
    floors["centralised"] = centralised(backbone, sites, experiment, seed, on_count)
    return floors


def local_only(
    backbone: Backbone,
    sites: Sequence[SimulatedSite],
    experiment: Experiment,
    seed: int,
    on_count: Callable[[int, int], None] = lambda done, total: None,
) -> Floor:
    """Every site does the same alone: a federation of one, with the same steps and noise multiplier."""
    return columns("personal", alone(backbone, sites, experiment, seed, on_count))


def alone(
    backbone: Backbone,
    sites: Sequence[SimulatedSite],
    experiment: Experiment,
    seed: int,
    on_count: Callable[[int, int], None] = lambda done, total: None,
    noise_multiplier: float | None = None,
) -> list[dict[str, float]]:
    """Accuracies of every site that does the same alone; with another noise multiplier if one is given."""
    z = experiment.privacy.noise_multiplier if noise_multiplier is None else noise_multiplier
    finals: list[dict[str, float]] = []
    for done, site in enumerate(sites):
        on_count(done, len(sites))
        alone = dataclasses.replace(
            experiment,
            sites=(site.name,),
            privacy=dataclasses.replace(
                experiment.privacy,
                site_sample_rate=1.0,
                # A prompt that never leaves its site needs no noise to protect that site as a whole.
                noise_multiplier=0.0 if experiment.privacy.unit == "site" else z,
                tolerated_dropouts=0,
                tolerated_colluders=0,
                target_epsilon=None,
                # Alone there is nobody to sum with: the site carries the whole noise.
                trust="local" if experiment.privacy.trust == "secure" else experiment.privacy.trust,
            ),
            rounds=_unwatched(experiment),
        )
        finals += Simulation(backbone, [site], seed).run(alone).final.values()
    return finals


def _alone(
    name: str,
    backbone: Backbone,
    sites: Sequence[SimulatedSite],
    experiment: Experiment,
    seed: int,
    on_count: Callable[[int, int], None],
    noise_multiplier: float | None = None,
) -> dict[str, Floor]:
    """Every site alone: with what its own vote chooses, and, with evidence, with class vectors whatever the vote."""
    finals = alone(backbone, sites, experiment, seed, on_count, noise_multiplier)
    floors = {name: columns("personal", finals)}
    return floors | ({f"{name}_evidence": columns("both", finals)} if experiment.uses_evidence else {})


def centralised(
    backbone: Backbone,
    sites: Sequence[SimulatedSite],
    experiment: Experiment,
    seed: int,
    on_count: Callable[[int, int], None] = lambda done, total: None,
) -> Floor:
    """All training images in one place, one shared prompt, no noise, no privacy; tested on every site's own images."""
    pooled = SiteFeatures(
        train=_joined([site.features.train for site in sites]),
        test=_joined([]),
        neighbour_test=_joined([]),
        classes=sites[0].features.classes,
    )
    together = dataclasses.replace(
        experiment,
        sites=("pool",),
        prompt=dataclasses.replace(
            experiment.prompt, method="promptfl", absent_weight=0.0, retention=0.0, contrast=0.0
        ),
        privacy=dataclasses.replace(
            experiment.privacy,
            unit="example",
            site_sample_rate=1.0,
            mechanism="per_step",
            projection="none",
            trust="local",
            clipping="joint",
            accounting="honest",
            sample_rate=experiment.privacy.sample_rate / len(sites),
            target_epsilon=None,
            noise_multiplier=0.0,
            nominal_site_size=max(1, len(pooled.train)),
            tolerated_dropouts=0,
        ),
        rounds=dataclasses.replace(
            _unwatched(experiment), number=experiment.total_steps, local_steps=1, evaluate_every=100_000
        ),
    )
    scorer = backbone.scorer(together)
    if isinstance(scorer, ClassScorer):
        return _tested_everywhere(
            backbone, sites, together, _trained_out(scorer, backbone, together, pooled.train, on_count)
        )
    outcome = Simulation(backbone, [SimulatedSite("pool", pooled, len(pooled.classes))], seed).run(together)
    return _tested_everywhere(backbone, sites, together, outcome.checkpoint.global_context)


def _trained_out(
    scorer: ClassScorer,
    backbone: Backbone,
    experiment: Experiment,
    train: LabelledFeatures,
    on_count: Callable[[int, int], None],
) -> Context:
    """One prompt, trained on all images at every step until their loss falls no more; its displacement."""
    initial = initial_context(backbone, experiment)
    learned, state = np.zeros(experiment.context_shape), OptimizerState.zeros(experiment.context_shape)
    weights = torch.full((len(train),), 1.0 / max(1, len(train)))
    best, kept, patience = math.inf, learned, 0
    for step in range(MOST_STEPS):
        context = initial + torch.from_numpy(learned.astype(np.float32))
        if step % CHECK_EVERY == 0:
            on_count(step, MOST_STEPS)
            logits = scorer.logit_scale * train.features @ scorer.class_features(context).T
            loss = float(torch.nn.functional.cross_entropy(logits, train.labels))
            patience = 0 if loss < best - LEAST_FALL else patience + 1
            if loss < best:
                best, kept = loss, learned
            if patience >= 3:
                break
        gradient = scorer.total_gradient(context, train, weights).double().numpy()
        settings = experiment.optimizer
        learned, state = descend(settings, settings.global_learning_rate, learned, gradient, state)
    return np.ascontiguousarray(kept, dtype="<f4")


def _tested_everywhere(
    backbone: Backbone, sites: Sequence[SimulatedSite], experiment: Experiment, global_context: Context
) -> Floor:
    nothing_personal = np.zeros(experiment.context_shape)
    metrics = [
        PromptLearner(backbone, experiment, site.features).evaluate(global_context, nothing_personal) for site in sites
    ]
    return columns("global", metrics)


def _unwatched(experiment: Experiment) -> RoundSettings:
    """The same rounds, evaluated at the end only."""
    return dataclasses.replace(experiment.rounds, min_sites=0, evaluate_every=100_000)


def _joined(parts: Sequence[LabelledFeatures]) -> LabelledFeatures:
    if not parts:
        return LabelledFeatures(torch.zeros((0, 0)), torch.zeros(0, dtype=torch.long))
    return LabelledFeatures(
        torch.cat([p.features for p in parts]),
        torch.cat([p.labels for p in parts]),
        tuple(asked for p in parts for asked in p.asked),
    )
