"""``dpfpl-server run`` and ``resume``: one experiment on a running SuperLink, watched to its end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpfpl_common.errors import ConfigError, RoundError
from dpfpl_common.experiment import Experiment
from dpfpl_common.planning import resolve_noise
from dpfpl_common.settings import from_table, read_toml
from dpfpl_server.report import write_report
from dpfpl_server.result import build_result
from dpfpl_server.run_folder import RunFolder
from dpfpl_server.sites import load_sites, node_ids
from dpfpl_server.strategy import Status
from dpfpl_server.superlink import run_log, run_status, stop_run, submit_run

__all__ = ["load_planned_experiment", "run_experiment"]

POLL_SECONDS = 0.5


def load_planned_experiment(path: Path, server_folder: Path) -> Experiment:
    """Read experiment.toml and calibrate its noise.

    Without a list of sites the experiment takes all provisioned ones; without a name, the file's.
    """
    table = dict(read_toml(path))
    table.setdefault("name", path.stem)
    table.setdefault("sites", sorted(node_ids(server_folder)))
    if not table["sites"]:
        raise ConfigError(
            code="NO_SITES",
            message="No site is provisioned yet.",
            advice="Provision sites first: dpfpl-server provision --site NAME --out KITS, then dpfpl-server start.",
        )
    return resolve_noise(from_table(Experiment, table, path.name))


def run_experiment(
    experiment: Experiment,
    server_folder: Path,
    run_folder: Path,
    on_status: Callable[[Status], None] = lambda status: None,
) -> dict[str, Any]:
    """Submit the experiment, follow it to its end, write result.json and report.html.

    Args:
        experiment: noise level resolved; a run folder of the same experiment is continued from its checkpoint.
        server_folder: of the running server.
        run_folder: where everything about the run goes.
        on_status: called with everything that the strategy reports.

    Returns:
        What result.json holds; of a finished run, what it held already.

    Raises:
        RoundError: the run failed; the message carries the reason, and the checkpoint stays for ``resume``.
    """
    folder = RunFolder(run_folder.resolve())
    folder.begin(experiment)
    finished: dict[str, Any] | None = folder.read_json("result.json")
    if finished is not None:
        return finished
    started = time.monotonic()
    seen = len(folder.events())
    if folder.read_json("final.json") is None:
        folder.write_json("sites.json", _sites(experiment, server_folder))
        run_id = submit_run(server_folder, {"run-dir": str(folder.path)})
        try:
            _follow(folder, server_folder, run_id, seen, on_status)
        except KeyboardInterrupt:
            stop_run(server_folder, run_id)
            raise
    return finish(folder, time.monotonic() - started)


def finish(folder: RunFolder, seconds: float) -> dict[str, Any]:
    """Write result.json and report.html of a run whose sites have evaluated the final prompt."""
    checkpoint, final = folder.load_checkpoint(), folder.read_json("final.json")
    if checkpoint is None or final is None:
        raise RoundError(
            code="NOT_FINISHED",
            message=f"{folder.path} is not finished.",
            advice="Resume it: dpfpl-server resume NAME.",
        )
    experiment = folder.experiment()
    result = build_result(
        experiment,
        transport="grpc+tls",
        history=checkpoint.history,
        final=final,
        num_classes={},
        seconds=seconds,
        node_authentication=True,
    )
    folder.write_json("result.json", result)
    write_report(folder.path)
    return result


def _sites(experiment: Experiment, server_folder: Path) -> dict[str, dict[str, Any]]:
    """Flower's node id and the public signing key of every site of the experiment."""
    known = {name: site for name, site in load_sites(server_folder).items() if site.node_id is not None}
    missing = [site for site in experiment.sites if site not in known]
    if missing:
        raise ConfigError(
            code="UNKNOWN_SITE",
            message=f"The site {missing[0]!r} is not registered at this server.",
            advice=f"Provision it and restart the server. Registered: {', '.join(sorted(known)) or 'none'}.",
        )
    unsigned = [site for site in experiment.sites if not known[site].agent_key]
    if unsigned:
        raise ConfigError(
            code="NO_SIGNING_KEY",
            message=f"The site {unsigned[0]!r} was provisioned without a signing key, by an earlier release.",
            advice=f"Give it a new kit: dpfpl-server provision --site {unsigned[0]} --force.",
        )
    return {site: {"node": known[site].node_id, "key": known[site].agent_key} for site in experiment.sites}


def _follow(
    folder: RunFolder, server_folder: Path, run_id: int, seen: int, on_status: Callable[[Status], None]
) -> None:
    """Pass the run's events on until it ends; a failed run raises with its own last words."""
    failure: Status | None = None
    while True:
        ended = run_status(server_folder, run_id)
        for event in folder.events(seen):
            seen += 1
            on_status(event)
            failure = event if event["phase"] == "FAILED" else failure
        if ended.finished:
            break
        time.sleep(POLL_SECONDS)
    if ended.completed:
        return
    if failure is not None:
        raise RoundError(code=failure["code"], message=failure["message"], advice=failure["advice"])
    log = "".join(run_log(server_folder, run_id))[-2000:]
    raise RoundError(
        code="RUN_FAILED",
        message=f"The run ended as {ended.status}:{ended.sub_status} {ended.details}\n{log}",
        advice="Look at the server's log; then resume: dpfpl-server resume NAME.",
    )
