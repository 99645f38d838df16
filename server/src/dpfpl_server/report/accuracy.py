"""Accuracy over the rounds, and over the epsilon that each number of rounds costs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dpfpl_server.report.answer import weakest
from dpfpl_server.report.charts import (
    Bar,
    Change,
    Frame,
    Line,
    bar_chart,
    change_chart,
    legend,
    line_chart,
    mean_curve,
    site_curve,
)
from dpfpl_server.report.facts import mean_after
from dpfpl_server.report.figures import Figures, key_path
from dpfpl_server.report.markup import Html, details, paragraph, section, table, text
from dpfpl_server.report.texts import floor_meaning, floor_name
from dpfpl_server.runs.words import DASH

__all__ = [
    "accuracy_section",
    "floors_section",
    "rounds_curves_section",
    "scores_section",
    "stopped_earlier_section",
    "uncertainty_section",
]


# Accuracy at each site, how sure it is, and what it must be compared with.


Result = Mapping[str, Any]
MAX_OPEN_SITES = 25
SUPPOSED_COUNTS = (50, 200, 1000)
COARSE = 0.05


def accuracy_section(result: Result, figures: Figures) -> Html:
    """Per site: accuracies before and after, the shared prompt alone, and an interval where counts are known."""
    texts, sites = figures.texts, result["sites"]
    counted = _counts_known(result) and texts.is_share
    marked = set(weakest(result))
    rows = []
    for i, site in enumerate(sites):
        at = f"sites[{i}]"
        name = Html(text(site["name"]) + (texts("accuracy.worst_mark") if site["name"] in marked else ""))
        row = [name, _way(figures, f"{at}.before", f"{at}.local"), figures.points(f"{at}.local - {at}.before")]
        if counted:
            row.append(_interval(figures, f"{at}.local", f"{at}.test_images"))
        row += [
            figures.percent(f'{at}["global"]'),
            _way(figures, f"{at}.before_neighbour", f"{at}.neighbour"),
        ]
        rows.append(row if texts.in_words else [*row, figures.number(f"{at}.num_classes")])
    heads = ["site", "own", "change", *(["interval"] if counted else []), "shared", "others"]
    heads += [] if texts.in_words else ["classes"]
    head = [texts(f"accuracy.{key}") for key in heads]
    listing = table(texts("accuracy.caption"), head, rows, range(1, len(head)), texts.plain("format.not_available"))
    missing = any(site[key] is None for site in sites for key in ("before", "local", "global", "neighbour"))
    many = len(sites) > MAX_OPEN_SITES
    return section(
        texts("accuracy.title"),
        "" if many else _chart(result, figures),
        details(texts("accuracy.folded", sites=figures.count("site", "size(sites)")), listing) if many else listing,
        paragraph((texts("accuracy.note"), texts("accuracy.missing") if missing else ""), "quiet", between=texts.space),
    )


def uncertainty_section(result: Result, figures: Figures) -> Html:
    """What is known of how sure the accuracies are, and what is not."""
    texts = figures.texts
    if figures.of("accuracy.local") is None:
        return Html("")
    after = figures.percent("accuracy.local")
    notes = [texts("uncertainty.one_run"), texts("uncertainty.coarse") if _coarse(result) else ""]
    if _counts_known(result) or not texts.is_share:
        return section(texts("uncertainty.title"), paragraph([texts("uncertainty.known"), *notes], between=texts.space))
    rows = [
        (
            figures.number(str(count)),
            _interval(figures, "accuracy.local", str(count)),
            figures.bare_percent(f"wilson_high(accuracy.local, {count}) - wilson_low(accuracy.local, {count})"),
        )
        for count in SUPPOSED_COUNTS
    ]
    return section(
        texts("uncertainty.title"),
        paragraph([texts("uncertainty.unknown", after=after)]),
        table(
            texts("uncertainty.caption", after=after),
            [texts(f"uncertainty.{key}") for key in ("images", "interval", "width")],
            rows,
            (0, 1, 2),
            label=texts.plain("uncertainty.title"),
        ),
        paragraph(notes, "quiet", between=texts.space),
    )


def scores_section(result: Result, figures: Figures) -> Html:
    """Shares of right answers from noised counts, with their intervals, and what was gained over the plain text."""
    texts, scores = figures.texts, result.get("scores", [])
    if not scores:
        return Html("")
    rows = [
        (
            texts(f"scores.{row['candidate']}"),
            figures.percent(f"scores[{i}].value"),
            Html(f"{figures.percent(f'scores[{i}].interval[0]')} – {figures.percent(f'scores[{i}].interval[1]')}"),
            figures.number(f"scores[{i}].of"),
        )
        for i, row in enumerate(scores)
    ]
    gains = [
        (
            texts(f"scores.{row['candidate']}"),
            texts(f"scores.{row['over']}"),
            figures.points(f"gains[{i}].value"),
            Html(f"{figures.points(f'gains[{i}].interval[0]')} – {figures.points(f'gains[{i}].interval[1]')}"),
        )
        for i, row in enumerate(result["gains"])
    ]
    interval = texts("scores.interval")
    return section(
        texts("scores.title"),
        table(
            texts("scores.caption"),
            [texts("scores.candidate"), texts("scores.value"), interval, texts("scores.of")],
            rows,
            (1, 2, 3),
        ),
        table(
            texts("scores.gain_caption"),
            [texts("scores.candidate"), texts("scores.over"), texts("scores.gain"), interval],
            gains,
            (2, 3),
        ),
        paragraph([texts("scores.note")], "quiet"),
    )


def _choice(result: Result) -> list[str]:
    """Texts about class vectors: that nothing was found, and what the votes chose."""
    nothing = (result.get("evidence") or {}).get("warning")
    chosen = result.get("chosen", "prompt")
    chosen_text = {"evidence": ["chosen_evidence"], "text": ["chosen_text"]}.get(chosen, [])
    return [*(["nothing_found"] if nothing else []), *chosen_text]


def floors_section(result: Result, figures: Figures) -> Html:
    """What the same model reaches without, or with less of, the federation."""
    texts = figures.texts
    empty = Html(DASH)
    rows: list[tuple[Html, ...]] = [
        (
            texts("floors.ours"),
            figures.percent("accuracy.local"),
            empty,
            figures.percent("accuracy.worst_site"),
            figures.percent("accuracy.neighbour"),
            empty,
        )
    ]
    bars: list[Bar] = []
    meanings = [texts(f"floors.{key}") for key in _choice(result)]
    if figures.of("accuracy.local") is not None:
        bars.append(Bar(texts.plain("floors.ours"), figures.of("accuracy.local"), highlighted=True))
    for key in result["floors"]:
        local, worst, neighbour = (
            f"{key_path('floors', key)}.{where}" for where in ("local", "worst_site", "neighbour")
        )
        rows.append(
            (
                floor_name(texts, key),
                figures.percent(local),
                figures.points(f"accuracy.local - {local}"),
                figures.percent(worst) if "worst_site" in result["floors"][key] else empty,
                figures.percent(neighbour),
                figures.points(f"accuracy.neighbour - {neighbour}"),
            )
        )
        meanings.append(floor_meaning(texts, key))
        if figures.of(local) is not None:
            bars.append(Bar(texts.optional("floors", key) or key, figures.of(local)))
    if not {"local_only", "centralised"} & set(result["floors"]):
        meanings.append(texts("floors.only_known"))
    head = [texts(f"floors.{key}") for key in ("way", "own", "ahead", "worst", "others", "ahead")]
    return section(
        texts("floors.title"),
        bar_chart(texts.plain("floors.chart"), bars) if bars else "",
        table(texts("floors.caption"), head, rows, range(1, 6), texts.plain("format.not_available")),
        paragraph(meanings, "quiet", between=texts.space),
    )


def _chart(result: Result, figures: Figures) -> Html:
    texts = figures.texts
    changes = [
        Change(site["name"], site["before"], site["local"])
        for site in result["sites"]
        if site["before"] is not None and site["local"] is not None
    ]
    if not changes:
        return Html("")
    names = (texts.plain("accuracy.before"), texts.plain("accuracy.after"))
    return change_chart(texts.plain("accuracy.chart"), changes, names)


def _way(figures: Figures, before: str, after: str) -> Html:
    return Html(f"{figures.bare_percent(before)} → {figures.bare_percent(after)}")


def _interval(figures: Figures, share: str, count: str) -> Html:
    return figures.texts(
        "format.range",
        low=figures.bare_percent(f"wilson_low({share}, {count})"),
        high=figures.percent(f"wilson_high({share}, {count})"),
    )


def _counts_known(result: Result) -> bool:
    return any(site.get("test_images") for site in result["sites"])


def _coarse(result: Result) -> bool:
    values = [s[key] for s in result["sites"] for key in ("before", "local", "global") if s[key] is not None]
    return bool(values) and all(abs(v / COARSE - round(v / COARSE)) < 1e-9 for v in values)


MAX_OPEN_CURVES = 12
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
        small if len(result["sites"]) <= MAX_OPEN_CURVES else details(texts("rounds.per_site"), small),
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
