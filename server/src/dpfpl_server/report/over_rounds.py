"""Accuracy over the rounds, and over the epsilon that each number of rounds costs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dpfpl_server.charts import Frame, Line, legend, line_chart
from dpfpl_server.curves import mean_curve, site_curve
from dpfpl_server.markup import Html, details, paragraph, section, table, text
from dpfpl_server.report.facts import mean_after
from dpfpl_server.report.figures import Figures

__all__ = ["rounds_curves_section", "stopped_earlier_section"]

Result = Mapping[str, Any]
MAX_OPEN_SITES = 12
STYLES = (("personal_local", "own", 0), ("global_local", "shared", 1), ("personal_neighbour", "others", 2))


def rounds_curves_section(result: Result, figures: Figures) -> Html:
    """Mean and per-site accuracies over the rounds."""
    texts = figures.texts
    rounds = len(result["rounds"])
    if not rounds:
        return Html("")
    means = [Line(texts.plain(f"rounds.{name}"), mean_curve(result, metric), style) for metric, name, style in STYLES]
    if not any(line.points for line in means):
        return section(texts("rounds.title"), paragraph([texts("rounds.none"), texts("accuracy.missing")], "quiet"))
    axis = texts.plain("rounds.axis")
    chart = line_chart(texts.plain("rounds.chart"), means, Frame.around(means, rounds), axis)
    small = _per_site(result, figures, rounds, axis)
    return section(
        texts("rounds.title"),
        f'<div class="panel">{chart}{legend(means, texts.plain("rounds.not_reported"))}</div>',
        paragraph([texts("rounds.mean_note")], "quiet"),
        small if len(result["sites"]) <= MAX_OPEN_SITES else details(texts("rounds.per_site"), small),
    )


def _per_site(result: Result, figures: Figures, rounds: int, axis: str) -> Html:
    texts = figures.texts
    lines_of = {
        site["name"]: [
            Line(texts.plain(f"rounds.{name}"), site_curve(result, site["name"], metric), style)
            for metric, name, style in STYLES[:2]
        ]
        for site in result["sites"]
    }
    frame = Frame.around([line for lines in lines_of.values() for line in lines], rounds)
    frame = dataclasses.replace(frame, width=300, height=230, left=58, bottom=54, font=18)
    drawings = "\n".join(
        f"<figure><h3>{text(name)}</h3>"
        f"{line_chart(texts.plain('rounds.site_chart', site=name), lines, frame, axis)}</figure>"
        for name, lines in lines_of.items()
        if any(line.points for line in lines)
    )
    return Html(f'<div class="small">{drawings}</div>')


def stopped_earlier_section(result: Result, figures: Figures) -> Html:
    """Epsilon and accuracy, had the run stopped after fewer rounds: how both grow together."""
    texts = figures.texts
    stops = figures.values.get("stopped_after") or []
    if not stops:
        return Html("")
    rows = []
    for i, stop in enumerate(stops):
        at = f"stopped_after[{i}]"
        rows.append(
            (
                figures.number(f"{at}.rounds"),
                *(figures.epsilon(f"{at}.{key}") for key in ("prompt_recipient", "other_site", "operator")),
                figures.percent(mean_after(result, stop["rounds"])),
            )
        )
    heads = ("after_rounds", "epsilon_recipient", "epsilon_other", "epsilon_operator", "mean_own")
    return section(
        texts("rounds.earlier"),
        table(texts("rounds.earlier_caption"), [texts(f"rounds.{head}") for head in heads], rows, range(5)),
    )
