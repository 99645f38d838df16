"""What an experiment will cost and who would refuse it, before anything is sent: ``dpfpl-server plan``."""

import dataclasses
import statistics
import tomllib
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dpfpl_common.config import build, to_table
from dpfpl_common.errors import DpfplError
from dpfpl_common.evidence import images_needed, images_to_stand_out
from dpfpl_common.experiment import Experiment, choose_mechanism, with_secure
from dpfpl_common.policy import Policy, violations
from dpfpl_common.privacy.accounting import (
    PrivacyEvent,
    calibrate_noise_multiplier,
    epsilon,
    exceeds,
    exceeds_adaptively,
)
from dpfpl_common.privacy_plan import (
    capped_event,
    class_sums_multiplier,
    noise_share,
    planned_events,
    planned_score_events,
    server_noise_stddev,
    site_noise_stddev,
)
from dpfpl_common.wire.payloads import TrainRequest
from dpfpl_server.federation.messages import content_bytes, request_content
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.result import privacy_statement
from dpfpl_server.sites.kits import STARTING_POLICY, starting_policy
from dpfpl_server.sites.register import Site

__all__ = ["evidence_is_off", "images_for_evidence", "make_plan", "plan_lines"]

REPLY_BYTES = 128 + 350
"""Of a reply besides the values of its update: the array's header, names, metrics, signature."""
ATTEMPTS = 3
EPSILONS = (1.0, 2.0, 4.0, 8.0)
FEATURE_SIZES = (96, 512, 768)
"""Of the embedded model, of CLIP's base models and of its large one."""
KNOWN_SIZES = {"21b53a234c32cd85bd6e2ce384469b7632e93f23df8d9d3204463e2957cd6943": FEATURE_SIZES[0]}
"""By the fingerprint of the model, which the experiment names and every site checks; here the embedded one."""
ASSUMED_SIZE = FEATURE_SIZES[1]


def make_plan(experiment: Experiment, sites: Mapping[str, Site], runs: Path) -> dict[str, Any]:
    """Everything that can be known beforehand, ready for JSON.

    Args:
        experiment: noise level resolved.
        sites: the server's register.
        runs: earlier runs, from which the time is estimated.

    Returns:
        ``experiment`` and ``digest`` are what a site approves: ``dpfpl-client approve`` reads this file.
    """
    problems, enrolled = _unregistered(experiment, sites), {n for n, site in sites.items() if site.aggregation_key}
    return {
        "experiment": to_table(experiment),
        "digest": experiment.digest(),
        **_choices(experiment, enrolled),
        "noise": {
            "noise_multiplier": experiment.privacy.noise_multiplier,
            "site_stddev": site_noise_stddev(experiment),
            "server_stddev": server_noise_stddev(experiment),
        },
        "privacy": privacy_statement(experiment, experiment.rounds.number, scored=True),
        "images_of_a_class": _images_of_a_class(experiment),
        "evidence": images_for_evidence(experiment),
        "bytes": _bytes(experiment),
        "seconds": _seconds(experiment, runs),
        "refusals": problems
        + _read_alike(experiment)
        + _refused_by_the_starting_policy(experiment, enrolled)
        + _refused_for_the_past(experiment, runs),
        "warnings": _warnings(experiment),
    }


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """A plan for people."""
    experiment, traffic, seconds = plan["experiment"], plan["bytes"], plan["seconds"]
    privacy, mechanism, trust = plan["privacy"], plan["mechanism"], plan["trust"]
    lines = [
        f"{experiment['name']}: {len(experiment['sites'])} sites, {experiment['rounds']['number']} rounds, digest "
        f"{plan['digest'][:16]}",
        f"mechanism: {mechanism['name']}; auto takes {mechanism['auto']}: {mechanism['reason']}",
        f"trust: {trust['name']}; auto takes {trust['auto']}: {trust['reason']}",
        f"noise: multiplier {plan['noise']['noise_multiplier']:.4g}, {experiment['privacy']['trust']} trust",
        *(
            f"epsilon {_epsilon(entry['epsilon'])} at delta {entry['delta']:g} towards {entry['who']}"
            for entry in privacy["epsilons"]
        ),
        *([f"these epsilons are {privacy['assumption']}"] if privacy["assumption"] else []),
        f"unit: {privacy['epsilons'][0]['unit']}",
        *_group_lines(privacy),
        *_score_line(privacy),
        *_images_line(plan["images_of_a_class"]),
        *_evidence_lines(plan["evidence"]),
        f"traffic: a site {traffic['down_per_site_round']} bytes down, {traffic['up_per_site_round']} up a round; "
        f"all sites, all rounds {traffic['down']} down, {traffic['up']} up",
        f"time: about {seconds['expected']:.0f} s ({seconds['basis']}); at most {seconds['at_most']:.0f} s",
    ]
    lines += [f"REFUSED by {entry['by']} (rule {entry['rule']}): {entry['why']}" for entry in plan["refusals"]]
    return lines + [f"WARNING {text}" for text in plan["warnings"]]


def _group_lines(privacy: Mapping[str, Any]) -> list[str]:
    """What the epsilon of a prompt's recipient is for several examples, and what it means for an attacker."""
    if not privacy["groups"]:
        return []
    groups = ", ".join(f"{_epsilon(row['epsilon'])} for {row['examples']}" for row in privacy["groups"][1:])
    rates = ", ".join(
        f"{row['true_positive_rate']:.1%} at {row['false_positive_rate']:.1%}" for row in privacy["recognition"]
    )
    return [
        f"several examples of one person, at the same delta: epsilon {groups}",
        f"who tries to tell whether an example was there is right at most so often, by how often wrong: {rates}",
    ]


def _score_line(privacy: Mapping[str, Any]) -> list[str]:
    if not privacy["held_back_events"]:
        return []
    z = privacy["held_back_events"][0]["noise_multiplier"]
    return [f"scores: noised counts of right answers on held-back examples, multiplier {z:.4g}; epsilon stays the same"]


def _choices(experiment: Experiment, enrolled: Collection[str]) -> dict[str, dict[str, str]]:
    """Mechanism and trust beside those that ``auto`` takes for such an experiment, and why."""
    privacy = experiment.privacy
    open_privacy = dataclasses.replace(privacy, mechanism="auto", trust="auto")
    auto = choose_mechanism(open_privacy, experiment.prompt, experiment.task)
    trust: str = auto.trust
    why, reason = auto.reason, f"what {auto.mechanism} releases is not summed in secret"
    if auto.mechanism == "one_shot":
        chosen = dataclasses.replace(privacy, mechanism=auto.mechanism, trust=auto.trust)
        plain = dataclasses.replace(experiment, privacy=chosen)
        secure, reason = with_secure(plain, enrolled)
        trust = secure.privacy.trust
        why += _hardly_enough(secure, with_secure(plain, experiment.sites)[0])
    return {
        "mechanism": {"name": privacy.mechanism, "auto": auto.mechanism, "reason": why},
        "trust": {"name": privacy.trust, "auto": trust, "reason": reason},
    }


def _hardly_enough(experiment: Experiment, at_best: Experiment) -> str:
    """What to expect where the sites' images are too few for class vectors at this epsilon, by public numbers.

    ``per_step`` may still learn there. ``auto`` does not take it: the operator's epsilon would lie above the target.

    Args:
        experiment: under the trust that ``auto`` takes.
        at_best: the same if all sites had enrolled.
    """
    evidence = images_for_evidence(experiment)
    if not evidence or evidence["nominal_images_of_a_class"] >= evidence["now"]["half_evenly"]:
        return ""
    text = (
        f"; it may find little: {evidence['nominal_images_of_a_class']:g} images of a class, nominally, where about "
        f"{evidence['now']['half_evenly']} are needed at this epsilon if every site has the same share of them"
    )
    if at_best.privacy.trust != experiment.privacy.trust:
        text += f" ({images_for_evidence(at_best)['now']['half_evenly']} under secure, if the sites enrol keys)"
    if experiment.privacy.trust != "secure":  # where a sum holds the noise of all sites, whoever has the images
        text += f", and {evidence['now']['half_at_one_site']} if one site has them all"
    if not evidence["feature_size_known"]:
        text += f"; this is if features have {evidence['feature_size']} numbers, fewer need fewer images"
    return text + "; per_step may learn more, but holds the operator to a larger epsilon"


def _images_of_a_class(experiment: Experiment) -> dict[str, int]:
    """How many images of a class a site needs at least, by the size of an image's features; empty under per_step."""
    privacy = experiment.privacy
    if privacy.mechanism != "one_shot" or not privacy.noise_multiplier:
        return {}
    known = KNOWN_SIZES.get(experiment.model.fingerprint)
    sizes = FEATURE_SIZES if known is None else (known,)
    return {str(size): images_to_stand_out(privacy.noise_multiplier, size) for size in sizes}


def _images_line(images: Mapping[str, int]) -> list[str]:
    if not images:
        return []
    numbers = ", ".join(
        f"{count} where the model's image features have {size} numbers" for size, count in images.items()
    )
    return [
        f"a class counts at a site only with more images of it than about {numbers}; with fewer its text stays as it is"
    ]


def images_for_evidence(experiment: Experiment) -> dict[str, Any]:
    """What class vectors will need, from public numbers alone; empty without evidence or noise."""
    privacy = experiment.privacy
    if not (experiment.uses_evidence and privacy.noise_multiplier):
        return {}
    many, share, size = len(experiment.sites), noise_share(experiment), _feature_size(experiment)
    summed = many if privacy.trust == "secure" else 1  # sites whose noise is on a class that lies at one of them
    curve = []
    for target in sorted({*EPSILONS, *([privacy.target_epsilon] if privacy.target_epsilon else [])}):
        z = calibrate_noise_multiplier(target, privacy.target_delta, 1.0, 1)
        there = class_sums_multiplier(experiment.with_noise_multiplier(z))
        curve.append({"epsilon": target} | _needed(there * share, summed, many, size))
    nominal = privacy.nominal_site_size * many / len(experiment.classes)
    return {
        "nominal_images_of_a_class": round(nominal, 1),
        "sites": many,
        "feature_size": size,
        "feature_size_known": experiment.model.fingerprint in KNOWN_SIZES,
        "now": _needed(class_sums_multiplier(experiment) * share, summed, many, size),
        "curve": curve,
    }


def _feature_size(experiment: Experiment) -> int:
    return KNOWN_SIZES.get(experiment.model.fingerprint, ASSUMED_SIZE)


def _needed(noise_multiplier: float, summed: int, many: int, size: int) -> dict[str, int]:
    found_at_one, half_at_one = images_needed(noise_multiplier, summed, size)
    found, half = images_needed(noise_multiplier, many, size)
    return {
        "found_at_one_site": found_at_one,
        "half_at_one_site": half_at_one,
        "found_evenly": found,
        "half_evenly": half,
    }


def _evidence_lines(evidence: Mapping[str, Any]) -> list[str]:
    if not evidence:
        return []
    rows = ", ".join(
        f"epsilon {p['epsilon']:g}: {p['half_at_one_site']} / {p['half_evenly']}" for p in evidence["curve"]
    )
    assumed = "" if evidence["feature_size_known"] else ", assumed; fewer need fewer images"
    return [
        f"class vectors: {evidence['nominal_images_of_a_class']:g} images of a class in all, nominally; about so many "
        f"are needed until half of what they show is believed, at one site / shared evenly over {evidence['sites']} "
        f"(features of {evidence['feature_size']} numbers{assumed}): {rows}"
    ]


def _epsilon(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3f}"


def _bytes(experiment: Experiment) -> dict[str, int]:
    context = np.zeros(experiment.context_shape, dtype="<f4")
    pool = None
    if experiment.privacy.trust == "secure":  # its rounds are about the summed rows
        pool = np.ones((len(experiment.classes) + 1, _feature_size(experiment) + 2), dtype="<f4")
    down = content_bytes(request_content(TrainRequest(experiment, 1, context, pool=pool)))
    up = context.nbytes + REPLY_BYTES
    messages = round(len(experiment.sites) * experiment.privacy.site_sample_rate * experiment.rounds.number)
    return {"down_per_site_round": down, "up_per_site_round": up, "down": down * messages, "up": up * messages}


def _seconds(experiment: Experiment, runs: Path) -> dict[str, Any]:
    rounds = experiment.rounds
    at_most = ATTEMPTS * rounds.deadline * (rounds.number + 1)
    known = _like(experiment, runs)
    if known is None:
        basis = "1 s a round for the exchange; how long the sites compute is not known before a first run"
        return {"per_round": 1.0, "expected": 1.0 * (rounds.number + 1), "at_most": at_most, "basis": basis}
    name, per_round = known
    expected = per_round * (rounds.number + 1)
    basis = f"{per_round:.1f} s a round, the median of run {name}"
    return {"per_round": per_round, "expected": expected, "at_most": at_most, "basis": basis}


def _like(experiment: Experiment, runs: Path) -> tuple[str, float] | None:
    """Name and median seconds per round of the newest run with the same model and as many local steps."""
    for earlier, entries, _ in _earlier_runs(runs):
        alike = (earlier.model, earlier.rounds.local_steps) == (experiment.model, experiment.rounds.local_steps)
        if alike and entries:
            return earlier.name, statistics.median(entry["seconds"] for entry in entries)
    return None


def _earlier_runs(runs: Path) -> Iterator[tuple[Experiment, list[dict[str, Any]], list[dict[str, Any]]]]:
    """Experiment, rounds and unused replies of each run in a folder, the newest first.

    A damaged one is left out: ``dpfpl-server status`` says so, and no other experiment has to wait for its repair.
    """
    for file in sorted(runs.glob("*/run.sqlite"), key=lambda path: path.stat().st_mtime, reverse=True):
        folder = RunFolder(file.parent)
        try:
            found = folder.experiment(), folder.store.rounds(), folder.store.drops()
        except DpfplError:
            continue
        yield found


def _unregistered(experiment: Experiment, sites: Mapping[str, Site]) -> list[dict[str, str]]:
    problems = []
    for name in experiment.sites:
        site = sites.get(name)
        if site is None:
            problems.append(_refusal("this server", "sites", f"{name} is not provisioned."))
        elif not site.agent_key:
            problems.append(
                _refusal("this server", "sites", f"{name} has no signing key: provision it again (--force).")
            )
    return problems


def _read_alike(experiment: Experiment) -> list[dict[str, str]]:
    """Class names that differ in case or blanks only; the tokenizer that would say for certain is at the sites."""
    seen: dict[str, str] = {}
    refusals = []
    for name in experiment.classes:
        first = seen.setdefault(" ".join(unicodedata.normalize("NFC", name).lower().split()), name)
        if first != name:
            why = f"{first!r} and {name!r} are the same tokens to it, so these classes could never be told apart."
            by = "a site whose model's tokenizer ignores case and blanks, as CLIP's does"
            refusals.append(_refusal(by, "classes", why))
    return refusals


def _refused_by_the_starting_policy(experiment: Experiment, enrolled: Collection[str]) -> list[dict[str, str]]:
    """What a site refuses that left the policy of its kit as it was; a site may allow more, or less."""
    text = starting_policy(enrolled=set(experiment.sites) <= set(enrolled))
    policy = build(Policy, tomllib.loads(text), "the kit's policy.toml")
    found = {broken.rule: broken.advice for broken in violations(policy, experiment)}
    if exceeds([capped_event(experiment)], policy.delta, policy.max_epsilon_lifetime):
        found["max_epsilon_lifetime"] = f"All experiments together may cost at most {policy.max_epsilon_lifetime:g}."
    return [_refusal("a site with its kit's policy", rule, why) for rule, why in found.items()]


def _refused_for_the_past(experiment: Experiment, runs: Path) -> list[dict[str, str]]:
    """Which sites, with the policy of their kit, have too little left for this experiment: the caps of a lifetime.

    What a site was asked to spend is known from the runs. What it really spent, with other operators too, and what it
    allows, only the site knows.
    """
    policy = build(Policy, tomllib.loads(STARTING_POLICY), "the kit's policy.toml")
    earlier = _asked_before(runs, except_for=experiment.name)
    rules = {"max_epsilon_lifetime": capped_event(experiment).adversary}
    if experiment.privacy.trust != "central":
        rules["max_epsilon_operator_lifetime"] = "operator"
    found = []
    for rule, adversary in rules.items():
        new, most = _charges(experiment, adversary), float(getattr(policy, rule))
        sites_by_past: dict[tuple[PrivacyEvent, ...], list[str]] = {}
        for site in experiment.sites:
            events = [
                event
                for run, rounds in earlier
                if rounds.get(site)
                for event in _charges(run, adversary, rounds[site], scored=max(rounds.values()) == run.rounds.number)
            ]
            sites_by_past.setdefault(_added_up(events), []).append(site)
        for past, names in sites_by_past.items():
            total = _added_up([*past, *new])
            if past and exceeds_adaptively(total, policy.delta, most):  # as a site decides
                before, after = (epsilon(events, policy.delta) for events in (past, total))
                why = f"asked for epsilon {before:.3f} in earlier runs, {after:.3f} with this one, allowed {most:g}"
                if after <= most:
                    why += "; experiments chosen one after another count for more than this figure"
                found.append(_refusal(f"{', '.join(names)}, with the policy of the kit,", rule, f"{why}."))
    return found


def _charges(
    experiment: Experiment, adversary: str, rounds: int | None = None, *, scored: bool = True
) -> list[PrivacyEvent]:
    """What a site charges for so many rounds (None: all), and for the scores that follow the last one."""
    steps = None if rounds is None else rounds * experiment.rounds.local_steps
    events = (*planned_events(experiment, steps), *(planned_score_events(experiment) if scored else ()))
    return [event for event in events if event.adversary == adversary]


def _added_up(events: Iterable[PrivacyEvent]) -> tuple[PrivacyEvent, ...]:
    """The same events with equal mechanisms as one."""
    steps: dict[PrivacyEvent, int] = {}
    for event in events:
        one = replace(event, steps=1)
        steps[one] = steps.get(one, 0) + event.steps
    return tuple(replace(one, steps=number) for one, number in steps.items())


UNCHARGED = ("REFUSED", "NOT_SENT", "REVOKED", "KEY_REPLACED")
"""How the codes of dropped replies begin for which the site charged nothing."""


def _asked_before(runs: Path, except_for: str) -> list[tuple[Experiment, dict[str, int]]]:
    """The runs in a folder, each with the rounds that each of its sites can have been charged for.

    Every round counts that used the site's reply or dropped it, but for a refusal, which the site did not charge.
    """
    found = []
    for experiment, history, drops in _earlier_runs(runs):
        if experiment.name == except_for:
            continue
        rounds = {}
        for site in experiment.sites:
            used = {str(entry["round"]) for entry in history if site in entry["sites"]}
            lost = {str(d["round"]) for d in drops if d["site"] == site and not d["code"].startswith(UNCHARGED)}
            rounds[site] = min(len(used | lost), experiment.rounds.number)
        found.append((experiment, rounds))
    return found


def evidence_is_off(experiment: Experiment) -> str:
    """Why an experiment that asks for class vectors makes none; empty if it makes them or does not ask."""
    asked = experiment.prompt.evidence and experiment.privacy.mechanism == "one_shot"
    if not asked or experiment.uses_evidence:
        return ""
    return (
        "class vectors need two rounds: one collects the class sums, the next one votes. With rounds.number "
        f"{experiment.rounds.number} the sites train prompts only."
    )


def _warnings(experiment: Experiment) -> list[str]:
    warnings = list(filter(None, [evidence_is_off(experiment)]))
    evidence = images_for_evidence(experiment)
    if evidence and evidence["nominal_images_of_a_class"] < evidence["now"]["found_at_one_site"]:
        warnings.append(
            "no class will stand out of the noise, if all have about as many images: a site needs about "
            f"{evidence['now']['found_at_one_site']} images of one, and all sites together have nominally "
            f"{evidence['nominal_images_of_a_class']:g}. Use a larger epsilon, more images or more sites."
        )
    if not experiment.model.fingerprint:
        warnings.append("model.fingerprint is empty: sites with any model of that width take part.")
    if not experiment.is_private:
        warnings.append("noise_multiplier is 0: no privacy is claimed, and no policy admits it.")
    size, q = experiment.privacy.nominal_site_size, experiment.privacy.sample_rate
    if experiment.privacy.unit == "example" and q * size < 1:
        warnings.append("sample_rate times nominal_site_size is below 1: most steps have an empty batch.")
    if experiment.privacy.target_delta * size > 1:
        warnings.append(f"target_delta should be well below 1 / {size}.")
    if experiment.privacy.trust == "secure":
        warnings.append(
            "secure trust protects each site from an operator that follows the protocol. An operator that invents "
            "sites can read a real one, unless its people pinned the others' keys (dpfpl-client peers pin): let the "
            "sites do so before the first run. Three sums of four messages each come before and after the rounds."
        )
    if experiment.privacy.tolerated_dropouts == 0 and len(experiment.sites) > 2:
        warnings.append("tolerated_dropouts is 0: a single missing site stops every round.")
    return warnings


def _refusal(by: str, rule: str, why: str) -> dict[str, str]:
    return {"by": by, "rule": rule, "why": why}
