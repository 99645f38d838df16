"""docs/results/benchmarks.md from the runs of ``benchmarks``: tables, pictures, and where the aims are missed."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpfpl_bench.simulation.curves import PREFERENCES, STRENGTHS, own_at_equal_others
from dpfpl_bench.sweep.plots import write_plots
from dpfpl_bench.sweep.settings import Cell
from dpfpl_bench.sweep.sweep import SweepOutcome
from dpfpl_bench.sweep.table import Row, summarise
from research.tables.benchmarks import STUDIES, Study

__all__ = ["aims_section", "audit_section", "page"]


# What the default settings were to reach on the built-in sets, beside what they reached: the page's first table.


LOSS, NEAR, KEPT = 2.0, 2.0, 80.0
"""Points of own accuracy that epsilon 2 may cost; points that the others' may lie below zero-shot; percent of the gain
on own classes to keep meanwhile."""
Results = Mapping[float | None, list[Mapping[str, Any]]]


def aims_section(outcomes: Mapping[str, SweepOutcome]) -> str:
    """The section; a set whose runs of the default settings are not there is left out."""
    lines = [
        "## What was aimed at",
        "",
        "With the default settings, means over seeds, points of accuracy.",
        "",
        "| aim | set | measured | reached |",
        "|---|---|---|---|",
    ]
    for data in ("digits", "shapes"):
        results = _by_epsilon(outcomes.get(f"{data}-default", SweepOutcome()))
        if None in results and 2.0 in results:
            lines += [
                f"| {aim} | {data} | {measured} | {'yes' if ok else 'no'} |" for aim, measured, ok in _aims(results)
            ]
    return "\n".join(lines) + "\n"


def _aims(results: Results) -> list[tuple[str, str, bool]]:
    noisy = {epsilon: runs for epsilon, runs in results.items() if epsilon is not None}
    loss = _own(results[None]) - _own(results[2.0])
    gains = {epsilon: _own(runs) - _floor(runs, "zero_shot") for epsilon, runs in noisy.items()}
    ahead = {epsilon: _own(runs) - _floor(runs, "local_only") for epsilon, runs in noisy.items()}
    kept = {epsilon: _gain_kept(runs) for epsilon, runs in noisy.items()}
    return [
        (f"epsilon 2 costs at most {LOSS:g} points of own accuracy against no noise", f"{loss:.1f}", loss <= LOSS),
        ("never below zero-shot on own classes", _each(gains, "+.1f"), min(gains.values()) >= 0),
        ("ahead of each site alone under the same promise", _each(ahead, "+.1f"), min(ahead.values()) > 0),
        (
            f"with the strength that keeps the others' within {NEAR:g} points of zero-shot: at least {KEPT:g} % of the "
            "gain on own classes",
            _each(kept, ".0f", " %"),
            min(kept.values()) >= KEPT,
        ),
    ]


def _gain_kept(runs: list[Mapping[str, Any]]) -> float:
    """Percent of the full strength's gain at the best strength whose others' accuracy is near zero-shot's."""
    zero_own, zero_others = _floor(runs, "zero_shot"), _floor(runs, "zero_shot", "neighbour")
    points = [
        {key: 100 * statistics.mean(float(point[key]) for point in same) for key in ("local", "neighbour")}
        for same in zip(*(run["strength_curve"] for run in runs), strict=True)
    ]
    near = [point["local"] - zero_own for point in points if point["neighbour"] >= zero_others - NEAR]
    whole = _own(runs) - zero_own
    return 100 * max(near, default=0.0) / whole if whole > 0 else 0.0


def _by_epsilon(outcome: SweepOutcome) -> Results:
    found: dict[float | None, list[Mapping[str, Any]]] = {}
    for cell, result in outcome.results.items():
        found.setdefault(cell.epsilon, []).append(result)
    return found


def _own(runs: list[Mapping[str, Any]]) -> float:
    return 100 * statistics.mean(float(run["accuracy"]["local"]) for run in runs)


def _floor(runs: list[Mapping[str, Any]], floor: str, where: str = "local") -> float:
    return 100 * statistics.mean(float(run["floors"][floor][where]) for run in runs)


def _each(values: Mapping[float, float], form: str, unit: str = "") -> str:
    """As ``+1.0 (epsilon 8), -0.2 (4)``."""
    shown = [f"{value:{form}}{unit} ({epsilon:g})" for epsilon, value in sorted(values.items(), reverse=True)]
    return ", ".join(shown).replace("(", "(epsilon ", 1)


HEAD = """\
# Benchmarks

Made by `make benchmarks` from runs on the built-in image sets and the embedded model; not to be edited by hand. One
process a core, one thread each; noise, split and partition are drawn from the seeds 0, 1, ... of each table. Percent
right, mean ± standard deviation over seeds; *worst site* is the lowest accuracy of any site on its own classes in any
seed. *Own* classes are those a site trains on, *others'* those of the other sites. Epsilon is for the recipient
of a site's prompt, delta 1e-5, unit: one training image of one site.

Baselines beside every table: the plain text prompt (zero-shot), the shared prompt alone, each site alone under the same
promise (the same noise, the same number of steps, both parts trained on its own images) and without any, all images
in one place without privacy. A prompt personalised on a few classes gains on them what it gives up on others, so a
row is to be read as a pair.

Here the method is `dpfpl`; every method under every mechanism and trust mode is the table of
[accuracy.md](accuracy.md).
"""


def page(outcomes: Mapping[str, SweepOutcome], docs: Path, audits: str, seconds: float) -> str:
    """The page; pictures go to ``docs / "images"``.

    Args:
        outcomes: by a study's key.
        docs: folder of the documentation.
        audits: section about attacks, ready made.
        seconds: that all runs took, one after another.
    """
    parts = [HEAD, f"The runs of this page took {seconds / 60:.0f} minutes of one core in all, loading included.\n"]
    parts.append(aims_section(outcomes))
    kept = [study for study in STUDIES if study.key in outcomes and outcomes[study.key].results]
    parts += [_study(study, outcomes[study.key], docs / "images") for study in kept]
    parts.append(audits)
    return "\n".join(parts)


def _study(study: Study, outcome: SweepOutcome, images: Path) -> str:
    rows = summarise(outcome.results)
    lines = [f"## {study.title}", "", study.says, "", *_table(study, rows), ""]
    lines += [_floors(outcome.results), _settings(study), _events(outcome.results)]
    if study.plots:
        images.mkdir(parents=True, exist_ok=True)
        for path in write_plots(rows, images, study.title):
            target = path.with_name(f"benchmark-{study.key}-{path.name}")
            path.replace(target)
            lines += ["", f"![{study.title}](images/{target.name})"]
    curve = _curve(outcome.results)
    if curve and not study.key.startswith(("ranks", "dirichlet")):
        lines += ["", *curve]
    if not study.key.startswith("ranks"):
        lines += ["", *_preference(outcome.results)]
    planned = sum(len(sweep.cells()) for sweep in study.sweeps)
    missing = planned - len(outcome.results) - len(outcome.failed)
    if missing:
        lines += ["", f"**Not whole: {missing} of {planned} runs are missing;** see the column of seeds."]
    if outcome.failed:
        lines += ["", f"Failed: {'; '.join(outcome.failed.values())}."]
    return "\n".join(line for line in lines if line is not None) + "\n"


def _table(study: Study, rows: Sequence[Row]) -> list[str]:
    several = len({(r.method, r.rank, r.mechanism) for r in rows}) > 1
    alone = any(row.floors["local_only_local"] is not None for row in rows)
    head = [
        *(["method", "rank", "mechanism"] if several else []),
        "epsilon",
        "own",
        "others'",
        "worst site",
        "zero-shot",
    ]
    head += ["shared alone", *(["each site alone, same promise", "against zero-shot / alone"] if alone else [])]
    lines = ["| " + " | ".join([*head, "operator's epsilon", "seeds"]) + " |", "|" + "---|" * (len(head) + 2)]
    for row in rows:
        cells = [row.method, "-" if row.method == "promptfl" else str(row.rank), row.mechanism] if several else []
        cells += [
            "none" if row.epsilon is None else f"{row.epsilon:g}",
            _spread(row.local, row.local_spread),
            _spread(row.neighbour, row.neighbour_spread),
            _percent(row.worst_site),
            _pair(row, "zero_shot"),
            _pair(row, "global_only"),
        ]
        if alone:
            cells += [_pair(row, "local_only"), f"{_ahead(row, 'zero_shot')} / {_ahead(row, 'local_only')}"]
        epsilon = row.epsilon_operator
        cells += [epsilon if isinstance(epsilon, str) else f"{epsilon:.3g}", str(row.seeds)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _floors(results: Mapping[Cell, Any]) -> str:
    """The floors that do not depend on the noise, and every floor's worst site."""
    lines = []
    for floor, name in (
        ("zero_shot", "zero-shot"),
        ("local_only", "each site alone, same promise"),
        ("local_only_no_noise", "each site alone without noise"),
        ("centralised", "all images in one place without privacy"),
    ):
        found = [r["floors"][floor] for r in results.values() if floor in r["floors"]]
        if not found:
            continue
        own, others = ([f[where] for f in found if f.get(where) is not None] for where in ("local", "neighbour"))
        worst = [f["worst_site"] for f in found if f.get("worst_site") is not None]
        shown = (
            "" if floor == "local_only" else f" {_percent(statistics.mean(own))} / {_percent(statistics.mean(others))},"
        )
        lines.append(f"{name}{shown} worst site {_percent(min(worst, default=None))}")
    return "Baselines (own / others'): " + "; ".join(lines) + ".\n"


def _settings(study: Study) -> str:
    sweep = study.sweeps[-1]
    prompt, privacy, rounds = sweep.prompt, sweep.privacy, sweep.rounds
    fixed = ", ".join(
        f"{key} {value}"
        for key, value in {
            "delta": privacy.target_delta,
            "rounds": rounds.number,
            "local_steps": rounds.local_steps,
            "sample_rate": privacy.sample_rate,
            "clipping_norm": privacy.clipping_norm,
            "clipping": privacy.clipping,
            "accounting": privacy.accounting,
            "learning_rate": sweep.optimizer.global_learning_rate,
            "personal_learning_rate": sweep.optimizer.personal_learning_rate,
            "init_text": prompt.init_text,
            "num_context": prompt.num_context,
            "projection": privacy.projection,
            "absent_weight": prompt.absent_weight,
            "retention": prompt.retention,
            "personal_strength": prompt.personal_strength,
        }.items()
        if value not in ("", 0.0)
    )
    return f"Settings: {sweep.sites} sites, {sweep.partition}, rank {', '.join(map(str, sweep.grid.rank))}; {fixed}.\n"


def _events(results: Mapping[Cell, Any]) -> str:
    """From what each epsilon can be computed again: multiplier, rate and number of releases."""
    found: dict[tuple[str, float], str] = {}
    for cell, result in results.items():
        if cell.epsilon is not None:
            event = next(e for e in result["privacy"]["events"] if e["adversary"] == "prompt_recipient")
            found[cell.mechanism, cell.epsilon] = (
                f"{cell.epsilon:g}: z {event['noise_multiplier']:.3f}, rate {event['sample_rate']:g}, "
                f"{event['steps']} release{'s' if event['steps'] != 1 else ''} ({cell.mechanism})"
            )
    ordered = [text for _, text in sorted(found.items(), key=lambda pair: (pair[0][0], -pair[0][1]))]
    return "Events for the recipient of a prompt, by epsilon: " + "; ".join(ordered) + "."


def _curve(results: Mapping[Cell, Any]) -> list[str]:
    """Own / others' accuracy against the strength of the personal part."""
    groups: dict[float | None, list[Any]] = {}
    for cell, result in results.items():
        groups.setdefault(cell.epsilon, []).append(result["strength_curve"])
    lines = [
        "Strength of the personal part at use time (`personal_strength`, `predict --alpha`), own / others', worst:",
        "",
        "| epsilon | " + " | ".join(f"alpha {alpha:g}" for alpha in STRENGTHS) + " |",
        "|" + "---|" * (len(STRENGTHS) + 1),
    ]
    for epsilon, curves in sorted(groups.items(), key=lambda pair: -(pair[0] or 1e9)):
        cells = []
        for place in range(len(STRENGTHS)):
            points = [curve[place] for curve in curves]
            own, others = (statistics.mean(p[where] for p in points) for where in ("local", "neighbour"))
            cells.append(f"{_percent(own)} / {_percent(others)}, {_percent(min(p['worst_site'] for p in points))}")
        lines.append(f"| {'none' if epsilon is None else f'{epsilon:g}'} | " + " | ".join(cells) + " |")
    return lines


def _preference(results: Mapping[Cell, Any]) -> list[str]:
    """What training taught beyond a preference for a site's own classes."""
    groups: dict[float | None, list[Any]] = {}
    for cell, result in results.items():
        groups.setdefault(cell.epsilon, []).append(result["preference_curve"])
    shown = [place for place, value in enumerate(PREFERENCES) if value in (-2.0, -1.0, 0.0, 1.0, 2.0, 4.0)]
    names = " | ".join(f"{PREFERENCES[place]:+g}" if PREFERENCES[place] else "0" for place in shown)
    lines = [
        "Own classes preferred by a constant added to their logits, without training anything, own / others'; last "
        "column: what the plain text reaches on own classes with the preference that leaves it the personalised "
        "prompt's accuracy on the others', and how far training is ahead of it:",
        "",
        f"| epsilon | prompt | {names} | plain text at equal others', training ahead |",
        "|" + "---|" * (len(shown) + 3),
    ]
    for epsilon, curves in sorted(groups.items(), key=lambda pair: -(pair[0] or 1e9)):
        name = "none" if epsilon is None else f"{epsilon:g}"
        if len(lines) == 4:
            lines.append(f"| any | plain text | {_points(curves, shown, 'zero_shot')} | |")
        lines.append(f"| {name} | personalised | {_points(curves, shown, 'personalised')} | {_taught(curves)} |")
    return lines


def _points(curves: Sequence[Any], places: Sequence[int], prompt: str) -> str:
    cells = []
    for place in places:
        own, others = (
            statistics.mean(c[place][f"{prompt}_{where}"] for c in curves) for where in ("local", "neighbour")
        )
        cells.append(f"{_percent(own)} / {_percent(others)}")
    return " | ".join(cells)


def _taught(curves: Sequence[Any]) -> str:
    pairs = [(own_at_equal_others(curve), curve[PREFERENCES.index(0.0)]["personalised_local"]) for curve in curves]
    reached = [(plain, trained) for plain, trained in pairs if plain is not None]
    if not reached:
        return "-"
    ahead = statistics.mean(trained - plain for plain, trained in reached)
    return f"{_percent(statistics.mean(plain for plain, _ in reached))}, {100 * ahead:+.1f}"


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


def _ahead(row: Row, floor: str) -> str:
    """Points of own accuracy above a floor."""
    level = row.floors[f"{floor}_local"]
    return "-" if level is None or row.local is None else f"{100 * (row.local - level):+.1f}"


def _pair(row: Row, floor: str) -> str:
    return f"{_percent(row.floors[f'{floor}_local'])} / {_percent(row.floors[f'{floor}_neighbour'])}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _spread(value: float | None, spread: float) -> str:
    return "-" if value is None else f"{100 * value:.1f} ± {100 * spread:.1f}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"
