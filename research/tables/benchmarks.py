"""``python -m research benchmarks``: everything behind docs/results/benchmarks.md, on built-in images, then the page.

Resumable: a run is a file, and the page is written from the files alone, so it never says what did not run. Every table
stands beside each site alone.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dpfpl_bench.simulation.curves import PREFERENCES, plain_at_equal_others
from dpfpl_bench.simulation.settings import RunPrompt
from dpfpl_bench.sweep.sweep import Grid, Sweep, SweepOutcome, finished_runs, run_sweep
from dpfpl_common.errors import ConfigError
from dpfpl_common.ops.files import write_durably
from research.evidence import growth as by_sites
from research.evidence.study import built_in
from research.writing import deviation, kept, panels, picture, points, spread, table, told_apart

__all__ = ["EPSILONS", "FEWER_SEEDS", "SEEDS", "STUDIES", "Study", "audit_section", "page", "run_benchmarks"]

EPSILONS = (8.0, 2.0, 1.0)
SETS = ("digits", "shapes")
SEEDS, FEWER_SEEDS = 5, 3
GROWTH_SETS = ("digits", "shapes-more")
Runs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Study:
    """One table.

    Attributes:
        key: the prefix of its files.
        title: of its section.
        says: what its sites are and what it answers.
        sweeps: its runs; every one stands beside each site alone under the same promise.
    """

    key: str
    title: str
    says: str
    sweeps: tuple[Sweep, ...]


def _beside_all(key: str, base: Sweep) -> tuple[Sweep, Sweep]:
    """Without noise beside all baselines; with noise beside each site alone under the same promise."""
    return (
        dataclasses.replace(base, name=f"{key}-bare", grid=Grid(epsilon=())),
        dataclasses.replace(base, name=key, floors="alone", grid=Grid(epsilon=EPSILONS, no_noise=False)),
    )


STUDIES = tuple(
    study
    for data in SETS
    for study in (
        Study(
            f"{data}-default",
            f"Sites that share no class, {data}",
            "Four sites with classes of their own and the default settings: one noised release, `local` trust.",
            _beside_all(f"{data}-default", Sweep(data=data, seeds=SEEDS)),
        ),
        Study(
            f"{data}-dirichlet",
            f"Small sites that share classes, {data}",
            "Twelve sites, Dirichlet(0.3), 30 to 260 training images each, the default settings.",
            (
                Sweep(
                    name=f"{data}-dirichlet",
                    data=data,
                    seeds=FEWER_SEEDS,
                    sites=12,
                    partition="dirichlet",
                    floors="alone",
                    grid=Grid(epsilon=EPSILONS),
                ),
            ),
        ),
        Study(
            f"{data}-per-step",
            f"The paper's own set-up, {data}",
            "Prompts alone (`evidence = false`), noise at every step (`per_step`, `distributed`), the same sites.",
            (
                Sweep(
                    name=f"{data}-per-step",
                    data=data,
                    seeds=FEWER_SEEDS,
                    floors="alone",
                    prompt=RunPrompt(evidence=False),
                    grid=Grid(mechanism=("per_step",), trust=("distributed",), epsilon=(8.0, 2.0)),
                ),
            ),
        ),
    )
)
"""All tables, in the order of the page."""

AUDITS = {
    "The default settings' one release, digits, epsilon 8": ("--epsilon", "8", "--mechanism", "one_shot"),
    "The default settings' one release, digits, epsilon 2": ("--epsilon", "2", "--mechanism", "one_shot"),
    "Noise at every step, digits, epsilon 8": ("--epsilon", "8", "--mechanism", "per_step", "--quick"),
    "Noise at every step, digits, epsilon 2": ("--epsilon", "2", "--mechanism", "per_step", "--quick"),
}
"""What is attacked, and the flags of ``dpfpl-bench audit``: class sums take it seconds, trainings minutes."""
AUDIT_SEEDS = 2
CLAIM_BROKEN = 1


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
"""


def run_benchmarks(
    out: Path, docs: Path, demo: Path, workers: int, on_text: Callable[[str], None], *, run: bool = True
) -> None:
    """Run what is missing and write docs/results/benchmarks.md.

    Args:
        out: folder of the runs.
        docs: where the page and its pictures go.
        demo: a demo whose released prompts are attacked, if it is there.
        workers: processes.
        on_text: told what is done.
        run: otherwise nothing is run, and what is there is written.
    """
    began = time.monotonic()
    outcomes = {study.key: _run_study(study, out, workers if run else 0, on_text) for study in STUDIES}
    flags = {title: ("--data", "digits", *call) for title, call in AUDITS.items()}
    if (demo / "result.json").is_file():
        flags["The prompts that the demo released"] = ("--demo", str(demo))
    if not run:
        flags = {title: call for title, call in flags.items() if _report_path(out, call).is_file()}
    with ThreadPoolExecutor(workers) as pool:
        reports = dict(zip(flags, pool.map(lambda call: _audit(out, call, on_text), flags.values()), strict=True))
    growth = _grown(out, on_text, run=run)
    on_text(f"all runs: {(time.monotonic() - began) / 60:.1f} minutes")
    write_durably(docs / "benchmarks.md", page(outcomes, growth, docs, audit_section(reports)).encode(), 0o644)


def _run_study(study: Study, out: Path, workers: int, on_text: Callable[[str], None]) -> SweepOutcome:
    """What is missing of a study; its sweeps share a folder and with it the image features. No worker runs nothing."""
    whole = SweepOutcome()
    for sweep in study.sweeps:
        on_text(f"{study.key}: {sweep.name}")
        if workers:
            outcome = run_sweep(sweep, out, workers, lambda p: on_text(f"  {p.done}/{p.total} {p.text}"))
        else:
            outcome = finished_runs(sweep, out)
        whole.results.update(outcome.results)
        whole.failed.update(outcome.failed)
    return whole


def _grown(out: Path, on_text: Callable[[str], None], *, run: bool) -> list[dict[str, Any]]:
    """All-classes accuracy by number of sites, one entry for each set and epsilon that is there."""
    found = []
    for name in GROWTH_SETS:
        for epsilon in by_sites.EPSILONS:
            path = out / "growth" / f"{name}-{epsilon:g}.json"
            if run or path.is_file():
                on_text(f"growth: {name}, epsilon {epsilon:g}")
                pairs = kept(path, partial(_grown_of, name, epsilon, path.parent))
                found.append({"set": name, "epsilon": epsilon, "lines": dict(pairs)})
    return found


def _grown_of(name: str, epsilon: float, folder: Path) -> list[Any]:
    """Pairs, because JSON has no numbers for keys."""
    (study,) = built_in(name, folder)
    return list(by_sites.grown(study, epsilon, 2 * SEEDS).items())


def _audit(out: Path, flags: tuple[str, ...], on_text: Callable[[str], None]) -> Any:
    """One audit in a process of its own, unless its report is there."""
    path = _report_path(out, flags)
    if not path.exists():
        on_text(f"audit: {' '.join(flags)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "dpfpl_bench", "audit", *flags, "--seeds", str(AUDIT_SEEDS), "--out", str(path)],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=False,
        )
        if done.returncode not in (0, CLAIM_BROKEN):
            raise ConfigError(
                code="AUDIT_FAILED",
                message=f"dpfpl-bench audit {' '.join(flags)} ended with {done.returncode}: {done.stderr[-500:]}",
                advice="Run that command by itself.",
            )
    return json.loads(path.read_text())


def _report_path(out: Path, flags: tuple[str, ...]) -> Path:
    return out / "audits" / ("_".join(flags).replace("--", "").replace("/", "_") + ".json")


def page(outcomes: Mapping[str, SweepOutcome], growth: Sequence[Mapping[str, Any]], docs: Path, audits: str) -> str:
    """The page; pictures go to ``docs / "images"``.

    Args:
        outcomes: by a study's key.
        growth: entries ``{"set", "epsilon", "lines": {sites: {way: (mean, deviation)}}}``.
        docs: folder of the documentation.
        audits: section about attacks, ready made.
    """
    images = docs / "images"
    there = [(study, _by_epsilon(outcomes[study.key])) for study in STUDIES if study.key in outcomes]
    there = [(study, groups) for study, groups in there if groups]
    parts = [HEAD, _equal_others(there, images), _growth(growth, images)]
    parts += [_section(study, groups, outcomes[study.key]) for study, groups in there]
    return "\n".join([*parts, audits])


def _by_epsilon(outcome: SweepOutcome) -> dict[float | None, Runs]:
    """Runs that differ in the seed alone, without noise first, then from the largest epsilon on."""
    found: dict[float | None, list[Mapping[str, Any]]] = {}
    for cell, result in outcome.results.items():
        found.setdefault(cell.epsilon, []).append(result)
    return dict(sorted(found.items(), key=lambda pair: -(pair[0] or 1e9)))


def _equal_others(there: Sequence[tuple[Study, Mapping[float | None, Runs]]], images: Path) -> str:
    rows, curves = [], []
    for study, groups in there:
        groups = {epsilon: runs for epsilon, runs in groups.items() if all("own_at_equal_others" in r for r in runs)}
        data, sites = study.sweeps[0].data, f"{study.sweeps[0].sites}, {study.sweeps[0].partition}"
        for epsilon, runs in groups.items():
            rows.append([data, sites, _epsilon(epsilon), *(_at_equal(runs, way) for way, *_ in WAYS)])
        if len(groups) > 2:
            curves.append((f"{data}, {sites}", groups))
    text = EQUAL + "\n" + table(("set", "sites", "epsilon", *(label for _, label, _ in WAYS)), rows) + "\n"
    if curves:
        _draw(curves, images / PICTURE)
        text += f"\n![Own accuracy where the others' classes are still known](images/{PICTURE})\n"
    return text


def _at_equal(runs: Runs, way: str) -> str:
    """Mean and deviation; in brackets how many seeds have such a mix at all, if not all."""
    there = _own_at_equal(runs, way)
    return spread(there) + (f" ({len(there)} of {len(runs)})" if len(there) < len(runs) else "")


def _own_at_equal(runs: Runs, way: str) -> list[float]:
    """Percent, of the seeds that have it."""
    found = [run["own_at_equal_others"][way] for run in runs]
    return [100 * value for value in found if value is not None]


def _draw(curves: Sequence[tuple[str, Mapping[float | None, Runs]]], path: Path) -> None:
    """One panel for every study; without noise is the rightmost point."""
    columns = min(2, len(curves))
    with picture(path, (5.5 * columns, 3.4 * -(-len(curves) // columns))) as figure:
        axes = panels(figure, len(curves), columns)
        for axis, (title, groups) in zip(axes, curves, strict=True):
            epsilons = list(groups)[::-1]
            for way, label, colour in WAYS:
                values = [_own_at_equal(groups[epsilon], way) for epsilon in epsilons]
                places = [place for place, each in enumerate(values) if each]
                lines = [(statistics.mean(each), deviation(each)) for each in values if each]
                points(axis, places, lines, color=colour, label=label)
            axis.set_xticks(range(len(epsilons)), map(_epsilon, epsilons))
            axis.set_title(title)
            axis.set_xlabel("epsilon")
            axis.set_ylabel("own classes, percent")
        told_apart(figure, axes[0], ncols=3)


def _growth(entries: Sequence[Mapping[str, Any]], images: Path) -> str:
    if not entries:
        return ""
    by_sites.draw([(f"{e['set']}, epsilon {e['epsilon']:g}", e["lines"]) for e in entries], images / GROWTH_PICTURE)
    parts = (
        "## What more sites bring",
        "Sites of 50 images of any class; all classes, ten seeds.",
        by_sites.growth_table([(entry["set"], entry["epsilon"], entry["lines"]) for entry in entries]),
        f"![All-classes accuracy by number of sites](images/{GROWTH_PICTURE})",
    )
    return "\n\n".join(parts) + "\n"


def _section(study: Study, groups: Mapping[float | None, Runs], outcome: SweepOutcome) -> str:
    lines = [f"## {study.title}", "", study.says, ""]
    columns = ["epsilon", "federated: own", "others'", "all", "worst site", "prompt alone", "class vectors alone"]
    columns += ["plain text", "each site alone", "ahead of it", "operator's epsilon", "seeds"]
    if "evidence" not in next(iter(groups.values()))[0]["candidates"]:
        columns[5:7] = ["ahead of the plain text at equal others'"]
    lines.append(table(columns, (_row(epsilon, runs) for epsilon, runs in groups.items())))
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
        *(spread([run[column] for run in used], 100) for column in ("local", "neighbour", "all")),
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


def audit_section(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """What attacks learned, from the JSON of ``dpfpl-bench audit``, by what was attacked."""
    head = ("attack", "measure", "with noise", "noise off", "guess", "claim", "verdict")
    parts = [
        "## Attacks",
        "`dpfpl-bench audit`: every attack also runs with the noise off. An attack is *alive* if it does far better "
        "there (a bound above 0.5 and twice the noised one; a rate a fifth of the way from a guess to certainty): only "
        "then does its failure say anything. Bounds hold with 95 % confidence each; over seeds the largest with noise "
        "and the smallest without are shown.",
    ]
    for title, report in reports.items():
        seeds = ", ".join(map(str, report["seeds"]))
        parts += [f"### {title}", table(head, map(_finding, report["findings"]))]
        parts.append(f"Seeds {seeds}; effort {report['effort']}.")
    return "\n\n".join(parts) + "\n"


def _finding(found: Mapping[str, Any]) -> list[str]:
    claim = found["claimed_epsilon"]
    if claim is not None and not found["holds"]:
        verdict = "BROKEN"
    elif not found["alive"]:
        verdict = "weak attack, says little"
    else:
        verdict = "alive, holds" if found["holds"] else "alive, noise hides little"
    return [
        f"{found['attack']} ({found['adversary']})",
        found["measure"],
        *(f"{found[figure]:.2f}" for figure in ("with_noise", "noise_off", "guess")),
        "" if claim is None else claim if isinstance(claim, str) else f"{claim:.2f}",
        verdict,
    ]


def _mean(rows: Runs, column: str) -> float:
    return statistics.mean(float(row[column]) for row in rows)


def _triple(rows: Runs) -> str:
    return " / ".join(f"{100 * _mean(rows, column):.1f}" for column in ("local", "neighbour", "all"))


def _epsilon(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
