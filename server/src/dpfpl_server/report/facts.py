"""Everything that the report shows, computed from a result: the templates only put it into words."""

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dpfpl_common.config import build
from dpfpl_common.errors import DpfplError
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy_plan import planned_events
from dpfpl_server.report.charts import mean_curve, site_curve, ticks
from dpfpl_server.report.roi import RoiInputs, return_on_investment
from dpfpl_server.runs.plan import images_for_evidence
from dpfpl_server.runs.result import event_epsilon
from dpfpl_server.runs.words import noise_is_real, site_sample_rate

__all__ = ["facts", "wilson"]

Result = Mapping[str, Any]
SHOWN_STOPS = 4
SUPPOSED_COUNTS = (50, 200, 1000)
COARSE = 0.05
"""Sites' policies round to multiples of this."""

ASSUMED_WATTS = 100
NEARLY_CERTAIN = 0.95
LARGEST_EPSILON = 10.0
"""No larger one is proposed."""
Z95 = statistics.NormalDist().inv_cdf(0.975)
CURVES = {"own": "personal_local", "shared": "global_local", "others": "personal_neighbour"}


def facts(result: Result, roi: RoiInputs | None = None) -> dict[str, Any]:
    """What a page of the report is made of.

    Args:
        result: as ``build_result`` makes it.
        roi: the company's figures; None leaves the return on investment out.

    Raises:
        ConfigError: ``roi`` has no error rates, and neither has the run.
    """
    config, accuracy = result["config"], result["accuracy"]
    curves = {name: mean_curve(result, metric) for name, metric in CURVES.items()}
    site_curves = {
        site["name"]: {name: site_curve(result, site["name"], CURVES[name]) for name in ("own", "shared")}
        for site in result["sites"]
    }
    experiment = _experiment(result)
    counts_known = any(site.get("test_images") for site in result["sites"])
    return {
        "result": result,
        "name": config["name"],
        "unit": config["privacy"].get("unit", "example"),
        "target": config["privacy"].get("target_epsilon"),
        "once": config["privacy"].get("mechanism") == "one_shot",
        "sampled": site_sample_rate(result) < 1,
        "simulated": not noise_is_real(result),
        "nothing_found": bool((result["evidence"] or {}).get("warning")),
        "nothing_gained": result["chosen"] == "text",
        "best": next((r["name"] for r in result["verdict"]["rivals"] if _is_best(r, result["verdict"])), None),
        "gains_axis": _gains_axis(result),
        "change": _would_change(result, experiment),
        "evidence": images_for_evidence(experiment) if experiment else {},
        "sites": [_site(site, accuracy["worst_site"], counts_known) for site in result["sites"]],
        "site_axis": _axis(site[key] for site in result["sites"] for key in ("before", "local")),
        "reported": any(site[key] is not None for site in result["sites"] for key in ("before", "local", "global")),
        "missing": any(
            site[key] is None for site in result["sites"] for key in ("before", "local", "global", "neighbour")
        ),
        "counts_known": counts_known,
        "supposed": _supposed(accuracy["local"]),
        "coarse": _coarse(result),
        "baselines": _baselines(result),
        "baselines_axis": _axis(row["local"] for row in _baselines(result)),
        "curves": curves,
        "site_curves": site_curves,
        "curves_axis": _axis(
            value for lines in site_curves.values() for line in lines.values() for value in line.values()
        ),
        "stops": _stops(result, experiment),
        "rounds": [{**entry, "after": _mean_after(result, entry["round"])} for entry in result["rounds"]],
        "dropped": [
            {"round": entry["round"], "site": site, "reason": reason}
            for entry in result["rounds"]
            for site, reason in sorted(entry.get("dropped", {}).items())
        ],
        "received": [_received(result, site) for site in result["sites"]],
        "cost": _cost(result),
        "claims": _claims(result["privacy"]["epsilons"]),
        "no_noise": all(event["noise_multiplier"] == 0 for event in result["privacy"]["events"]),
        "audit": result.get("audit") or [],
        "settings": dict(_flat(config)),
        "roi": None if roi is None else _with_months(return_on_investment(result, roi)),
    }


def _experiment(result: Result) -> Experiment | None:
    """The experiment, or None where this version cannot plan with its configuration."""
    try:
        return build(Experiment, result["config"], "result.json config")
    except (DpfplError, ValueError):
        return None


def _is_best(rival: Mapping[str, Any], verdict: Mapping[str, Any]) -> bool:
    return rival["local"] is not None and rival["local"]["before"] == verdict["before"]


def _axis(values: Iterable[float | None]) -> list[float]:
    """Ticks of a cut axis; empty where nothing is there to be drawn."""
    there = _there(values)
    return ticks(there) if there else []


def _gains_axis(result: Result) -> list[float]:
    """Ticks that span zero, the gains and the ends of their intervals."""
    gains = [rival[key] for rival in result["verdict"]["rivals"] for key in ("local", "neighbour") if rival[key]]
    ends = [end for gain in gains for end in (gain["value"], *(gain["interval"] or ()))]
    return ticks([0.0, *ends], share=False) if gains else []


def _with_months(roi: dict[str, Any]) -> dict[str, Any]:
    """With the net amounts after 0, 1, 2, ... months, one-off cost included, by case."""
    months = range(roi["months"] + 1)
    cash = {
        name: {month: month * case["monthly_net"] - case["one_off_cost"] for month in months}
        for name, case in roi["cases"].items()
    }
    amounts = [0.0, *(amount for line in cash.values() for amount in line.values())]
    return {**roi, "cash": cash, "cash_axis": ticks(amounts, share=False)}


def _site(site: Mapping[str, Any], worst: float | None, counts_known: bool) -> dict[str, Any]:
    known = counts_known and site["local"] is not None and site.get("test_images")
    return {
        **site,
        "weakest": site["local"] is not None and site["local"] == worst,
        "change": _less(site["local"], site["before"]),
        "interval": wilson(site["local"], site["test_images"]) if known else None,
    }


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share that was observed in ``count`` independent tries.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    middle = share + Z95**2 / (2 * count)
    spread = Z95 * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _supposed(accuracy: float | None) -> list[dict[str, Any]]:
    """How wide an interval would be, by the number of test images behind it."""
    if accuracy is None:
        return []
    found = [(count, wilson(accuracy, count)) for count in SUPPOSED_COUNTS]
    return [{"images": count, "interval": ends, "width": ends[1] - ends[0]} for count, ends in found]


def _coarse(result: Result) -> bool:
    values = [s[key] for s in result["sites"] for key in ("before", "local", "global") if s[key] is not None]
    return bool(values) and all(abs(v / COARSE - round(v / COARSE)) < 1e-9 for v in values)


def _baselines(result: Result) -> list[dict[str, Any]]:
    """The federation first, then what it is compared with, each with how far the federation is ahead of it."""
    ours = result["accuracy"]
    rows = [{"name": "ours", **{key: ours[key] for key in ("local", "worst_site", "neighbour")}}]
    rows += [
        {"name": name, **{key: row.get(key) for key in ("local", "worst_site", "neighbour")}}
        for name, row in result["baselines"].items()
    ]
    for row in rows:
        ahead = {"ahead": "local", "ahead_neighbour": "neighbour"}
        row |= {key: None if row is rows[0] else _less(ours[of], row[of]) for key, of in ahead.items()}
    return rows


def _mean_after(result: Result, completed: int) -> float | None:
    """Mean accuracy on own classes after so many rounds.

    A site evaluates the prompt as it arrives, so what belongs to ``completed`` rounds stands in the next one.
    """
    if completed >= len(result["rounds"]):
        return result["accuracy"]["local"]  # type: ignore[no-any-return]
    return mean_curve(result, CURVES["own"]).get(completed)


def _stops(result: Result, experiment: Experiment | None) -> list[dict[str, Any]]:
    """Epsilon by adversary and accuracy, had the run stopped earlier; empty where rounds cost nothing (one_shot)."""
    completed = len(result["rounds"])
    if experiment is None or not completed or experiment.privacy.mechanism == "one_shot":
        return []
    stops = sorted({max(1, round(completed * part / SHOWN_STOPS)) for part in range(1, SHOWN_STOPS)} - {completed})
    steps, delta = experiment.rounds.local_steps, experiment.privacy.target_delta
    rows = [{e.adversary: event_epsilon(e, delta) for e in planned_events(experiment, stop * steps)} for stop in stops]
    rows.append({entry["adversary"]: entry["epsilon"] for entry in result["privacy"]["epsilons"]})
    return [
        {"rounds": stop, "own": _mean_after(result, stop), **row}
        for stop, row in zip([*stops, completed], rows, strict=True)
    ]


def _would_change(result: Result, experiment: Experiment | None) -> dict[str, Any]:
    """How many times as many images would just decide the verdict, if every gain stayed as it was measured.

    The width of an interval falls with the square root of the number of images where chance makes the uncertainty
    ("accuracies"), and with the number of images where noise makes it ("counts"). For counts it also falls with the
    square root of the number of sites, and with less noise.

    Returns:
        ``images``: the factor, below 1 where the gain is shown already; None where no number of images would do, as
        some rival is not behind. ``sites`` and ``epsilon``, of counts: the factor, and an epsilon whose noise is that
        much smaller (None above 10). ``behind``: names of the rivals that the federation is not ahead of.
    """
    verdict = result["verdict"]
    wider = []
    for rival in verdict["rivals"]:
        found = [rival[key] for key in ("local", "neighbour") if rival[key] is not None and rival[key]["interval"]]
        wider.append(min((_width(d) / d["value"] for d in found if d["value"] > 0), default=math.inf))
        if any(d["value"] < 0 and wider[-1] > _width(d) / -d["value"] for d in found):
            wider[-1] = math.inf  # what is worse there shows before what is better here
    behind = [rival["name"] for rival, width in zip(verdict["rivals"], wider, strict=True) if width == math.inf]
    if behind or not wider or verdict["interval"] is None:
        return {"images": None, "sites": None, "epsilon": None, "behind": behind if verdict["interval"] else []}
    most = max(wider)
    if verdict["measured"] == "accuracies":
        return {"images": most**2, "sites": None, "epsilon": None, "behind": []}
    return {"images": most, "sites": most**2, "epsilon": _with_less_noise(experiment, most), "behind": []}


def _width(difference: Mapping[str, Any]) -> float:
    low, high = difference["interval"]
    return float(high - low) / 2


def _with_less_noise(experiment: Experiment | None, factor: float) -> float | None:
    """The epsilon against a prompt's recipient, were the noise so many times smaller."""
    if experiment is None or not experiment.privacy.noise_multiplier:
        return None
    privacy = replace(experiment.privacy, noise_multiplier=experiment.privacy.noise_multiplier / factor)
    try:
        event = planned_events(replace(experiment, privacy=privacy))[0]
        found = epsilon([event], privacy.target_delta)
    except (DpfplError, ValueError):
        return None
    return found if found <= LARGEST_EPSILON else None


def _received(result: Result, site: Mapping[str, Any]) -> dict[str, Any]:
    name, rounds = site["name"], result["rounds"]
    return {
        "name": name,
        "answers": site["answers"],
        "rejected": sum(name in entry["dropped"] for entry in rounds),
        "values": sum(len(entry["metrics"].get(name, ())) for entry in rounds),
    }


def _cost(result: Result) -> dict[str, Any]:
    """Seconds, bytes, replies; None where which sites were drawn is secret."""
    rounds = result["rounds"]
    computing = _total(None if entry["seconds"] is None else entry["seconds"] * len(entry["sites"]) for entry in rounds)
    return {
        "seconds": result["seconds"],
        "round": statistics.median(seconds) if (seconds := _there(entry["seconds"] for entry in rounds)) else None,
        "up": _total(entry["bytes_up"] for entry in rounds),
        "down": _total(entry["bytes_down"] for entry in rounds),
        "messages": sum(len(entry["sites"]) for entry in rounds),
        "dropped": sum(len(entry["dropped"]) for entry in rounds),
        "computing": computing,
        "watts": ASSUMED_WATTS,
        "energy": computing * ASSUMED_WATTS / 3600,
    }


def _there(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _total(values: Iterable[float | None]) -> float:
    return sum(_there(values))


def _claims(epsilons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each epsilon once, with the adversaries that it is against and the largest certainty that it leaves to who was
    undecided (one half) before; delta set aside.
    """
    found: dict[Any, dict[str, Any]] = {}
    for entry in epsilons:
        value = entry["epsilon"]
        certainty = None if value == "infinite" else 1 / (1 + math.exp(-value))
        loose = certainty is not None and certainty > NEARLY_CERTAIN
        claim = {"epsilon": value, "delta": entry["delta"], "certainty": certainty, "loose": loose, "against": []}
        found.setdefault(value, claim)["against"].append(entry)
    return list(found.values())


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, None if value is None else json.dumps(value, ensure_ascii=False)
