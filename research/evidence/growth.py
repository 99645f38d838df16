"""What more sites bring, all classes: ``python -m research.evidence.growth --out runs/evidence`` draws a picture.

Sites of fifty images of any class, as in ``study``: together, each alone under the same promise, each alone without
noise. Every seed deals the images anew; bars are one standard deviation over seeds.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.evidence.features import StudySet
from research.evidence.study import Case, asked_for, iid

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


def grown(study: StudySet, epsilon: float, seeds: int) -> dict[int, dict[str, tuple[float, float]]]:
    """Mean and deviation of all-classes accuracy by number of sites (as many as there are images for) and way."""
    found: dict[int, dict[str, tuple[float, float]]] = {}
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


def table(name: str, epsilon: float, found: dict[int, dict[str, tuple[float, float]]]) -> list[str]:
    """Lines of Markdown."""
    lines = []
    for count, row in found.items():
        cells = (name, f"{epsilon:g}", str(count), *(f"{row[way][0]:.1f} ± {row[way][1]:.1f}" for way, *_ in WAYS))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(panels: Sequence[tuple[str, dict[int, dict[str, tuple[float, float]]]]], path: Path) -> None:
    """One panel for every set and epsilon."""
    import matplotlib as mpl  # seconds; only this needs it

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "dpfpl"  # the same lines give the same file
    from matplotlib.figure import Figure

    columns = len(EPSILONS)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(11, 3.4 * lines), layout="constrained")
    axes: Any = figure.subplots(lines, columns, sharey="row", squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (title, found) in zip(axes.flat, panels, strict=False):
        for way, label, colour in WAYS:
            means, spread = zip(*(row[way] for row in found.values()), strict=True)
            axis.errorbar(
                list(found), means, spread, color=colour, marker="o", markersize=3, capsize=2, label=label,
                linestyle=":" if way in ("unnoised", "text") else "-",
            )  # fmt: skip
        axis.set_title(title)
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(found), [str(count) for count in found])
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_xlabel("sites of 50 images")
        axis.set_ylabel("all classes, percent")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Command line."""
    asked, studies = asked_for(argparse.ArgumentParser(description=__doc__))
    lines = [f"| set | epsilon | sites | {' | '.join(label for _, label, _ in WAYS)} |", "|---" * (3 + len(WAYS)) + "|"]
    panels = []
    for study in (study for study in studies if not study.name.endswith("-half")):
        for epsilon in EPSILONS:
            found = grown(study, epsilon, asked.seeds)
            panels.append((f"{study.name}, epsilon {epsilon:g}", found))
            lines += table(study.name, epsilon, found)
            print(*lines[-len(found) :], sep="\n", flush=True)
    (asked.out / "growth.md").write_text("\n".join(lines) + "\n")
    draw(panels, asked.out / "class-vectors-growth.svg")


if __name__ == "__main__":
    main()
