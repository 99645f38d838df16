"""Seconds of a deployed experiment under secure trust and under local: ``python -m research.speed.secure_rounds OUT``.

The demo's server and its four sites as processes on this machine, with the same two experiments run in turns; every
message of a site goes through its SuperNode, its ClientApp and its agent.
"""

import dataclasses
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from dpfpl_bench.demo.demonstration import DemoRequest, provisioned, start_federation
from dpfpl_bench.demo.scenarios import DEMO
from dpfpl_common.experiment import Experiment
from dpfpl_common.ops.processes import ProcessGroup
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.supervise import run_experiment

TURNS = 3
ROUNDS = 10
EPSILON = 8.0
TRUSTS = ("local", "secure")
POLICY = """\
experiments = ["*"]
max_epsilon_per_experiment = 10.0
max_epsilon_lifetime = 1000.0
max_epsilon_operator_lifetime = 1000.0
trust = ["local", "secure"]
"""


def measure(out: Path) -> dict[str, dict[str, float]]:
    """Medians over the turns, by trust: ``whole``, from the first message to the last; ``round``; ``sum``."""
    shutil.rmtree(out, ignore_errors=True)
    request = DemoRequest(out, ROUNDS, EPSILON)
    work, fleet, control = provisioned(DEMO, request)
    for site in DEMO.sites:
        (work / "kits" / site / "policy.toml").write_text(POLICY)
    experiment = DEMO.federation(request).experiment
    found: dict[str, list[dict[str, float]]] = {trust: [] for trust in TRUSTS}
    with ProcessGroup() as group:
        start_federation(work, fleet, control, group, DEMO.sites)
        for turn in range(TURNS):
            for trust in TRUSTS:
                named = _with(experiment, f"{trust}-{turn}", trust)
                run_experiment(named, work / "server", out / named.name)
                found[trust].append(_seconds(RunFolder(out / named.name).events()))
    return {
        trust: {what: statistics.median(turn[what] for turn in turns) for what in turns[0]}
        for trust, turns in found.items()
    }


def _with(experiment: Experiment, name: str, trust: Any) -> Experiment:
    return dataclasses.replace(experiment, name=name, privacy=dataclasses.replace(experiment.privacy, trust=trust))


def _seconds(events: list[dict[str, Any]]) -> dict[str, float]:
    first = next(event["at"] for event in events if event["phase"] in ("SUMMING", "TRAINING"))
    training = next(event["at"] for event in events if event["phase"] == "TRAINING")
    evaluating = next(event["at"] for event in events if event["phase"] == "EVALUATING")
    done = [event["at"] for event in events if event["phase"] == "ROUND_DONE"]
    rounds = [after - before for before, after in zip([training, *done], done, strict=False)]
    return {
        "whole": events[-1]["at"] - first,
        "round": statistics.median(rounds),
        "sums": training - first + evaluating - done[-1],  # the rows and the vote before, the scores after
    }


if __name__ == "__main__":
    print("| trust | whole experiment, s | of it in sums, s | a round, s |")
    print("|---|---|---|---|")
    for trust, row in measure(Path(sys.argv[1])).items():
        print(f"| `{trust}` | {row['whole']:.1f} | {row['sums']:.1f} | {row['round']:.2f} |")
