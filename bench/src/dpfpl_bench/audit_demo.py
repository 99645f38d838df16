"""The demo's own prompts under attack: what its sites released, and the same federation with the noise off."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpfpl_bench.audit import Finding, bounded, compared
from dpfpl_bench.auditing.released import ReleasedPrompt, attack_released
from dpfpl_bench.auditing.victim import without_noise
from dpfpl_bench.demo import the_same_sites_in_process
from dpfpl_bench.simulation import SimulatedSite, Simulation
from dpfpl_client.learning.dual_encoder import DualEncoder, as_dual_encoder
from dpfpl_client.learning.learner import initial_context
from dpfpl_client.prompt import SitePrompt, load_prompt
from dpfpl_common.accounting import epsilon
from dpfpl_common.errors import DpfplError, StateError
from dpfpl_common.experiment import Experiment
from dpfpl_common.trust import planned_events

__all__ = ["Demo", "audit_released", "open_demo"]


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
