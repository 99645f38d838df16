"""What running it took, and the record of the rounds."""

from collections.abc import Mapping
from typing import Any

from dpfpl_server.markup import Html, details, paragraph, section, table
from dpfpl_server.report.facts import called, mean_after, site_sample_rate
from dpfpl_server.report.figures import Figures, key_path

__all__ = ["cost_section", "rounds_section"]

Result = Mapping[str, Any]
MAX_OPEN_ROUNDS = 12
ASSUMED_WATTS = 100


def cost_section(result: Result, figures: Figures) -> Html:
    """Time, traffic, computing, and energy under a stated assumption."""
    texts, rounds = figures.texts, range(len(result["rounds"]))
    if not rounds:
        return Html("")
    rows = [(texts("cost.whole"), figures.seconds("seconds"))]
    if site_sample_rate(result) >= 1:
        seconds = [
            key_path(f"rounds[{i}].site_seconds", name)
            for i in rounds
            for name in result["rounds"][i].get("site_seconds", ())
        ]
        watts = figures.number(str(ASSUMED_WATTS))
        rows += [
            (texts("cost.round"), figures.seconds(called("median", [f"rounds[{i}].seconds" for i in rounds]))),
            (texts("cost.up"), figures.bytes(called("sum", [f"rounds[{i}].bytes_up" for i in rounds]))),
            (texts("cost.down"), figures.bytes(called("sum", [f"rounds[{i}].bytes_down" for i in rounds]))),
            (texts("cost.compute"), figures.seconds(called("sum", seconds))),
            (
                texts("cost.energy", watts=watts),
                figures.energy(f"{called('sum', seconds)} * {ASSUMED_WATTS} / 3600"),
            ),
        ]
    return section(
        texts("cost.title"),
        table(texts("cost.caption"), [texts("cost.what"), texts("cost.value")], rows, (1,)),
        paragraph([texts("cost.note")], "quiet"),
    )


def rounds_section(result: Result, figures: Figures) -> Html:
    """Seconds and bytes of each round, and who was dropped why."""
    texts, rounds = figures.texts, result["rounds"]
    if not rounds:
        return Html("")
    rows = [
        (
            figures.number(f"rounds[{i}].round"),
            figures.seconds(f"rounds[{i}].seconds"),
            figures.bytes(f"rounds[{i}].bytes_up"),
            figures.bytes(f"rounds[{i}].bytes_down"),
            figures.number(f"size(rounds[{i}].sites)"),
            figures.percent(mean_after(result, entry["round"])),
        )
        for i, entry in enumerate(rounds)
    ]
    heads = [texts(f"details.{key}") for key in ("round", "time", "up", "down", "sites", "own")]
    listing = table(texts("details.rounds_caption"), heads, rows, range(1, 6), texts.plain("format.not_available"))
    dropped = [
        (figures.number(f"rounds[{i}].round"), site, reason)
        for i, entry in enumerate(rounds)
        for site, reason in sorted(entry.get("dropped", {}).items())
    ]
    folded = details(texts("details.all_rounds", rounds=figures.count("round", "size(rounds)")), listing)
    return section(
        texts("details.rounds_title"),
        listing if len(rounds) <= MAX_OPEN_ROUNDS else folded,
        table(
            texts("details.dropped_caption"),
            [texts("details.round"), texts("accuracy.site"), texts("details.reason")],
            dropped,
        )
        if dropped
        else paragraph([_attendance(result, figures)], "quiet"),
        _flags(result, figures),
    )


def _flags(result: Result, figures: Figures) -> Html:
    """The sites whose messages look as if they took no part; see ``dpfpl_server.signals``."""
    texts = figures.texts
    rows = [(site["name"], texts(f"details.flag_{site['flag']}")) for site in result["sites"] if site.get("flag")]
    if not rows:
        return Html("")
    return table(texts("details.flags_caption"), [texts("accuracy.site"), texts("details.reason")], rows)


def _attendance(result: Result, figures: Figures) -> Html:
    if site_sample_rate(result) < 1:
        return figures.texts("details.attendance_drawn", rate=figures.exact("config.privacy.site_sample_rate"))
    return figures.texts("details.attendance")
