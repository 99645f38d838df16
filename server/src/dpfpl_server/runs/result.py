"""result.json: what a run brought and what it cost, deployed or simulated."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

from dpfpl_common.config import to_table
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.accounting import (
    PrivacyEvent,
    epsilon,
    group_epsilon,
    json_epsilon,
    true_positive_rate,
)
from dpfpl_common.privacy.counts import count_noise_stddev, gain, scores_from
from dpfpl_common.privacy_plan import (
    ADVERSARIES,
    UNIT_NAMES,
    assumption,
    noise_share,
    planned_events,
    planned_score_events,
    score_noise_multiplier,
)
from dpfpl_common.privacy_plan import scored as candidates_of
from dpfpl_server.federation.evidence import Evidence
from dpfpl_server.federation.replies import verdicts

__all__ = ["build_result", "columns", "event_epsilon", "floors_from_metrics", "mean", "privacy_statement", "verdict"]

COLUMNS = ("local", "neighbour", "unseen", "all")
CANDIDATES = ("zero_shot", "text", "prompt", "evidence", "both")
"""What is told apart with evidence: plain text without and with the site's usual mix of classes, the personalised
prompt, class vectors from the plain text, and from the learned shared prompt."""

OURS = ("dpfpl-common", "dpfpl-client", "dpfpl-server", "dpfpl-bench")
THEIRS = ("flwr", "grpcio", "dp-accounting", "numpy", "torch", "transformers")
Metrics = Mapping[str, float]
Floats = npt.NDArray[np.float64]

GROUPS = (1, 2, 5, 10)
"""Sizes of groups of examples, such as the images of one person, whose epsilon is told."""

FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)


def build_result(
    experiment: Experiment,
    *,
    transport: str,
    history: Sequence[Mapping[str, Any]],
    final: Mapping[str, Metrics],
    scores: Mapping[str, Sequence[float]] | None = None,
    num_classes: Mapping[str, int],
    seconds: float,
    seed: int | None = None,
    extra_floors: Mapping[str, Mapping[str, float | None]] | None = None,
    evidence: Evidence | None = None,
    real_noise: bool = True,
    node_authentication: bool = False,
) -> dict[str, Any]:
    """Everything about a finished run, ready for JSON.

    Args:
        experiment: noise level resolved.
        transport: ``grpc+tls``, ``in_process`` or ``flower_simulation``.
        history: the checkpoint's entries, one a round.
        final: exact accuracies after the last round, by site and by the names of ``payloads.METRIC_NAMES``; only sites
            on public data report any.
        scores: noised counts of right answers on held-back images, by site (``dpfpl_common.privacy.counts``).
        num_classes: classes that each site trains on, where known.
        seconds: the whole run.
        seed: of a simulation.
        extra_floors: floors that only a simulation can compute, by name: ``local_only``,
            ``local_only_no_noise``, ``centralised``.
        evidence: class sums and votes, where the experiment has them.
        real_noise: whether the noise was the operating system's; seeded noise is named as such.
        node_authentication: whether every site proved its registered key to the server.
    """
    hidden = experiment.privacy.site_sample_rate < 1
    history = _published(experiment, history)
    before = history[0]["metrics"] if history else {}
    flags = verdicts(history)
    sites = [
        {
            "name": site,
            "local": final.get(site, {}).get("personal_local"),
            "neighbour": final.get(site, {}).get("personal_neighbour"),
            "unseen": final.get(site, {}).get("personal_unseen"),
            "all": final.get(site, {}).get("personal_all"),
            "global": final.get(site, {}).get("global_local"),
            "before": before.get(site, {}).get("personal_local"),
            "before_neighbour": before.get(site, {}).get("personal_neighbour"),
            "num_classes": num_classes.get(site),
            "flag": flags.get(site),
            "answers": None if hidden else sum(site in entry["sites"] for entry in history),
        }
        for site in experiment.sites
    ]
    baselines = floors_from_metrics(final) | dict(extra_floors or {})
    told = evidence is not None and experiment.uses_evidence and bool(evidence.rows or evidence.sums)
    counted = _counted(scores or {}, evidence)
    chosen = evidence.chosen(experiment) if evidence is not None and told else "prompt"
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "transport": transport,
        "node_authentication": node_authentication,
        "method": experiment.prompt.method,
        "config": to_table(experiment),
        "experiment_digest": experiment.digest(),
        "seed": seed,
        "versions": _versions(),
        "sites": sites,
        "accuracy": columns("personal", final.values()),
        **_scores(experiment, *counted, chosen),
        "baselines": baselines,
        "floors": baselines,
        "candidates": {name: columns(name, final.values()) for name in CANDIDATES} if told else {},
        "chosen": chosen,
        "evidence": evidence.facts(experiment) if evidence is not None and told else None,
        "privacy": privacy_statement(experiment, len(history), scored=counted[1] > 0, real_noise=real_noise),
        "rounds": [dict(entry) for entry in history],
        "seconds": round(seconds, 3),
    }
    return {**result, "verdict": verdict(result)}


def floors_from_metrics(final: Mapping[str, Metrics]) -> dict[str, dict[str, float | None]]:
    """The floors that the sites themselves measure: the plain text prompt, and the shared prompt alone."""
    named = (("zero_shot", "zero_shot"), ("global_only", "global"))
    return {name: columns(candidate, final.values()) for name, candidate in named}


def columns(candidate: str, metrics: Iterable[Metrics]) -> dict[str, float | None]:
    """Means over the sites of a candidate's accuracies, and its own accuracy at the worst site.

    Columns: ``local``, ``neighbour``, ``unseen`` and ``all``, as in ``payloads.METRIC_NAMES``, and ``worst_site``.
    """
    known = list(metrics)
    means = {column: mean(m.get(f"{candidate}_{column}") for m in known) for column in COLUMNS}
    local = (m.get(f"{candidate}_local") for m in known)
    return {**means, "worst_site": min((value for value in local if value is not None), default=None)}


def privacy_statement(
    experiment: Experiment, rounds: int, *, scored: bool = False, real_noise: bool = True
) -> dict[str, Any]:
    """The three epsilons with who they are against, and the events from which anyone can recompute them.

    The scores' events are about other examples than those of training: each epsilon is the larger of the two, which the
    scores' noise makes that of training.
    """
    steps = rounds * experiment.rounds.local_steps
    events = planned_events(experiment, steps)
    delta = experiment.privacy.target_delta
    other = {event.adversary: [event] for event in planned_score_events(experiment)} if scored else {}
    return {
        "epsilons": [
            {
                "adversary": event.adversary,
                "who": ADVERSARIES[event.adversary],
                "epsilon": json_epsilon(epsilon([event, *other.get(event.adversary, ())], delta)),
                "delta": delta,
                "unit": UNIT_NAMES[experiment.privacy.unit],
            }
            for event in events
        ],
        **_in_other_words(experiment, [events[0], *other.get(events[0].adversary, ())]),
        "events": [_event_table(event) for event in events],
        "held_back_events": [_event_table(event) for event in planned_score_events(experiment)] if scored else [],
        "trust": experiment.privacy.trust,
        "assumption": assumption(experiment),
        "accounting": experiment.privacy.accounting,
        "nominal_epsilon": experiment.privacy.target_epsilon if experiment.privacy.accounting == "paper" else None,
        "noise": "operating system" if real_noise else "seeded: a simulation, no protection of real data",
    }


def _in_other_words(experiment: Experiment, events: Sequence[PrivacyEvent]) -> dict[str, Any]:
    """What the capped epsilon means for several examples together, and for who tries to recognise one."""
    if experiment.privacy.unit == "site":
        return {"groups": [], "recognition": []}
    delta = experiment.privacy.target_delta
    whole = epsilon(events, delta)
    return {
        "groups": [
            {"examples": size, "epsilon": json_epsilon(group_epsilon(events, delta, size)), "delta": delta}
            for size in GROUPS
        ],
        "recognition": [
            {"false_positive_rate": rate, "true_positive_rate": round(true_positive_rate(whole, delta, rate), 6)}
            for rate in FALSE_POSITIVE_RATES
        ],
    }


def _published(experiment: Experiment, history: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The rounds without what is a function of one site's message where only sums carry the whole noise, and without
    anything that tells which sites were sampled: the epsilons count on that being secret.

    How much signal a single message holds, and the verdicts made of it, are for the operator's console alone.
    """
    if experiment.privacy.site_sample_rate >= 1:
        if experiment.privacy.trust == "local":
            return history
        return [{**entry, "signal": {}} for entry in history]
    secret: dict[str, Any] = {"seconds": None, "bytes_up": None, "bytes_down": None, "sites": [], "asked_again": []}
    by_site = ("dropped", "codes", "late", "duplicates", "signal", "metrics")
    return [{"round": entry["round"], **secret, **{name: {} for name in by_site}} for entry in history]


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are there; None if none is."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _counted(scores: Mapping[str, Sequence[float]], evidence: Evidence | None) -> tuple[Floats, int]:
    """The noised counts of all sites together, and how many sites are in them."""
    summed = None if evidence is None else evidence.sums.get("scores")
    if summed is not None:
        return summed.values, len(summed.sites)
    return np.sum([np.asarray(counts, dtype=np.float64) for counts in scores.values()], axis=0), len(scores)


def _scores(experiment: Experiment, totals: Floats, sites: int, chosen: str) -> dict[str, Any]:
    """What the counts say of each candidate, of its gain over the plain text and, with class sums, over what the sites
    could do alone. ``used`` marks the gains of what the sites use.
    """
    if not sites:
        return {"scores": [], "gains": []}
    names = candidates_of(experiment)
    multiplier = score_noise_multiplier(experiment) * noise_share(experiment)
    stddev = math.sqrt(sites) * count_noise_stddev(len(names), multiplier)
    rows = [
        {
            "candidate": candidate,
            "sites": sites,
            "right": round(score.right, 2),
            "of": round(score.of, 2),
            "value": score.value,
            "interval": [score.low, score.high],
        }
        for candidate, score in zip(names, scores_from(totals, stddev), strict=True)
    ]
    used = {"evidence": "both"}.get(chosen, chosen)
    pairs = [(name, "zero_shot") for name in names[1:]]
    pairs += [(name, "alone") for name in ("text", "evidence", "both") if "alone" in names]
    return {
        "scores": rows,
        "gains": [
            {"candidate": name, "over": over, "used": name == used, "value": value, "interval": [low, high]}
            for name, over in pairs
            for value, low, high in [gain(totals, stddev, names.index(name), names.index(over))]
        ],
    }


@lru_cache(maxsize=4096)
def event_epsilon(event: PrivacyEvent, delta: float) -> float | str:
    """The epsilon of one event, as result.json has it."""
    return json_epsilon(epsilon([event], delta))


def _event_table(event: PrivacyEvent) -> dict[str, Any]:
    table: dict[str, Any] = to_table(event)
    del table["part"]  # which examples they are about says the list that they are in
    return table


def _versions() -> dict[str, str]:
    versions = {}
    for name in OURS + THEIRS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


# What federating brought: over each site alone under the same promise, and over the plain text.
#
# A site that does as well alone has no reason to join, so a run's answer begins with this, and a gain counts as shown
# where its 95 % interval lies above zero, nowhere else.


NOTICEABLE = 0.01
"""Whose interval ends below one percentage point did not gain anything that anybody would notice."""

RIVALS = ("local_only", "local_only_evidence", "zero_shot")
"""What federating is compared with, by the names of ``baselines``: each site alone under the same promise, with what
its own vote chooses and with class vectors of its own; the plain text.

Where a run uses the plain text with each site's usual mix of classes, because no class was found or by the votes, that
is a rival as well, ``text``, in place of the plain text: a site has all of it alone, so the gain over it is 0.
"""

NORMAL_95 = 1.959963984540054
COUNTED = {"alone": "local_only_evidence", "zero_shot": "zero_shot", "text": "text"}
UNTRAINED = ("zero_shot", "text")


def verdict(result: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison, ready for JSON, from other keys of the same result.

    Exact accuracies where each site alone was measured on public data, else the sites' noised counts, else what exact
    accuracies there are.

    Returns:
        ``measured``: "accuracies", "counts" or "nothing". ``rivals``: of each its ``name``, and the gain in accuracy
        over it on a site's own images (``local``) and on the others' (``neighbour``), each with ``value`` and
        ``interval`` (None where nobody told how many images were tested). ``says``: "pays", "costs", "not_proven", or
        "unknown" where each site alone was not measured. ``before``, ``after``, ``interval``: accuracy on own images
        of the best rival there, of the federation, and the interval of the difference: what money is computed from.
    """
    exact = _from_accuracies(result)
    told = exact if any(rival["name"] not in UNTRAINED for rival in exact) else _from_counts(result) or exact
    measured = ("accuracies" if told is exact else "counts") if told else "nothing"
    own = [rival for rival in told if rival["local"] is not None]
    # What is used itself, ``text``, comes first among equals: over that there is no chance of a gain.
    best = min(own, key=lambda rival: (rival["local"]["value"], rival["name"] != "text"), default=None)
    interval = None if best is None else best["local"]["interval"]
    if interval is not None and any(rival["name"] == "text" for rival in own):
        interval = [interval[0], min(0.0, interval[1])]
    return {
        "measured": measured,
        "says": _says(told),
        "rivals": told,
        "before": None if best is None else best["local"]["before"],
        "after": None if best is None else best["local"]["before"] + best["local"]["value"],
        "interval": interval,
    }


def _says(rivals: list[dict[str, Any]]) -> str:
    intervals = [
        [rival[column]["interval"] for column in ("local", "neighbour") if rival[column] is not None]
        for rival in rivals
    ]
    known = [of_rival for of_rival in intervals if None not in of_rival]
    if any(max(high for _, high in found) < NOTICEABLE for found in known):
        return "costs"
    if not any(rival["name"] not in UNTRAINED for rival in rivals):
        return "unknown"
    if len(known) < len(rivals):
        return "not_proven"
    ahead = all(max(low for low, _ in found) > 0 and min(high for _, high in found) >= 0 for found in known)
    return "pays" if ahead else "not_proven"


def _from_accuracies(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    images = sum(site.get("test_images") or 0 for site in result["sites"])
    if result["config"].get("task", {}).get("kind") == "caption":
        images = 0  # word overlap is no share of right answers
    ours, rivals = result["accuracy"], []
    for name in RIVALS:
        if name == "zero_shot" and result["chosen"] == "text":
            gains = {column: _no_gain(ours.get(column)) for column in ("local", "neighbour")}
            name = "text"
        else:
            floor = result["baselines"].get(name, {})
            gains = {
                column: _difference(ours.get(column), floor.get(column), images) for column in ("local", "neighbour")
            }
        if gains["local"] is not None:
            rivals.append({"name": name, **gains})
    return rivals


def _no_gain(share: float | None) -> dict[str, Any] | None:
    """Over the very same answers, so there is no chance in it."""
    return None if share is None else {"before": share, "value": 0.0, "interval": [0.0, 0.0]}


def _difference(after: float | None, before: float | None, images: int) -> dict[str, Any] | None:
    """As of two independent samples of so many images: the same images were asked, so the interval is wide enough."""
    if after is None or before is None:
        return None
    half = NORMAL_95 * math.sqrt((after * (1 - after) + before * (1 - before)) / images) if images else None
    interval = None if half is None else [after - before - half, after - before + half]
    return {"before": before, "value": after - before, "interval": interval}


def _from_counts(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Gains of what is used, from noised counts of right answers on the sites' own held-back images."""
    values = {score["candidate"]: score["value"] for score in result["scores"]}
    gains = [(gain["over"], gain["value"], gain["interval"]) for gain in result["gains"] if gain["used"]]
    if result["chosen"] == "text":
        gains = [(over, value, interval) for over, value, interval in gains if over != "zero_shot"]
        gains.insert(0, ("text", 0.0, [0.0, 0.0]))
    return [
        {
            "name": COUNTED[over],
            "local": {"before": values[over], "value": value, "interval": interval},
            "neighbour": None,
        }
        for over, value, interval in gains
        if over in COUNTED and None not in (value, values.get(over))
    ]
