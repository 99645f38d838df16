"""``python -m research attacks``: the table of hostile sites and aggregation rules, over seeds.

Every run's figures are kept in a file of their own as soon as it is done: what was broken off goes on where it was.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpfpl_bench.simulation.run import write_result
from research.hostile_sites.attacks import ATTACKS, RULES, Attacked, AttackSettings

__all__ = ["AttackRequest", "largest_spread", "markdown", "run_attacks"]

FIGURES = ("personal", "shared", "personal_success", "shared_success")


@dataclass(frozen=True)
class AttackRequest:
    """What to measure.

    Attributes:
        federations: number of sites, and how many of them are hostile.
        settings: what all runs share.
        seeds: runs of each cell, from 0, averaged.
    """

    federations: tuple[tuple[int, int], ...] = ((5, 1), (10, 2))
    settings: AttackSettings = field(default_factory=AttackSettings)
    seeds: int = 3


def run_attacks(
    request: AttackRequest, kept: Path, on_cell: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """One entry a cell: sites, hostile, attack, rule, mean and standard deviation of every figure over the seeds.

    Args:
        request: what to measure.
        kept: folder of the single runs' figures; what it has of the same settings is not run again.
        on_cell: told each cell as it is complete.
    """
    cells = []
    for count, hostile in request.federations:
        runs: dict[tuple[str, str], list[dict[str, float]]] = {}
        for seed in range(request.seeds):
            federation: Attacked | None = None
            for attack in ATTACKS:
                for rule in RULES:
                    file = kept / f"{_name(request.settings, count, hostile, attack, rule, seed)}.json"
                    if not file.exists():
                        federation = federation or Attacked(request.settings, count, hostile, seed)
                        write_result(dict(federation.run(attack, rule)), file)
                        on_cell(f"{file.stem} done")
                    runs.setdefault((attack, rule), []).append(json.loads(file.read_text(encoding="utf-8")))
        for (attack, rule), found in runs.items():
            means = {key: statistics.fmean(run[key] for run in found) for key in FIGURES}
            spreads = {f"{key}_spread": _deviation([run[key] for run in found]) for key in FIGURES}
            cells.append({"sites": count, "hostile": hostile, "attack": attack, "rule": rule, **means, **spreads})
    return cells


def _name(settings: AttackSettings, count: int, hostile: int, attack: str, rule: str, seed: int) -> str:
    """Names a run by everything that its figures depend on."""
    epsilon = "none" if settings.epsilon is None else f"{settings.epsilon:g}"
    shared = f"{settings.partition}-e{epsilon}-r{settings.rounds}-l{settings.learning_rate:g}"
    what = f"{attack}-{rule}".replace(" ", "_").replace(",", "")
    return f"{hostile}of{count}-{what}-{shared}-s{seed}"


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def largest_spread(cells: Sequence[Mapping[str, Any]], figure: str) -> float:
    """The largest standard deviation over seeds of any cell."""
    return max(float(cell[f"{figure}_spread"]) for cell in cells)


def markdown(cells: Sequence[Mapping[str, Any]]) -> str:
    """Two tables, personal / shared prompt in percent: the accuracies, and how often a stamped image passes."""
    doors = [cell for cell in cells if cell["attack"] == "none" or ATTACKS[cell["attack"]].poison == "backdoor"]
    accuracies = _table(cells, "personal", "shared")
    return f"{accuracies}\nStamped images that pass for the target class:\n\n" + _table(
        doors, "personal_success", "shared_success"
    )


def _table(cells: Sequence[Mapping[str, Any]], personal: str, shared: str) -> str:
    lines = ["| Hostile sites | Attack | " + " | ".join(RULES) + " |", "|---" * (2 + len(RULES)) + "|"]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for cell in cells:
        row = rows.setdefault((f"{cell['hostile']} of {cell['sites']}", cell["attack"]), {})
        row[cell["rule"]] = f"{100 * cell[personal]:.1f} / {100 * cell[shared]:.1f}"
    for (who, attack), row in rows.items():
        lines.append(f"| {who} | {attack} | " + " | ".join(row.get(rule, "") for rule in RULES) + " |")
    return "\n".join(lines) + "\n"
