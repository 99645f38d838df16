"""The answer: what the federation brought, what it cost in privacy, what it cost otherwise."""

from collections.abc import Mapping
from typing import Any

from dpfpl_server.report.facts import called, site_sample_rate
from dpfpl_server.report.figures import Figures, is_loose
from dpfpl_server.report.markup import Html, text
from dpfpl_server.report.roi import RoiCase
from dpfpl_server.report.texts import floor_name, unit_name, who
from dpfpl_server.runs.words import noise_is_real

__all__ = ["cost_sentence", "gain_sentence", "privacy_sentence"]

Result = Mapping[str, Any]


def gain_sentence(result: Result, figures: Figures) -> Html:
    """What federating brought over each site alone and over the plain text, and the weakest site."""
    texts, verdict = figures.texts, result["verdict"]
    if not result["rounds"]:
        return texts("answer.no_round")
    sites, rounds = figures.count("site", "size(sites)"), figures.count("round", "size(rounds)")
    if verdict["measured"] == "nothing":
        return texts("answer.no_gain", sites=sites, rounds=rounds)
    worst = (
        ""
        if result["accuracy"]["worst_site"] is None
        else texts(
            "answer.worst",
            names=texts.listed([Html(text(name)) for name in weakest(result)]),
            worst=figures.percent("accuracy.worst_site"),
        )
    )
    return texts(
        "answer.gain",
        verdict=texts(f"answer.verdict_{verdict['says']}"),
        sites=sites,
        rounds=rounds,
        gains=Html(
            texts.space.join(_over(figures, f"verdict.rivals[{i}]", r) for i, r in enumerate(verdict["rivals"]))
        ),
        after=figures.percent("verdict.after"),
        worst=worst,
        counted=texts("answer.counted") if verdict["measured"] == "counts" else "",
    )


def _over(figures: Figures, at: str, rival: Mapping[str, Any]) -> Html:
    """The gain over one rival, on own images and on the others'."""
    texts = figures.texts
    own = {"points": figures.points(f"{at}.local.value"), "interval": _interval(figures, f"{at}.local", rival["local"])}
    others = (
        ""
        if rival["neighbour"] is None
        else texts(
            "answer.over_others",
            points=figures.points(f"{at}.neighbour.value"),
            interval=_interval(figures, f"{at}.neighbour", rival["neighbour"]),
        )
    )
    return texts("answer.over", name=floor_name(texts, rival["name"]), **own, others=others)


def _interval(figures: Figures, at: str, difference: Mapping[str, Any]) -> Html | str:
    if difference["interval"] is None:
        return ""
    low, high = (figures.points(f"{at}.interval[{end}]") for end in (0, 1))
    return figures.texts("answer.interval", low=low, high=high)


def weakest(result: Result) -> list[str]:
    """Names of the sites with the lowest accuracy on their own classes."""
    worst = result["accuracy"]["worst_site"]
    return [s["name"] for s in result["sites"] if s["local"] is not None and s["local"] == worst]


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
    if roi is not None and roi.rate_formulas and result["verdict"]["says"] != "pays":
        worth = texts("answer.roi_unproven", worth=worth)
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
