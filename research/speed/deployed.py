"""What a round of a deployed federation costs: the demo's server and its four sites as processes on this machine.

``measure_deployed_round`` holds the demo's rounds against empty ones. Both are exchanged by the same SuperLink, the
same four SuperNodes and the same strategy loop, one after the other, so the difference is what DP-FPL adds: the agents'
work, the way to them, checks, aggregation and checkpoint.

``python -m research.speed.deployed OUT`` times whole experiments under secure trust and under local, in turns; every
message of a site goes through its SuperNode, its ClientApp and its agent.
"""

import dataclasses
import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from dpfpl_bench.demo.demonstration import DemoRequest, provisioned, start_federation
from dpfpl_bench.demo.scenarios import DEMO
from dpfpl_common.errors import RoundError
from dpfpl_common.ops.processes import ProcessGroup, wait_until
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.supervise import run_experiment
from dpfpl_server.sites.control import bundle_files
from dpfpl_server.sites.superlink import run_status, submit_run
from research.writing import table

__all__ = ["AIM", "measure_deployed_round", "measure_trusts"]

ROOT = Path(__file__).resolve().parents[2]
EPSILON = 8.0
AIM = 1.2
"""A round should take at most so many empty rounds, plus what its slowest site computes."""
TURNS, ROUNDS = 3, 10
TRUSTS: tuple[Literal["local", "secure"], ...] = ("local", "secure")
POLICY = """\
experiments = ["*"]
max_epsilon_per_experiment = 10.0
max_epsilon_lifetime = 1000.0
max_epsilon_operator_lifetime = 1000.0
trust = ["local", "secure"]
"""


def measure_deployed_round(
    out: Path, rounds: int = ROUNDS, on_step: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Start the demo's federation, run its experiment and then empty rounds; everything is stopped again.

    Args:
        out: a folder for keys, logs and results; emptied first.
        rounds: of the experiment. The first one is left out of the medians: sites build their learners in it.
        on_step: told what happens.

    Returns:
        Medians in seconds: ``round_s``, from the end of one round to the end of the next, with its checkpoint;
        ``empty_round_s``; ``slowest_site_s`` as sites report it, rounded up to tenths; ``allowed_s`` = 1.2 empty rounds
        plus the slowest site; the round's ``ratio`` to that; all values; and how often the server asked all sites
        in the whole experiment of ``number`` rounds, its ``exchanges``: once a round and once for the scores, however
        often one of them had to be asked again.
    """
    shutil.rmtree(out, ignore_errors=True)
    os.environ["PYTHONPATH"] = str(ROOT)  # no distribution has the empty apps
    on_step("provisioning")
    request = DemoRequest(out, rounds, EPSILON)
    work, fleet, control = provisioned(DEMO, request)
    experiment = DEMO.federation(request).experiment
    with ProcessGroup() as group:
        on_step("starting a server and four sites")
        start_federation(work, fleet, control, group, DEMO.sites)
        on_step(f"{rounds} rounds of the demo")
        run_experiment(experiment, work / "server", out / "run")
        on_step("empty rounds")
        empty = _empty_rounds(work / "server", out / "empty.json", group)
    events = RunFolder(out / "run").events()
    ends = [event["at"] for event in events if event["phase"] == "ROUND_DONE"]
    sent = {(event["phase"], event["round"]) for event in events if event["phase"] in ("TRAINING", "EVALUATING")}
    took = [round(after - before, 3) for before, after in pairwise(ends)]
    round_s, empty_s = (statistics.median(values) for values in (took, empty))
    slowest_s = max(float(file.read_text()) for file in work.rglob("reply_time.json"))  # all replies of a site take it
    allowed = AIM * empty_s + slowest_s
    return {
        "round_s": round_s,
        "empty_round_s": round(empty_s, 3),
        "slowest_site_s": slowest_s,
        "allowed_s": round(allowed, 3),
        "ratio": round(round_s / allowed, 3),
        "rounds": took,
        "empty_rounds": [round(value, 3) for value in empty],
        "number": len(ends),
        "exchanges": len(sent),
    }


def _empty_rounds(server: Path, file: Path, group: ProcessGroup) -> list[float]:
    """Seconds of each, the first one left out as well."""
    bundle = bundle_files()["pyproject.toml"]
    for ours, empty in ((b"dpfpl_server.federation.app:app", b"server"), (b"dpfpl_client.node.app:app", b"client")):
        assert ours in bundle
        bundle = bundle.replace(ours, b"research.speed.empty_apps:" + empty)
    run_id = submit_run(server, {"run-dir": str(file.resolve())}, bundle={"pyproject.toml": bundle})
    wait_until(
        lambda: run_status(server, run_id).finished,
        timeout_s=600,
        what="the empty rounds",
        processes=group.processes,
        interval_s=0.5,
    )
    if not file.exists():
        raise RoundError(code="EMPTY_ROUNDS", message=f"The empty rounds failed; see {server / 'logs'}.")
    seconds: list[float] = json.loads(file.read_text())
    return seconds[1:]


def measure_trusts(out: Path) -> dict[str, dict[str, float]]:
    """Medians in seconds over the turns, by trust: ``whole``, from the first message to the last; ``sums``; ``round``.

    ``out`` is emptied first.
    """
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
                privacy = dataclasses.replace(experiment.privacy, trust=trust)
                named = dataclasses.replace(experiment, name=f"{trust}-{turn}", privacy=privacy)
                run_experiment(named, work / "server", out / named.name)
                found[trust].append(_seconds(RunFolder(out / named.name).events()))
    return {
        trust: {what: statistics.median(turn[what] for turn in turns) for what in turns[0]}
        for trust, turns in found.items()
    }


def _seconds(events: list[dict[str, Any]]) -> dict[str, float]:
    first = next(event["at"] for event in events if event["phase"] in ("SUMMING", "TRAINING"))
    training = next(event["at"] for event in events if event["phase"] == "TRAINING")
    evaluating = next(event["at"] for event in events if event["phase"] == "EVALUATING")
    done = [event["at"] for event in events if event["phase"] == "ROUND_DONE"]
    return {
        "whole": events[-1]["at"] - first,
        "sums": training - first + evaluating - done[-1],  # the rows and the vote before, the scores after
        "round": statistics.median(after - before for before, after in pairwise([training, *done])),
    }


if __name__ == "__main__":
    rows = [
        (f"`{trust}`", f"{row['whole']:.1f}", f"{row['sums']:.1f}", f"{row['round']:.2f}")
        for trust, row in measure_trusts(Path(sys.argv[1])).items()
    ]
    print(table(("trust", "whole experiment, s", "of it in sums, s", "a round, s"), rows))
