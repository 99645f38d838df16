"""How well a site's prompts do, for its own people: exactly and without noise, and what was told of it with noise."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpfpl_client.agent.core import evaluation_digest
from dpfpl_client.agent.features import FeatureCache, site_features
from dpfpl_client.agent.ledger.book import SCORES, Ledger
from dpfpl_client.agent.ledger.view import observed_ledger
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.data import list_classes, load_site_data
from dpfpl_client.learning.evidence import rows_at_site
from dpfpl_client.learning.learner import PromptLearner
from dpfpl_client.models.loader import load_computing
from dpfpl_client.site.settings import SiteSettings
from dpfpl_client.use.prompt import SitePrompt, load_prompt
from dpfpl_common.errors import StateError
from dpfpl_common.privacy.counts import count_noise_stddev, scores_from
from dpfpl_common.privacy_plan import score_noise_multiplier, scored
from dpfpl_common.wire.payloads import EvaluateRequest

__all__ = ["chosen_metrics", "exact_results", "released_scores", "results_lines"]

NAMES = {
    "zero_shot": "plain text",
    "global": "shared prompt",
    "prompt": "this site's prompt",
    "text": "plain text, with the usual mix",
    "alone": "class vectors of this site alone",
    "evidence": "class vectors, plain text as prior",
    "both": "class vectors, shared prompt as prior",
    "personal": "what this site uses",
}


def exact_results(settings: SiteSettings, experiment: str | None) -> dict[str, Any]:
    """Exact accuracies on the site's held-back images; computed here, kept nowhere and sent nowhere.

    Args:
        settings: the site.
        experiment: whose prompts; None for the latest.

    Returns:
        ``experiment``, ``round``, ``images`` (how many were held back), ``accuracy`` by candidate, ``own_rows``
        (whether the site uses class vectors from its own rows), and ``released``, as ``released_scores`` gives it.
    """
    prompt = load_prompt(settings.state_folder, experiment, unfinished=True)
    names = list_classes(settings.data)
    data = load_site_data(settings.data, names, settings.state_folder / "cache" / "images.json")
    backbone = load_computing(settings.model, settings.compute, offline=settings.offline)
    features = site_features(FeatureCache(settings.state_folder / "cache", backbone), data, names, None)
    features = features.relabelled(prompt.experiment.classes)
    learner = PromptLearner(backbone, prompt.experiment, features)
    choice = DiskStore(settings.state_folder).read_choice(prompt.experiment.name)
    used: tuple[Any, ...] = ()
    if choice is not None:
        used = (
            choice.pool,
            choice.chosen,
            prompt.alone,
            rows_at_site(prompt.experiment, prompt.class_sums, choice.own),
        )
    metrics = learner.evaluate(prompt.global_context, prompt.personal_context, *used)
    return {
        "experiment": prompt.experiment.name,
        "round": prompt.round,
        "images": len(features.test),
        "accuracy": {name: metrics[f"{name}_local"] for name in NAMES if f"{name}_local" in metrics},
        "own_rows": choice is not None and choice.own is not None,
        "released": released_scores(settings, prompt),
    }


def released_scores(settings: SiteSettings, prompt: SitePrompt) -> list[dict[str, Any]]:
    """The noised scores of its prompts that left this site: ``candidate``, ``value``, ``interval`` (95 %).

    None under ``secure``, where they leave in a sum alone, and a site's own share of the noise is too little.
    """
    if prompt.experiment.privacy.trust == "secure" or (ledger := _ledger(settings)) is None:
        return []
    charge = ledger.find(prompt.experiment.name, SCORES)
    ledger.close()
    if charge is None or not charge.release_digest:
        return []
    counts = DiskStore(settings.state_folder).read_scores(prompt.experiment.name, charge.release_digest)
    names = scored(prompt.experiment)
    found = scores_from(np.array(counts), count_noise_stddev(len(names), score_noise_multiplier(prompt.experiment)))
    return [
        {"candidate": NAMES[name], "value": score.value, "interval": [score.low, score.high]}
        for name, score in zip(names, found, strict=True)
    ]


def chosen_metrics(settings: SiteSettings, prompt: SitePrompt) -> Mapping[str, float]:
    """The exact accuracies, of those that the site answered to the last evaluation, of what the votes chose, as it
    would leave: ``both`` are class vectors that released values decide on, ``text`` is the plain text with the mix.

    None unless that evaluation was of this very prompt: the same context, pool and usual mix.
    """
    experiment, choice = DiskStore(settings.state_folder).experiment(prompt.experiment.name), prompt.choice
    if choice is None or not experiment.uses_evidence or prompt.experiment != experiment:
        return {}
    if (ledger := _ledger(settings)) is None:
        return {}
    asked = EvaluateRequest(experiment, experiment.rounds.number, prompt.global_context, choice.pool, choice.chosen)
    answer = ledger.evaluations(experiment.name).get(evaluation_digest(asked), {})
    ledger.close()
    name, told = {"evidence": "both", "text": "text"}[choice.chosen], answer.get("metrics", {})
    return {key: told[key] for key in (f"{name}_local", f"{name}_neighbour") if key in told}


def _ledger(settings: SiteSettings) -> Ledger | None:
    """To look at; None before the first charge."""
    try:
        return observed_ledger(settings)
    except StateError as error:
        if error.code == "NO_LEDGER":
            return None
        raise


def results_lines(results: dict[str, Any]) -> list[str]:
    """The results for people."""
    head = f"{results['experiment']}, after round {results['round']}, on {results['images']} held-back images"
    if not results["images"]:
        return [f"{head}: add test images, or raise test_fraction."]
    rows = [f"  {NAMES[name]:<40} {value:.1%}" for name, value in results["accuracy"].items()]
    exact = "These numbers are exact and stay at this site; only noised ones leave it."
    if results["own_rows"]:
        rows.append("  This site's images look unlike the others': it uses class vectors from its own rows.")
    if not results["released"]:
        return [f"{head}:", *rows, exact]
    told = [
        f"  {row['candidate']:<40} {'–' if row['value'] is None else format(row['value'], '.1%')}"
        f"  (95 % interval {row['interval'][0]:.1%} to {row['interval'][1]:.1%})"
        for row in results["released"]
    ]
    return [f"{head}:", *rows, exact, "What left this site, from noised counts:", *told]
