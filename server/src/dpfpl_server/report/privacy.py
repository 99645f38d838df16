"""The end of the report: what the data cannot tell, and everything needed to repeat the run."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dpfpl_server.report.facts import called, mean_after, site_sample_rate
from dpfpl_server.report.figures import Figures, is_loose, key_path
from dpfpl_server.report.markup import Html, bullets, details, paragraph, section, table, text
from dpfpl_server.report.texts import unit_name, unit_short, who
from dpfpl_server.runs.words import DASH

__all__ = ["audit_section", "cost_section", "details_section", "limits_section", "privacy_section", "rounds_section"]


# What left each site, what somebody could learn from it, and whether attacks agree.


Result = Mapping[str, Any]


def privacy_section(result: Result, figures: Figures) -> Html:
    """What left, the epsilons in words, and the technical table folded below."""
    texts = figures.texts
    sampled = site_sample_rate(result) < 1
    return section(
        texts("left.title"),
        paragraph([texts("left.never"), _updates(result, figures, sampled)], between=texts.space),
        "" if sampled else _received(result, figures),
        Html(f"<h3>{texts('left.words')}</h3>"),
        bullets([_in_words(result, figures, i) for i in range(len(result["privacy"]["epsilons"]))]),
        paragraph([texts("left.near_certain")]) if _near_certain(result, figures) else "",
        paragraph(
            [texts("left.final"), texts("left.tests_uncovered"), texts("left.ledger")], "quiet", between=texts.space
        ),
        details(texts("left.technical"), *_technical(result, figures)),
    )


def _updates(result: Result, figures: Figures, sampled: bool) -> Html:
    if sampled:
        return figures.texts("left.update_hidden")
    rounds = range(len(result["rounds"]))
    clear = result["privacy"].get("trust") == "central"
    once = result["config"]["privacy"].get("mechanism") == "one_shot"
    return figures.texts(
        "left.update_local_clear" if clear else "left.update_once" if once else "left.update",
        messages=figures.number(called("sum", [f"size(rounds[{i}].sites)" for i in rounds])),
        bytes=figures.bytes(called("sum", [f"rounds[{i}].bytes_up" for i in rounds])),
    )


def _received(result: Result, figures: Figures) -> Html:
    texts, rounds = figures.texts, range(len(result["rounds"]))
    rows = []
    for index, site in enumerate(result["sites"]):
        name = site["name"]
        metrics = [f"size({key_path(f'rounds[{i}].metrics', name)})" for i in rounds]
        rejected = [key_path(f"rounds[{i}].dropped", name) for i in rounds]
        rows.append(
            (
                name,
                figures.number(f"sites[{index}].answers"),
                figures.number(called("count", rejected)),
                figures.number(called("sum", metrics)),
            )
        )
    heads = [texts("accuracy.site"), *(texts(f"left.{k}") for k in ("answers", "rejected", "accuracies"))]
    return table(texts("left.caption"), heads, rows, range(1, 4))


def _in_words(result: Result, figures: Figures, index: int) -> Html:
    texts, entry = figures.texts, result["privacy"]["epsilons"][index]
    name = Html(f"<strong>{who(texts, entry)}</strong>")
    at = f"privacy.epsilons[{index}]"
    between = "：" if texts.language == "ja" else ": "
    if entry["epsilon"] == "infinite":
        return Html(f"{name}{between}{texts('left.nothing')}")
    statement = texts(
        "left.statement",
        epsilon=figures.epsilon(f"{at}.epsilon"),
        unit_short=unit_short(texts, result),
        posterior=figures.certainty(f"posterior({at}.epsilon)"),
        delta=figures.one_in(f"{at}.delta"),
    )
    return Html(f"{name}{between}{statement}")


def _near_certain(result: Result, figures: Figures) -> bool:
    return any(is_loose(figures, f"privacy.epsilons[{i}].epsilon") for i in range(len(result["privacy"]["epsilons"])))


def _technical(result: Result, figures: Figures) -> list[Html]:
    texts, privacy = figures.texts, result["privacy"]
    part = texts("left.part_drawn" if site_sample_rate(result) < 1 else "left.part_every")
    epsilons = [
        (
            who(texts, entry),
            figures.epsilon(f"privacy.epsilons[{i}].epsilon"),
            figures.exact(f"privacy.epsilons[{i}].delta"),
            entry["adversary"],
        )
        for i, entry in enumerate(privacy["epsilons"])
    ]
    events = [
        (
            event["adversary"],
            event["mechanism"],
            *(figures.exact(f"privacy.events[{i}].{key}") for key in ("noise_multiplier", "sample_rate", "steps")),
        )
        for i, event in enumerate(privacy["events"])
    ]
    groups = [
        (figures.number(f"privacy.groups[{i}].examples"), figures.epsilon(f"privacy.groups[{i}].epsilon"))
        for i in range(len(privacy.get("groups", ())))
    ]
    recognition = [
        tuple(
            figures.percent(f"privacy.recognition[{i}].{key}") for key in ("false_positive_rate", "true_positive_rate")
        )
        for i in range(len(privacy.get("recognition", ())))
    ]
    more = [
        table(texts("left.groups_caption"), [texts("left.examples"), "Epsilon"], groups, (0, 1)),
        table(texts("left.recognition_caption"), [texts("left.wrong"), texts("left.recognised")], recognition, (0, 1)),
    ]
    trust = f"trust_{privacy.get('trust')}"
    target = result["config"].get("privacy", {}).get("target_epsilon")
    return [
        table(
            texts("left.epsilons_caption", part=part, unit=unit_name(texts, result)),
            [texts("left.against"), "Epsilon", "Delta", texts("left.key")],
            epsilons,
            (1, 2),
        ),
        paragraph(
            [
                Html(text(texts.optional("left", trust) or "")),
                "" if target is None else texts("left.asked", target=figures.exact("config.privacy.target_epsilon")),
            ],
            "quiet",
            between=texts.space,
        ),
        *(more if groups else ()),
        table(
            texts("left.events_caption"),
            [texts(f"left.{key}") for key in ("key", "mechanism", "multiplier", "sample_rate", "steps")],
            events,
            (2, 3, 4),
        ),
    ]


def audit_section(result: Result, figures: Figures) -> Html:
    """What attacks reached: result.json's ``audit``, if the run was attacked.

    Each entry has ``attack`` (its name), ``adversary``, ``epsilon_lower_bound``, ``epsilon_claimed``, ``confidence``.
    """
    texts = figures.texts
    entries = result.get("audit") or []
    if not entries:
        return section(texts("audit.title"), paragraph([texts("audit.none")]))
    rows = [
        (
            str(entry.get("attack", "")),
            str(entry.get("adversary", "")),
            _bound(figures, i),
            figures.epsilon(f"audit[{i}].epsilon_claimed"),
            figures.percent(f"audit[{i}].confidence"),
        )
        for i, entry in enumerate(entries)
    ]
    heads = [texts(f"audit.{key}") for key in ("attack", "against", "bound", "claimed", "confidence")]
    return section(texts("audit.title"), table(texts("audit.caption"), heads, rows, (2, 3, 4)))


def _bound(figures: Figures, index: int) -> Html:
    """The lower bound; where it is above the claim, words that nobody overlooks."""
    at = f"audit[{index}]"
    shown = figures.number(f"{at}.epsilon_lower_bound", 2)
    claimed, bound = figures.of(f"{at}.epsilon_claimed"), figures.of(f"{at}.epsilon_lower_bound")
    if claimed in (None, "infinite") or bound is None or bound <= claimed:
        return shown
    return Html(f"<strong>{figures.texts('audit.refuted', bound=shown)}</strong>")


# What running it took, and the record of the rounds.


MAX_OPEN_ROUNDS = 12
ASSUMED_WATTS = 100


def cost_section(result: Result, figures: Figures) -> Html:
    """Time, traffic, computing, and energy under a stated assumption."""
    texts, rounds = figures.texts, range(len(result["rounds"]))
    if not rounds:
        return Html("")
    rows = [(texts("cost.whole"), figures.seconds("seconds"))]
    if site_sample_rate(result) >= 1:
        most = [f"rounds[{i}].seconds * size(rounds[{i}].sites)" for i in rounds]
        watts = figures.number(str(ASSUMED_WATTS))
        rows += [
            (texts("cost.round"), figures.seconds(called("median", [f"rounds[{i}].seconds" for i in rounds]))),
            (texts("cost.up"), figures.bytes(called("sum", [f"rounds[{i}].bytes_up" for i in rounds]))),
            (texts("cost.down"), figures.bytes(called("sum", [f"rounds[{i}].bytes_down" for i in rounds]))),
            (texts("cost.compute"), figures.seconds(called("sum", most))),
            (
                texts("cost.energy", watts=watts),
                figures.energy(f"{called('sum', most)} * {ASSUMED_WATTS} / 3600"),
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
    """The sites whose messages look as if they took no part; see ``dpfpl_server.federation.replies``."""
    texts = figures.texts
    rows = [(site["name"], texts(f"details.flag_{site['flag']}")) for site in result["sites"] if site.get("flag")]
    if not rows:
        return Html("")
    return table(texts("details.flags_caption"), [texts("accuracy.site"), texts("details.reason")], rows)


def _attendance(result: Result, figures: Figures) -> Html:
    if site_sample_rate(result) < 1:
        return figures.texts("details.attendance_drawn", rate=figures.exact("config.privacy.site_sample_rate"))
    return figures.texts("details.attendance")


def limits_section(result: Result, figures: Figures) -> Html:
    """What management must not read into the numbers."""
    texts = figures.texts
    keys = ["same_images", "chance", "people", "outside", "units", "operator"]
    if "local_only" not in result["floors"]:
        keys.insert(2, "alone")
    if not any(site.get("test_images") for site in result["sites"]):
        keys.insert(1, "counts")
    return section(texts("limits.title"), bullets([texts(f"limits.{key}") for key in keys]))


def details_section(result: Result, figures: Figures) -> Html:
    """Run, configuration and versions, each folded."""
    texts = figures.texts
    keys = ("transport", "node_authentication", "method", "seed", "experiment_digest")
    run = [(key, DASH if result.get(key) is None else result[key]) for key in keys]
    return section(
        texts("details.title"),
        details(
            texts("details.run"),
            table(texts("details.run_caption"), [texts("details.what"), texts("details.value")], run),
        ),
        details(
            texts("details.config"),
            table(
                texts("details.config_caption"),
                [texts("details.key"), texts("details.value")],
                list(_flat(result["config"])),
            ),
        ),
        details(
            texts("details.versions"),
            table(
                texts("details.versions_caption"),
                [texts("details.package"), texts("details.version")],
                sorted(result["versions"].items()),
            ),
        ),
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, DASH if value is None else json.dumps(value, ensure_ascii=False)
