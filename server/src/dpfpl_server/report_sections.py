"""The sections of report.html, each a function from the result to a piece of HTML."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dpfpl_server.charts import Frame, Line, legend, line_chart
from dpfpl_server.curves import mean_curve, site_curve
from dpfpl_server.markup import details, paragraph, section, table, text
from dpfpl_server.report_text import (
    DASH,
    FLOORS,
    TRUST,
    amount,
    bytes_text,
    change,
    epsilon_text,
    exact,
    part_taken,
    percent,
    points,
    seconds_text,
    site_sample_rate,
)

__all__ = [
    "accuracy_section",
    "curves_section",
    "floors_section",
    "privacy_section",
    "rounds_section",
]

Result = Mapping[str, Any]
MAX_OPEN_ROUNDS = 12
MISSING = (
    f"{DASH} stands for a value that is not there: the site's policy does not let it out, the site has no test images "
    "of that kind, or it did not answer."
)


def accuracy_section(result: Result) -> str:
    """Per site: accuracies before and after, and the shared prompt alone."""
    rows = [
        (
            site["name"],
            change(site["before"], site["local"]),
            points(site["before"], site["local"]),
            change(site["before_neighbour"], site["neighbour"]),
            percent(site["global"]),
            DASH if site["num_classes"] is None else site["num_classes"],
        )
        for site in result["sites"]
    ]
    head = ("Site", "Own classes, %", "Points", "Others' classes, %", "Shared prompt alone", "Classes")
    missing = any(DASH in str(value) for row in rows for value in row)
    return section(
        "Accuracy at each site",
        table("Before → after, on each site's test images", head, rows, numeric=range(1, 6)),
        paragraph(
            (
                "Own classes: images of the classes that the site trains on. Others' classes: all classes of the other "
                "sites. Shared prompt alone: own classes, without the site's personal part. A site's policy may round "
                "its accuracies to steps of five points.",
                MISSING if missing else "",
            ),
            "quiet",
        ),
    )


def floors_section(result: Result) -> str:
    """What the same model reaches without, or with less of, the federation."""
    local, neighbour = result["accuracy"]["local"], result["accuracy"]["neighbour"]
    rows: list[tuple[str, ...]] = [("this federation", percent(local), DASH, percent(neighbour), DASH)]
    meanings = []
    for key, floor in result["floors"].items():
        name, meaning = FLOORS.get(key, (key, ""))
        low, wide = floor.get("local"), floor.get("neighbour")
        rows.append((name, percent(low), points(low, local), percent(wide), points(wide, neighbour)))
        meanings.append(f"{name[:1].upper()}{name[1:]}: {meaning}." if meaning else "")
    head = ("", "Own classes", "Ahead by", "Others' classes", "Ahead by")
    return section(
        "Compared with",
        table(
            "Means over the sites that reported; how many points the federation is ahead",
            head,
            rows,
            numeric=range(1, 5),
        ),
        paragraph(meanings, "quiet"),
    )


def curves_section(result: Result) -> str:
    """Mean and per-site accuracies over the rounds."""
    rounds = len(result["rounds"])
    if not rounds:
        return ""
    means = [
        Line("own classes", mean_curve(result, "personal_local"), 0),
        Line("own classes, shared prompt alone", mean_curve(result, "global_local"), 1),
        Line("others' classes", mean_curve(result, "personal_neighbour"), 2),
    ]
    if not any(line.points for line in means):
        return section("Accuracy over the rounds", paragraph([f"No site reported accuracies. {MISSING}"], "quiet"))
    chart = line_chart("Mean accuracy by completed rounds", means, Frame.around(means, rounds))
    per_site = {
        site["name"]: [
            Line("own classes", site_curve(result, site["name"], "personal_local"), 0),
            Line("own classes, shared prompt alone", site_curve(result, site["name"], "global_local"), 1),
        ]
        for site in result["sites"]
    }
    frame = Frame.around([line for lines in per_site.values() for line in lines], rounds)
    frame = dataclasses.replace(frame, width=300, height=230, left=58, bottom=54, font=18)
    small = "\n".join(
        f"<figure><h3>{text(name)}</h3>{line_chart(f'Accuracy at {name} by completed rounds', lines, frame)}</figure>"
        for name, lines in per_site.items()
        if any(line.points for line in lines)
    )
    return section(
        "Accuracy over the rounds",
        f'<div class="panel">{chart}{legend(means)}</div>',
        paragraph(["Each point is the mean of the sites that reported at that time."], "quiet"),
        f'<div class="small">{small}</div>',
    )


def privacy_section(result: Result) -> str:
    """The epsilons, whom they are against, and what they do not cover."""
    privacy = result["privacy"]
    rows = [
        (
            entry.get("who", entry["adversary"]),
            epsilon_text(entry["epsilon"]),
            exact(entry["delta"]),
            entry["adversary"],
        )
        for entry in privacy["epsilons"]
    ]
    units = " or ".join(sorted({entry["unit"] for entry in privacy["epsilons"]}))
    target = result["config"]["privacy"].get("target_epsilon")
    trust = privacy.get("trust")
    return section(
        "What it cost in privacy",
        table(
            f"The accountant's epsilons for a site {part_taken(result)}, rounded up; what they protect: {units}",
            ("Against", "Epsilon", "Delta", "Key"),
            rows,
            numeric=(1, 2),
        ),
        paragraph(
            (
                f"Trust {trust}: {TRUST[trust]}." if trust in TRUST else "",
                "" if target is None else f"The experiment asked for {exact(target)} over all its rounds.",
                "The epsilons cover training examples only. Accuracies are measured on test images, without noise; "
                "each site's policy decides which of them leave it. What was really charged to a site's data, over all "
                "experiments, is in the ledger at that site (dpfpl-client ledger show).",
            ),
            "quiet",
        ),
    )


def rounds_section(result: Result) -> str:
    """Seconds and bytes of each round, and who was dropped why."""
    rounds = result["rounds"]
    if not rounds:
        return ""
    curve = mean_curve(result, "personal_local")
    rows = [
        (
            entry["round"],
            seconds_text(entry.get("seconds")),
            bytes_text(entry.get("bytes_up")),
            bytes_text(entry.get("bytes_down")),
            len(entry.get("sites", ())),
            percent(curve.get(entry["round"])),
        )
        for entry in rounds
    ]
    head = ("Round", "Time", "From sites", "To sites", "Sites", "Own classes after it")
    listing = table("Contents of the messages; what the wire adds is not counted", head, rows, numeric=range(1, 6))
    dropped = [
        (entry["round"], site, reason) for entry in rounds for site, reason in sorted(entry.get("dropped", {}).items())
    ]
    return section(
        "Rounds",
        listing if len(rounds) <= MAX_OPEN_ROUNDS else details(f"All {amount(len(rounds), 'round')}", listing),
        table("Sites left out of a round", ("Round", "Site", "Reason"), dropped)
        if dropped
        else paragraph([_attendance(result)], "quiet"),
    )


def _attendance(result: Result) -> str:
    rate = site_sample_rate(result)
    if rate < 1:
        return f"Every site joined every round with chance {exact(rate)}; which did is secret, and so not shown."
    return "Every site took part in every round."
