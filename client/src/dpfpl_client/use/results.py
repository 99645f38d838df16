"""``dpfpl-client results``: how well a site's prompts do, exactly and without noise, for the site's own people."""

from typing import Any

from dpfpl_client.agent.features import FeatureCache, site_features
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.data import list_classes, load_site_data
from dpfpl_client.learning.learner import PromptLearner
from dpfpl_client.models.loader import load_computing
from dpfpl_client.site.settings import SiteSettings
from dpfpl_client.use.prompt import load_prompt

__all__ = ["exact_results", "results_lines"]

NAMES = {
    "zero_shot": "plain text",
    "global": "shared prompt",
    "prompt": "this site's prompt",
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
        ``experiment``, ``round``, ``images`` (how many were held back) and ``accuracy`` by candidate.
    """
    prompt = load_prompt(settings.state_folder, experiment)
    names = list_classes(settings.data)
    data = load_site_data(settings.data, names, settings.state_folder / "cache" / "images.json")
    backbone = load_computing(settings.model, settings.compute, offline=settings.offline)
    features = site_features(FeatureCache(settings.state_folder / "cache", backbone), data, names, None)
    features = features.relabelled(prompt.experiment.classes)
    learner = PromptLearner(backbone, prompt.experiment, features)
    choice = DiskStore(settings.state_folder).read_choice(prompt.experiment.name)
    chosen = (None, "") if choice is None else (choice.pool, choice.chosen)
    metrics = learner.evaluate(prompt.global_context, prompt.personal_context, *chosen)
    return {
        "experiment": prompt.experiment.name,
        "round": prompt.round,
        "images": len(features.test),
        "accuracy": {name: metrics[f"{name}_local"] for name in NAMES if f"{name}_local" in metrics},
    }


def results_lines(results: dict[str, Any]) -> list[str]:
    """The results for people."""
    head = f"{results['experiment']}, after round {results['round']}, on {results['images']} held-back images"
    if not results["images"]:
        return [f"{head}: add test images, or raise test_fraction."]
    rows = [f"  {NAMES[name]:<40} {value:.1%}" for name, value in results["accuracy"].items()]
    return [f"{head}:", *rows, "These numbers are exact and stay at this site; what leaves is noised."]
