"""The answer in three sentences: what the pilot brought, what it cost in privacy, what it cost otherwise."""

from collections.abc import Mapping
from typing import Any

from dpfpl_server.report.facts import called, paired_sites, site_sample_rate
from dpfpl_server.report.figures import Figures, is_loose, key_path
from dpfpl_server.report.markup import Html, text
from dpfpl_server.report.roi import RoiCase
from dpfpl_server.report.texts import floor_name, unit_name, who
from dpfpl_server.runs.words import noise_is_real

__all__ = ["cost_sentence", "gain_sentence", "privacy_sentence"]

Result = Mapping[str, Any]
NOTICEABLE = 0.01
"""A difference below one percentage point is not called one: it is one run, and counts are not known."""


def gain_sentence(result: Result, figures: Figures) -> Html:
    """Accuracy before and after, the strongest comparison, and the weakest site."""
    texts = figures.texts
    if not result["rounds"]:
        return texts("answer.no_round")
    sites, rounds = figures.count("site", "size(sites)"), figures.count("round", "size(rounds)")
    paired = paired_sites(result)
    if not paired:
        return texts("answer.no_gain", sites=sites, rounds=rounds)
    before = called("mean", [f"sites[{i}].before" for i in paired])
    after = called("mean", [f"sites[{i}].local" for i in paired])
    whose = ""
    if len(paired) < len(result["sites"]):
        shown = figures.count("site", called("count", [f"sites[{i}].before + sites[{i}].local" for i in paired]))
        whose = texts("answer.whose", sites=shown)
    best = strongest_floor(result)
    return texts(
        "answer.gain",
        verdict=texts(f"answer.verdict_{_verdict(result, figures.of(before), figures.of(after), best)}"),
        sites=sites,
        rounds=rounds,
        whose=whose,
        before=figures.percent(before),
        after=figures.percent(after),
        points=figures.points(f"{after} - {before}"),
        others=_others(result, figures),
        floor=""
        if best is None
        else texts(
            "answer.floor",
            name=floor_name(texts, best),
            floor=figures.percent(f"{key_path('floors', best)}.local"),
        ),
        worst=texts(
            "answer.worst",
            names=texts.listed([Html(text(name)) for name in weakest(result)]),
            worst=figures.percent("accuracy.worst_site"),
        ),
    )


def _others(result: Result, figures: Figures) -> Html:
    """What personalising did to the classes of the other sites, which it usually costs something."""
    paired = paired_sites(result, "before_neighbour", "neighbour")
    if not paired:
        return Html("")
    before, after = (
        figures.percent(called("mean", [f"sites[{i}].{key}" for i in paired]))
        for key in ("before_neighbour", "neighbour")
    )
    return figures.texts("answer.others", before=before, after=after)


def strongest_floor(result: Result) -> str | None:
    """Key of the comparison with the highest accuracy on own classes."""
    known = {key: floor.get("local") for key, floor in result["floors"].items()}
    present = {key: value for key, value in known.items() if value is not None}
    return max(present, key=lambda key: present[key]) if present else None


def weakest(result: Result) -> list[str]:
    """Names of the sites with the lowest accuracy on their own classes."""
    worst = result["accuracy"]["worst_site"]
    return [s["name"] for s in result["sites"] if s["local"] is not None and s["local"] == worst]


def _verdict(result: Result, before: float, after: float, best: str | None) -> str:
    if after - before < NOTICEABLE:
        return "no_help"
    floor = result["floors"][best]["local"] if best is not None else None
    local = result["accuracy"]["local"]
    return "beyond" if floor is None or local - floor >= NOTICEABLE else "not_beyond"


def privacy_sentence(result: Result, figures: Figures) -> Html:
    """The epsilons, each with whom it is against; numbers only from the accountant, for the mechanism that ran."""
    texts, privacy = figures.texts, result["privacy"]
    if not result["rounds"]:
        return texts("answer.no_accounting")
    if all(event["noise_multiplier"] == 0 for event in privacy["events"]):
        return texts("answer.no_noise")
    claims = [
        texts(
            "answer.claim", epsilon=figures.epsilon(f"privacy.epsilons[{i}].epsilon"), who=who(texts, entry, short=True)
        )
        for i, entry in enumerate(privacy["epsilons"])
    ]
    loose = any(is_loose(figures, f"privacy.epsilons[{i}].epsilon") for i in range(len(claims)))
    infinite = any(entry["epsilon"] == "infinite" for entry in privacy["epsilons"])
    return texts(
        "answer.privacy",
        simulated=texts("answer.real" if noise_is_real(result) else "answer.simulated"),
        unit=unit_name(texts, result, brief=True),
        claims=texts.listed(claims),
        loose=texts("answer.loose") if loose else "",
        infinite=texts("answer.infinite") if infinite else "",
    )


def cost_sentence(result: Result, figures: Figures, roi: RoiCase | None) -> Html:
    """Time, traffic, missing answers, and what the company's own figures make of it."""
    texts = figures.texts
    worth = _worth(figures, roi)
    if site_sample_rate(result) < 1:
        return texts("answer.cost_hidden", seconds=figures.seconds("seconds"), roi=worth)
    rounds = range(len(result["rounds"]))
    missing = called("sum", [f"size(rounds[{i}].dropped)" for i in rounds])
    return texts(
        "answer.cost",
        seconds=figures.seconds("seconds"),
        up=figures.bytes(called("sum", [f"rounds[{i}].bytes_up" for i in rounds])),
        down=figures.bytes(called("sum", [f"rounds[{i}].bytes_down" for i in rounds])),
        dropped=texts("answer.dropped", times=figures.count("time", missing))
        if figures.of(missing)
        else texts("answer.dropped_none"),
        roi=worth,
    )


def _worth(figures: Figures, roi: RoiCase | None) -> Html:
    texts = figures.texts
    if roi is None:
        return texts("answer.roi_none")
    month = roi.scenarios["expected"].break_even_month
    if month is None:
        return texts("answer.roi_never")
    if month == 0:
        return texts("answer.roi_at_once")
    shown = texts("format.month", n=figures.number("roi.expected.break_even_month"))
    if month > roi.inputs.months:
        return texts("answer.roi_late", months=figures.number("roi.expected.months"), month=shown)
    return texts("answer.roi_month", month=shown)
