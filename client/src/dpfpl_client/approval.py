"""What an experiment would mean for a site, in plain words, before its administrator approves it."""

import contextlib
import json
from pathlib import Path
from typing import Any

from dpfpl_client.agent.budget import held_to, planned_cost
from dpfpl_client.agent.keys import aggregation_keys
from dpfpl_client.agent.ledger.book import LEDGER_FILE
from dpfpl_client.agent.ledger.view import observed_ledger
from dpfpl_client.agent.policy_file import Approvals, load_policy
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.data import count_labels, left_out
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.config import build
from dpfpl_common.errors import ConfigError, DataError, DpfplError, RefusedError
from dpfpl_common.experiment import Experiment, experiment_table, with_secure
from dpfpl_common.policy import Policy, permit
from dpfpl_common.privacy.accounting import json_epsilon
from dpfpl_common.privacy_plan import ADVERSARIES, UNIT_NAMES, assumption, resolve_noise

__all__ = ["describe", "experiments_asked_for", "pending_plan", "read_plan", "words"]

ANSWERS = {
    "vqa": "questions about images, answered in words; what is asked and answered stays here",
    "caption": "captions of images; what they say stays here",
}

ACCURACIES = {
    "none": "no accuracies",
    "noised": "noised counts of right answers on held-back examples, once, within the same epsilon",
    "coarse": "accuracies in steps of 0.05 (public data)",
    "exact": "exact accuracies (public data)",
}

ASK_FOR_JSON = (
    "Ask the operator for the resolved plan as JSON (dpfpl-server plan FILE --out plan.json), or approve what the site "
    "was asked: dpfpl-client approve --pending."
)


def read_plan(path: Path) -> Experiment:
    """The experiment in a file from the operator: JSON, noise resolved, or an experiment.toml that lists its sites.

    Only the server knows who enrolled, so only it can say what ``auto`` trust stands for: what is approved names it.

    Raises:
        ConfigError: the file says something else, or leaves open what would run.
    """
    is_file = path.suffix == ".toml"
    if is_file:
        table = experiment_table(path)
        if "sites" not in table:
            raise ConfigError(
                code="PLAN_WITHOUT_SITES",
                message=f"{path} does not list the sites that take part; the noise depends on them.",
                advice=ASK_FOR_JSON,
            )
    else:
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                code="FILE_UNREADABLE", message=f"{path} cannot be read ({error.strerror}).", advice="Check the path."
            ) from None
        except (ValueError, RecursionError):
            raise ConfigError(
                code="BAD_PLAN", message=f"{path} is neither JSON nor named *.toml.", advice="Give the operator's plan."
            ) from None
    claimed = ""
    if isinstance(table, dict) and isinstance(table.get("experiment"), dict):
        table, claimed = table["experiment"], str(table.get("digest", ""))
    experiment = build(Experiment, table, path.name)
    left_open = table.get("privacy", {}).get("trust", "auto") == "auto"
    if left_open and with_secure(experiment, experiment.sites)[0] != experiment:
        raise ConfigError(
            code="PLAN_WITHOUT_TRUST",
            message=f"{path} leaves the trust open: the server uses secure if all sites enrolled, otherwise local.",
            advice=ASK_FOR_JSON,
        )
    experiment = resolve_noise(experiment)
    if claimed not in ("", experiment.digest()):
        raise ConfigError(
            code="BAD_PLAN",
            message=f"{path} says that its configuration is {claimed[:12]}, but it is {experiment.digest()[:12]}.",
            advice="The file was changed, or comes from another release: ask the operator again.",
        )
    return experiment


def pending_plan(settings: SiteSettings, name: str | None) -> Experiment:
    """What the site was last asked for, and refused because it was not approved.

    Raises:
        ConfigError: nothing of this name waits.
    """
    waiting = Approvals(settings.state_folder).pending()
    if not waiting or (name is not None and name not in waiting):
        raise ConfigError(
            code="NOTHING_PENDING",
            message="No experiment waits for an approval." if name is None else f"{name!r} waits for no approval.",
            advice=f"Waiting: {', '.join(waiting) or 'none'}. The operator must try to run it first.",
        )
    return waiting[name] if name is not None else list(waiting.values())[-1]


def experiments_asked_for(state: Path) -> list[Experiment]:
    """What the site was asked for: what waits for an approval, and what it took part in and did not forget."""
    store = DiskStore(state)
    found = Approvals(state).pending()
    for name in store.experiments():
        with contextlib.suppress(DpfplError):  # written by another release, or damaged: not what is looked at here
            found[name] = store.experiment(name)
    return list(found.values())


def describe(settings: SiteSettings, experiment: Experiment) -> dict[str, Any]:
    """Who would learn how much, what leaves, what it costs of what is left, and whether the policy lets it pass."""
    policy = load_policy(settings.path(settings.policy))
    charged = (settings.state_folder / LEDGER_FILE).exists()
    with contextlib.closing(observed_ledger(settings)) if charged else contextlib.nullcontext() as ledger:
        costs = planned_cost(ledger, experiment, policy.delta)
    privacy, rounds = experiment.privacy, experiment.rounds
    return {
        "name": experiment.name,
        "digest": experiment.digest(),
        "classes": list(experiment.classes),
        "task": experiment.task.kind,
        "sites": list(experiment.sites),
        "member": settings.name in experiment.sites,
        "rounds": rounds.number,
        "local_steps": rounds.local_steps,
        "method": experiment.prompt.method,
        "mechanism": privacy.mechanism,
        "trust": privacy.trust,
        "assumption": assumption(experiment),
        "peers": _peers(settings, experiment),
        "unit": privacy.unit,
        "noise_multiplier": privacy.noise_multiplier,
        "clipping_norm": privacy.clipping_norm,
        "values_per_round": experiment.context_shape[0] * experiment.context_shape[1],
        "metrics": policy.metrics,
        "delta": policy.delta,
        "costs": [_cost(policy, experiment, adversary, *cost) for adversary, cost in costs.items()],
        "refused_because": _refusal(policy, experiment),
        "left_out": _left_out(settings, experiment),
    }


def words(plan: dict[str, Any]) -> list[str]:
    """The description for a reader without a background in privacy accounting."""
    lines = [
        f"Experiment {plan['name']}, configuration {plan['digest'][:12]}",
        f"  {len(plan['sites'])} sites: {', '.join(plan['sites'])}"
        + ("" if plan["member"] else " - WITHOUT this site"),
        f"  {len(plan['classes'])} classes: {', '.join(plan['classes'])}"
        if plan["task"] == "classify"
        else f"  {ANSWERS[plan['task']]}",
        f"What leaves this site in each of {plan['rounds']} rounds: {plan['values_per_round']} numbers, "
        f"{_update(plan['mechanism'], plan['trust'])}; "
        f"{ACCURACIES[plan['metrics']]}. Never an image, a label or a file name.",
        f"What is protected: {UNIT_NAMES[plan['unit']]}. Noise multiplier {plan['noise_multiplier']:.3g}, "
        f"{plan['mechanism']}, trust {plan['trust']}.",
        f"Who learns how much (epsilon at delta {plan['delta']:g}; smaller is safer):",
    ]
    for cost in plan["costs"]:
        limit = ""
        if cost["cap"] is not None:
            limit = (
                f"; allowed {cost['cap']:g} for one experiment. With all earlier ones {_shown(cost['with_earlier'])} "
                f"of {cost['lifetime_cap']:g}"
            )
        lines.append(f"  {cost['who']}: {_shown(cost['epsilon'])}{limit}")
    if plan["assumption"]:
        lines.append(f"  These epsilons are {plan['assumption']}.")
        lines.append(_peer_words(plan["peers"]))
    if plan["left_out"]:
        lines.append(f"WARNING {plan['left_out']}")
    if plan["refused_because"]:
        lines.append(f"Your policy would still refuse it: {plan['refused_because']}")
    return lines


def _peers(settings: SiteSettings, experiment: Experiment) -> dict[str, bool]:
    """Under secure trust: whether people at this site compared the key of each other site; else empty."""
    if experiment.privacy.trust != "secure":
        return {}
    pinned = aggregation_keys(settings, with_own=False).pinned()
    return {site: site in pinned for site in experiment.sites if site != settings.name}


def _peer_words(peers: dict[str, bool]) -> str:
    unknown = [site for site, pinned in peers.items() if not pinned]
    if not unknown:
        return "  The keys of all other sites are pinned here: an operator that puts others in their place is refused."
    if len(unknown) < len(peers):
        return f"WARNING Sums are refused until the keys of {', '.join(unknown)} are pinned: dpfpl-client peers pin"
    return (
        "WARNING No key of another site is pinned here: an operator that invents sites could read yours. Compare "
        "fingerprints with their people: dpfpl-client peers show, dpfpl-client peers pin"
    )


def _update(mechanism: str, trust: str) -> str:
    if trust == "secure":
        return "an update computed from the noised sum over all sites; before and after, masked integers for three sums"
    if mechanism == "one_shot":
        return "an update of the shared prompt, computed from sums over your images that are noised once, at the start"
    return f"the clipped and {'un-noised' if trust == 'central' else 'noised'} update of the shared prompt"


def _cost(policy: Policy, experiment: Experiment, adversary: str, alone: float, together: float) -> dict[str, Any]:
    if adversary == "operator":
        bound = "central" not in policy.trust
        cap, lifetime = policy.max_epsilon_operator, policy.max_epsilon_operator_lifetime
    else:
        bound = adversary in held_to(experiment.privacy.unit)
        cap, lifetime = policy.max_epsilon_per_experiment, policy.max_epsilon_lifetime
    return {
        "adversary": adversary,
        "who": ADVERSARIES[adversary],
        "epsilon": json_epsilon(alone),
        "with_earlier": json_epsilon(together),
        "cap": cap if bound else None,
        "lifetime_cap": lifetime if bound else None,
        "fits": not bound or (alone <= cap and together <= lifetime),
    }


def _refusal(policy: Policy, experiment: Experiment) -> str:
    """Why the policy refuses an approved experiment; empty if it does not."""
    try:
        permit(policy, experiment, approved=True)
    except RefusedError as error:
        return str(error)
    return ""


def _left_out(settings: SiteSettings, experiment: Experiment) -> str:
    """Which of the site's images have a class that the experiment does not know, in words; empty if none has."""
    if experiment.task.in_words or settings.data.source == "questions":
        return ""
    try:
        problem = left_out(count_labels(settings.data), experiment.classes)
    except DataError as error:
        return f"The images cannot be counted: {error}"
    return "" if problem is None else problem.message


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"
