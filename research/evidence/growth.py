"""What more sites bring, all classes: ``python -m research.evidence.growth --out runs/evidence`` draws a picture.

Sites of fifty images of any class, as in ``study``: together, each alone under the same promise, each alone without
noise. Every seed deals the images anew; bars are one standard deviation over seeds.
"""

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from research.evidence.study import Case, StudySet, asked_for, iid
from research.writing import panels, picture, points, table, told_apart

SITES = (1, 5, 10, 20, 40)
EPSILONS = (8.0, 2.0)
WAYS = (
    ("secure", "together, secure sums", "#1b6ca8"),
    ("pooled", "together, local", "#5fa8d3"),
    ("alone", "each site alone, same promise", "#c46210"),
    ("unnoised", "each site alone, no noise", "#8a8a8a"),
    ("text", "plain text", "#444444"),
)
"""Name, label and colour."""


Lines = dict[int, dict[str, tuple[float, float]]]
"""Mean and deviation by number of sites and way."""


def grown(study: StudySet, epsilon: float, seeds: int) -> Lines:
    """All-classes accuracy for as many sites as there are images for."""
    found: Lines = {}
    for count in SITES:
        rows = []
        for seed in range(seeds):
            parts = iid(study.labels, len(study.texts), np.random.default_rng([seed, 78]), count)
            case = Case(study, parts, epsilon, np.random.default_rng([seed, 79]))
            bare = Case(study, parts, None, np.random.default_rng([seed, 80]))
            heads = {way: getattr(case, way) for way, *_ in WAYS if way != "unnoised"} | {"unnoised": bare.alone}
            rows.append({way: case.columns(logits)[2] for way, logits in heads.items()})
        if len(parts) in found:
            break  # there are no more images
        found[len(parts)] = {
            way: (float(np.mean([row[way] for row in rows])), statistics.stdev(row[way] for row in rows))
            for way, *_ in WAYS
        }
    return found


def growth_table(entries: Iterable[tuple[str, float, Lines]]) -> str:
    """Of sets and epsilons, in Markdown."""
    rows = [
        (name, f"{epsilon:g}", str(count), *(f"{row[way][0]:.1f} ± {row[way][1]:.1f}" for way, *_ in WAYS))
        for name, epsilon, found in entries
        for count, row in found.items()
    ]
    return table(("set", "epsilon", "sites", *(label for _, label, _ in WAYS)), rows)


def draw(shown: Sequence[tuple[str, Lines]], path: Path) -> None:
    """One panel for every set and epsilon."""
    columns = len(EPSILONS)
    with picture(path, (11, 3.4 * -(-len(shown) // columns))) as figure:
        axes = panels(figure, len(shown), columns, sharey="row")
        for axis, (title, found) in zip(axes, shown, strict=True):
            for way, label, colour in WAYS:
                style = ":" if way in ("unnoised", "text") else "-"
                lines = [row[way] for row in found.values()]
                points(axis, list(found), lines, color=colour, label=label, linestyle=style)
            axis.set_title(title)
            axis.set_xscale("log", base=2)
            axis.set_xticks(list(found), [str(count) for count in found])
            axis.set_xlabel("sites of 50 images")
            axis.set_ylabel("all classes, percent")
        told_apart(figure, axes[0], ncols=3)


def main() -> None:
    """Command line."""
    asked, studies = asked_for(argparse.ArgumentParser(description=__doc__))
    entries = []
    for study in (study for study in studies if not study.name.endswith("-half")):
        for epsilon in EPSILONS:
            entries.append((study.name, epsilon, grown(study, epsilon, asked.seeds)))
            print(growth_table(entries[-1:]), flush=True)
    (asked.out / "growth.md").write_text(growth_table(entries) + "\n")
    named = [(f"{name}, epsilon {epsilon:g}", found) for name, epsilon, found in entries]
    draw(named, asked.out / "class-vectors-growth.svg")


if __name__ == "__main__":
    main()
