"""The answer in plain words: what the federation brought, and what it cost."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dpfpl_server.report_text import (
    FLOORS,
    amount,
    bytes_text,
    epsilon_text,
    exact,
    noise_is_real,
    part_taken,
    percent,
    printable,
    seconds_text,
)

__all__ = ["gain_sentences", "privacy_sentences", "traffic_sentences"]


def gain_sentences(result: Mapping[str, Any]) -> list[str]:
    """What the federation brought: accuracy before and after, against each floor, and the worst site."""
    rounds, sites = len(result["rounds"]), result["sites"]
    if not rounds:
        return ["No round was completed, so the federation brought nothing yet."]
    opening = f"{amount(len(sites), 'site')} trained together for {amount(rounds, 'round')}"
    paired = [site for site in sites if site["local"] is not None and site["before"] is not None]
    if not paired:
        return [f"{opening}. No site reported its accuracy both before and after, so the gain cannot be said."]
    before = statistics.fmean(site["before"] for site in paired)
    after = statistics.fmean(site["local"] for site in paired)
    whose = "" if len(paired) == len(sites) else f" (of the {amount(len(paired), 'site')} that reported both)"
    sentences = [
        f"{opening}. The mean accuracy on a site's own classes{whose} {_way(before, after)}.",
        *_against_floors(result),
        *_on_others_classes(sites),
    ]
    worst = result["accuracy"]["worst_site"]
    names = [printable(site["name"]) for site in sites if site["local"] is not None and site["local"] == worst]
    if worst is not None:
        sentences.append(f"The weakest site is {' and '.join(names)} with {percent(worst)}.")
    return sentences


def _on_others_classes(sites: Sequence[Mapping[str, Any]]) -> list[str]:
    """What personalising did to the classes of the other sites, which it usually costs something."""
    paired = [s for s in sites if s["neighbour"] is not None and s.get("before_neighbour") is not None]
    if not paired:
        return []
    before = statistics.fmean(site["before_neighbour"] for site in paired)
    after = statistics.fmean(site["neighbour"] for site in paired)
    return [f"On the other sites' classes the same prompts' mean accuracy {_way(before, after)}."]


def privacy_sentences(result: Mapping[str, Any]) -> list[str]:
    """What it cost in privacy; numbers only from the accountant, for the mechanism that ran."""
    privacy = result["privacy"]
    if not result["rounds"]:
        return ["No completed round, so there is no training to account for."]
    if all(event["noise_multiplier"] == 0 for event in privacy["events"]):
        return ["No noise was added: no privacy is claimed, every epsilon is infinite."]
    epsilons = privacy["epsilons"]
    claims = [f"{epsilon_text(entry['epsilon'])} against {_who(entry)}" for entry in epsilons]
    deltas = " and ".join(sorted({exact(entry["delta"]) for entry in epsilons}))
    units = " and ".join(sorted({printable(entry["unit"]) for entry in epsilons}))
    sentences = [
        f"In privacy (a smaller epsilon is stronger), the accountant's epsilon for a site {part_taken(result)} is "
        f"{'; '.join(claims)}; delta is {deltas}, the unit is {units}."
    ]
    if any(entry["epsilon"] == "infinite" for entry in epsilons):
        sentences.append("An infinite epsilon means that nothing is promised against that party.")
    if not noise_is_real(result):
        sentences = [
            "This run was a simulation: its noise came from a seed and protects no real data. "
            "The epsilons below are what the same mechanism is charged with real noise.",
            *sentences,
        ]
    return sentences


def traffic_sentences(result: Mapping[str, Any]) -> list[str]:
    """What it cost in time and in bytes, and how often a site was missing."""
    rounds = result["rounds"]
    if not rounds:
        return []
    up, down = (_median(rounds, key) for key in ("bytes_up", "bytes_down"))
    sentences = [
        f"A round took {seconds_text(_median(rounds, 'seconds'))} and moved {bytes_text(up)} from and "
        f"{bytes_text(down)} to all sites together (medians); the whole run took {seconds_text(result['seconds'])}."
    ]
    dropped = sum(len(entry.get("dropped", {})) for entry in rounds)
    if dropped:
        sentences.append(f"A site's answer was missing or not accepted {amount(dropped, 'time')}.")
    return sentences


def _against_floors(result: Mapping[str, Any]) -> list[str]:
    local = result["accuracy"]["local"]
    parts = []
    for key, values in result["floors"].items():
        floor = values.get("local")
        if floor is None or local is None:
            continue
        name = FLOORS.get(key, (printable(key), ""))[0]
        difference = round(100 * (local - floor), 1)
        where = "above" if difference > 0 else "below"
        parts.append(f"{abs(difference):.1f} points {where} “{name}”" if difference else f"level with “{name}”")
    return [f"That is {_listed(parts)}."] if parts else []


def _way(before: float, after: float) -> str:
    difference = round(100 * (after - before), 1)
    if not difference:
        return f"stayed at {percent(after)}"
    verb = "rose" if difference > 0 else "fell"
    return f"{verb} from {percent(before)} to {percent(after)} ({difference:+.1f} points)"


def _who(entry: Mapping[str, Any]) -> str:
    return printable(entry.get("who", entry["adversary"]))


def _median(rounds: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [entry[key] for entry in rounds if entry.get(key) is not None]
    return statistics.median(values) if values else None


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
