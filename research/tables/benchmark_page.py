"""docs/results/benchmarks.md from the runs of ``benchmarks``: every table stands beside each site alone."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpfpl_bench.simulation.curves import PREFERENCES, plain_at_equal_others
from dpfpl_bench.sweep.sweep import SweepOutcome
from research.evidence import growth as by_sites
from research.tables.benchmarks import STUDIES, Study

__all__ = ["audit_section", "page"]

Runs = Sequence[Mapping[str, Any]]
PICTURE, GROWTH_PICTURE = "benchmark-own-at-equal-others.svg", "benchmark-growth.svg"
WAYS = (
    ("federated", "federated", "#1b6ca8"),
    ("alone", "each site alone", "#c46210"),
    ("zero_shot", "plain text", "#444444"),
)
"""Name in ``own_at_equal_others``, label and colour."""

HEAD = """\
# Benchmarks

Made by `make benchmarks` from runs on the built-in image sets and the embedded model; not to be edited by hand.
[Class vectors, measured](class-vectors.md) has more partitions and photos, [Questions](questions.md) the generative
model, [Accuracy](accuracy.md) every method of training prompts.

Percent right, mean over sites and seeds, ± standard deviation over seeds; every seed draws its own split, partition and
noise. *Own* classes are those that a site has training images of, *others'* those of the other sites, *all* every class
without the site's usual mix; *worst site* is the lowest own accuracy of any site in any seed. Epsilon is for the
recipient of a site's prompt, delta 1e-5, unit: one training image of one site. *Each site alone* has the same head, the
same epsilon and its own images only.
"""

EQUAL = """\
## What federating brings

A site that expects its own classes more often is right on them more often and on the others' less (`usual_mix`). So
each way is asked for its best own accuracy where it still knows the others' classes: at most 2 points below the plain
text. The mix is chosen on the test images, for all three ways alike.

| set | sites | epsilon | federated | each site alone | plain text |
|---|---|---|---|---|---|"""


def page(outcomes: Mapping[str, SweepOutcome], growth: Sequence[Mapping[str, Any]], docs: Path, audits: str) -> str:
    """The page; pictures go to ``docs / "images"``.

    Args:
        outcomes: by a study's key.
        growth: entries ``{"set", "epsilon", "lines": {sites: {way: (mean, deviation)}}}``.
        docs: folder of the documentation.
        audits: section about attacks, ready made.
    """
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    kept = [(study, by_epsilon(outcomes[study.key])) for study in STUDIES if study.key in outcomes]
    kept = [(study, groups) for study, groups in kept if groups]
    parts = [HEAD, _equal_others(kept, images), _growth(growth, images)]
    parts += [_section(study, groups, outcomes[study.key]) for study, groups in kept]
    return "\n".join([*parts, audits])


def by_epsilon(outcome: SweepOutcome) -> dict[float | None, Runs]:
    """Runs that differ in the seed alone, without noise first, then from the largest epsilon on."""
    found: dict[float | None, list[Mapping[str, Any]]] = {}
    for cell, result in outcome.results.items():
        found.setdefault(cell.epsilon, []).append(result)
    return dict(sorted(found.items(), key=lambda pair: -(pair[0] or 1e9)))


def _equal_others(kept: Sequence[tuple[Study, Mapping[float | None, Runs]]], images: Path) -> str:
    lines, curves = EQUAL.splitlines(), []
    for study, groups in kept:
        groups = {epsilon: runs for epsilon, runs in groups.items() if all("own_at_equal_others" in r for r in runs)}
        sites = f"{study.sweeps[0].sites}, {study.sweeps[0].partition}"
        for epsilon, runs in groups.items():
            cells = [_at_equal(runs, way) for way, *_ in WAYS]
            lines.append(f"| {study.sweeps[0].data} | {sites} | {_epsilon(epsilon)} | {' | '.join(cells)} |")
        if len(groups) > 2:
            curves.append((f"{study.sweeps[0].data}, {sites}", groups))
    if curves:
        _draw(curves, images / PICTURE)
        lines += ["", f"![Own accuracy where the others' classes are still known](images/{PICTURE})"]
    return "\n".join(lines) + "\n"


def _at_equal(runs: Runs, way: str) -> str:
    """Mean and deviation; in brackets how many seeds have such a mix at all, if not all."""
    found = [run["own_at_equal_others"][way] for run in runs]
    there = [value for value in found if value is not None]
    return _spread(there) + (f" ({len(there)} of {len(found)})" if len(there) < len(found) else "")


def _growth(entries: Sequence[Mapping[str, Any]], images: Path) -> str:
    if not entries:
        return ""
    lines = ["## What more sites bring", "", "Sites of 50 images of any class; all classes, ten seeds."]
    lines += ["", f"| set | epsilon | sites | {' | '.join(label for _, label, _ in by_sites.WAYS)} |"]
    lines.append("|---" * (3 + len(by_sites.WAYS)) + "|")
    for entry in entries:
        lines += by_sites.table(entry["set"], entry["epsilon"], entry["lines"])
    by_sites.draw([(f"{e['set']}, epsilon {e['epsilon']:g}", e["lines"]) for e in entries], images / GROWTH_PICTURE)
    return "\n".join([*lines, "", f"![All-classes accuracy by number of sites](images/{GROWTH_PICTURE})"]) + "\n"


def _section(study: Study, groups: Mapping[float | None, Runs], outcome: SweepOutcome) -> str:
    lines = [f"## {study.title}", "", study.says, ""]
    columns = ["epsilon", "federated: own", "others'", "all", "worst site", "prompt alone", "class vectors alone"]
    columns += ["plain text", "each site alone", "ahead of it", "operator's epsilon", "seeds"]
    if "evidence" not in next(iter(groups.values()))[0]["candidates"]:
        columns[5:7] = ["ahead of the plain text at equal others'"]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(_row(epsilon, runs))} |" for epsilon, runs in groups.items()]
    lines += ["", "Three figures are own / others' / all.", "", _without_noise(groups.get(None, ())), _settings(study)]
    missing = sum(len(sweep.cells()) for sweep in study.sweeps) - len(outcome.results) - len(outcome.failed)
    if missing:
        lines += ["", f"**Not whole: {missing} runs are missing;** see the column of seeds."]
    if outcome.failed:
        lines += ["", f"Failed: {'; '.join(outcome.failed.values())}."]
    return "\n".join(lines) + "\n"


def _row(epsilon: float | None, runs: Runs) -> list[str]:
    used = [run["accuracy"] for run in runs]
    alone = "local_only_evidence" if "evidence" in runs[0]["candidates"] else "local_only"
    parts = (
        [_triple([run["candidates"][way] for run in runs]) for way in ("prompt", "evidence")]
        if "evidence" in runs[0]["candidates"]
        else [_taught([run["preference_curve"] for run in runs])]
    )
    rival = [run["baselines"][alone] for run in runs]
    ahead = [f"{100 * (_mean(used, column) - _mean(rival, column)):+.1f}" for column in ("local", "neighbour", "all")]
    spent = next(e["epsilon"] for e in runs[0]["privacy"]["epsilons"] if e["adversary"] == "operator")
    return [
        _epsilon(epsilon),
        *(_spread([run[column] for run in used]) for column in ("local", "neighbour", "all")),
        f"{100 * min(run['worst_site'] for run in used):.1f}",
        *parts,
        _triple([run["candidates"].get("text", run["baselines"]["zero_shot"]) for run in runs]),
        _triple(rival),
        " / ".join(ahead),
        spent if isinstance(spent, str) else f"{spent:.3g}",
        str(len(runs)),
    ]


def _without_noise(runs: Runs) -> str:
    """The baselines that need no privacy."""
    names = {
        "local_only_no_noise_evidence": "each site alone without noise, class vectors",
        "local_only_no_noise": "each site alone without noise, its vote deciding",
        "centralised": "all images in one place without privacy, trained until it stops improving",
    }
    shown = [
        f"{name} {_triple([run['baselines'][key] for run in runs])}"
        for key, name in names.items()
        if runs and all(key in run["baselines"] for run in runs)
    ]
    return f"Beside these: {'; '.join(shown)}.\n" if shown else ""


def _settings(study: Study) -> str:
    sweep = study.sweeps[-1]
    fixed = {
        "partition": sweep.partition,
        "rank": sweep.grid.rank[0],
        "rounds": sweep.rounds.number,
        "local_steps": sweep.rounds.local_steps,
        "sample_rate": sweep.privacy.sample_rate,
        "clipping_norm": sweep.privacy.clipping_norm,
        "learning_rate": sweep.optimizer.global_learning_rate,
        "init_text": sweep.prompt.init_text,
        "usual_mix": sweep.prompt.usual_mix,
    }
    return f"Settings: {sweep.sites} sites; {', '.join(f'{key} {value}' for key, value in fixed.items())}."


def _taught(curves: Sequence[Any]) -> str:
    """Points of own accuracy above a plain text that prefers own classes as much as costs it the others' likewise."""
    pairs = [(plain_at_equal_others(curve), curve[PREFERENCES.index(0.0)]["personalised_local"]) for curve in curves]
    ahead = [100 * (trained - plain) for plain, trained in pairs if plain is not None]
    return f"{statistics.mean(ahead):+.1f}" if ahead else "-"


def _draw(curves: Sequence[tuple[str, Mapping[float | None, Runs]]], path: Path) -> None:
    """One panel for every study; without noise is the rightmost point."""
    import matplotlib as mpl  # seconds; only this needs it

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "dpfpl"  # the same runs give the same file
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * min(2, len(curves)), 3.4 * ((len(curves) + 1) // 2)), layout="constrained")
    axes: Any = figure.subplots((len(curves) + 1) // 2, min(2, len(curves)), squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.remove()
    for axis, (title, groups) in zip(axes.flat, curves, strict=False):
        ordered = list(groups.items())[::-1]
        for way, label, colour in WAYS:
            values = [
                [100 * v for v in (r["own_at_equal_others"][way] for r in runs) if v is not None] for _, runs in ordered
            ]
            points = [(place, statistics.mean(v), _deviation(v)) for place, v in enumerate(values) if v]
            places, means, spread = ([point[k] for point in points] for k in range(3))
            axis.errorbar(places, means, spread, color=colour, marker="o", markersize=3, capsize=2, label=label)
        axis.set_xticks(range(len(ordered)), [_epsilon(epsilon) for epsilon, _ in ordered])
        axis.set_title(title)
        axis.set_xlabel("epsilon")
        axis.set_ylabel("own classes, percent")
        axis.grid(color="#dddddd", linewidth=0.6)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def audit_section(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """What attacks learned, from the JSON of ``dpfpl-bench audit``, by what was attacked."""
    lines = ["## Attacks", ""]
    lines += [
        "`dpfpl-bench audit`: every attack also runs with the noise off. An attack is *alive* if it does far better "
        "there (a bound above 0.5 and twice the noised one; a rate a fifth of the way from a guess to certainty): only "
        "then does its failure say anything. Bounds hold with 95 % confidence each; over seeds the largest with noise "
        "and the smallest without are shown.",
        "",
    ]
    for title, report in reports.items():
        lines += [
            f"### {title}",
            "",
            "| attack | measure | with noise | noise off | guess | claim | verdict |",
            "|---|---|---|---|---|---|---|",
        ]
        for f in report["findings"]:
            claim = "" if f["claimed_epsilon"] is None else _number(f["claimed_epsilon"])
            verdict = "BROKEN" if claim and not f["holds"] else "alive, holds" if f["alive"] and f["holds"] else ""
            verdict = verdict or ("alive, noise hides little" if f["alive"] else "weak attack, says little")
            lines.append(
                f"| {f['attack']} ({f['adversary']}) | {f['measure']} | {f['with_noise']:.2f} | {f['noise_off']:.2f} | "
                f"{f['guess']:.2f} | {claim} | {verdict} |"
            )
        lines += ["", f"Seeds {', '.join(map(str, report['seeds']))}; effort {report['effort']}.", ""]
    return "\n".join(lines)


def _mean(rows: Runs, column: str) -> float:
    return statistics.mean(float(row[column]) for row in rows)


def _triple(rows: Runs) -> str:
    return " / ".join(f"{100 * _mean(rows, column):.1f}" for column in ("local", "neighbour", "all"))


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _spread(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {100 * _deviation(values):.1f}" if values else "-"


def _epsilon(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"
