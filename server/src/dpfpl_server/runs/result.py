"""result.json: what a run brought and what it cost, deployed or simulated."""

from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from dpfpl_common.config import to_table
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.accounting import PrivacyEvent, epsilon, json_epsilon
from dpfpl_common.privacy_plan import ADVERSARIES, UNIT_NAMES, planned_events
from dpfpl_server.federation.evidence import Evidence
from dpfpl_server.federation.replies import verdicts

__all__ = ["build_result", "columns", "floors_from_metrics", "privacy_statement"]

COLUMNS = ("local", "neighbour", "unseen", "all")
CANDIDATES = ("zero_shot", "text", "prompt", "evidence", "both")
"""What is told apart with evidence: plain text without and with the site's usual mix of classes, the personalised
prompt, class vectors from the plain text, and from the learned shared prompt."""

OURS = ("dpfpl-common", "dpfpl-client", "dpfpl-server", "dpfpl-bench")
THEIRS = ("flwr", "grpcio", "dp-accounting", "numpy", "torch", "transformers")
Metrics = Mapping[str, float]


def build_result(
    experiment: Experiment,
    *,
    transport: str,
    history: Sequence[Mapping[str, Any]],
    final: Mapping[str, Metrics],
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
        final: accuracies after the last round, by site and by the names of ``payload.METRIC_NAMES``.
        num_classes: classes that each site trains on, where known.
        seconds: the whole run.
        seed: of a simulation.
        extra_floors: floors that only a simulation can compute, by name: ``local_only``,
            ``local_only_no_noise``, ``centralised``.
        evidence: class sums and votes, where the experiment has them.
        real_noise: whether the noise was the operating system's; seeded noise is named as such.
        node_authentication: whether every site proved its registered key to the server.
    """
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
        }
        for site in experiment.sites
    ]
    baselines = floors_from_metrics(final) | dict(extra_floors or {})
    told = evidence is not None and experiment.uses_evidence and bool(evidence.rows)
    return {
        "transport": transport,
        "node_authentication": node_authentication,
        "method": experiment.prompt.method,
        "config": to_table(experiment),
        "experiment_digest": experiment.digest(),
        "seed": seed,
        "versions": _versions(),
        "sites": sites,
        "accuracy": columns("personal", final.values()),
        "baselines": baselines,
        "floors": baselines,
        "candidates": {name: columns(name, final.values()) for name in CANDIDATES} if told else {},
        "chosen": evidence.chosen(experiment) if evidence is not None and told else "prompt",
        "evidence": evidence.facts(experiment) if evidence is not None and told else None,
        "privacy": privacy_statement(experiment, len(history), real_noise=real_noise),
        "rounds": [dict(entry) for entry in history],
        "seconds": round(seconds, 3),
    }


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


def privacy_statement(experiment: Experiment, rounds: int, *, real_noise: bool = True) -> dict[str, Any]:
    """The three epsilons with who they are against, and the events from which anyone can recompute them."""
    steps = rounds * experiment.rounds.local_steps
    events = planned_events(experiment, steps)
    delta = experiment.privacy.target_delta
    return {
        "epsilons": [
            {
                "adversary": event.adversary,
                "who": ADVERSARIES[event.adversary],
                "epsilon": json_epsilon(epsilon([event], delta)),
                "delta": delta,
                "unit": UNIT_NAMES[experiment.privacy.unit],
            }
            for event in events
        ],
        "events": [_event_table(event) for event in events],
        "trust": experiment.privacy.trust,
        "accounting": experiment.privacy.accounting,
        "nominal_epsilon": experiment.privacy.target_epsilon if experiment.privacy.accounting == "paper" else None,
        "noise": "operating system" if real_noise else "seeded: a simulation, no protection of real data",
    }


def _published(experiment: Experiment, history: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The rounds without anything that tells which sites were sampled: the epsilons count on that being secret."""
    if experiment.privacy.site_sample_rate >= 1:
        return history
    secret: dict[str, Any] = {"seconds": None, "bytes_up": None, "bytes_down": None, "sites": [], "asked_again": []}
    by_site = ("dropped", "codes", "late", "duplicates", "signal", "site_seconds", "metrics")
    return [{"round": entry["round"], **secret, **{name: {} for name in by_site}} for entry in history]


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are there; None if none is."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _event_table(event: PrivacyEvent) -> dict[str, Any]:
    table: dict[str, Any] = to_table(event)
    return table


def _versions() -> dict[str, str]:
    versions = {}
    for name in OURS + THEIRS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
