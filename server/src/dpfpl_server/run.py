"""``dpfpl-server run`` and ``resume``: one experiment on a running SuperLink, watched to its end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpfpl_common.errors import ConfigError, RoundError
from dpfpl_common.experiment import Experiment
from dpfpl_common.experiment_file import experiment_from_table
from dpfpl_common.planning import resolve_noise
from dpfpl_common.settings import read_toml
from dpfpl_server.report import write_report
from dpfpl_server.result import build_result
from dpfpl_server.run_folder import RunFolder
from dpfpl_server.sites import load_sites, node_ids
from dpfpl_server.strategy import Status
from dpfpl_server.supervise import Limits, supervise

__all__ = ["finish", "load_planned_experiment", "run_experiment"]


def load_planned_experiment(path: Path, server_folder: Path, *, registered: bool = True) -> Experiment:
    """Read experiment.toml and calibrate its noise.

    Without a list of sites the experiment takes all that the SuperLink knows, or without ``registered`` all that are
    provisioned; without a name, the file's.
    """
    table = dict(read_toml(path))
    table.setdefault("name", path.stem)
    known = node_ids(server_folder) if registered else load_sites(server_folder)
    table.setdefault("sites", sorted(known))
    if not table["sites"]:
        raise ConfigError(
            code="NO_SITES",
            message="No site is provisioned yet.",
            advice="Provision sites first: dpfpl-server provision --site NAME --out KITS, then dpfpl-server start.",
        )
    return resolve_noise(experiment_from_table(table, path.name))


def run_experiment(
    experiment: Experiment,
    server_folder: Path,
    run_folder: Path,
    on_status: Callable[[Status], None] = lambda status: None,
    limits: Limits | None = None,
) -> dict[str, Any]:
    """Run the experiment to its end, resuming what is cut off; write result.json and report.html.

    Args:
        experiment: noise level resolved; a run folder of the same experiment is continued from its checkpoint.
        server_folder: of the running server.
        run_folder: where everything about the run goes.
        on_status: called with everything that strategy and supervision report.
        limits: how much trouble to bear.

    Returns:
        What result.json holds; of a finished run, what it held already.

    Raises:
        RoundError: the run failed; the message carries the reason, and the checkpoint stays for ``resume``.
        StateError: the folder is another experiment's, or somebody runs this one already.
    """
    folder = RunFolder(run_folder.resolve())
    folder.begin(experiment)
    finished: dict[str, Any] | None = folder.read_json("result.json")
    if finished is not None:
        return finished
    with folder.supervisor_pulse():
        if folder.store.fact("final") is None:
            supervise(folder, server_folder, lambda: _sites(experiment, server_folder), limits or Limits(), on_status)
        return finish(folder)


def finish(folder: RunFolder) -> dict[str, Any]:
    """Write result.json and report.html of a run whose sites have evaluated the final prompt."""
    checkpoint, final = folder.load_checkpoint(), folder.store.fact("final")
    if checkpoint is None or final is None:
        raise RoundError(
            code="NOT_FINISHED",
            message=f"{folder.path} is not finished.",
            advice="Resume it: dpfpl-server resume NAME.",
        )
    experiment, attempts = folder.experiment(), folder.store.attempts()
    result = build_result(
        experiment,
        transport="grpc+tls",
        history=checkpoint.history,
        final=final,
        num_classes={},
        seconds=sum((attempt.ended or attempt.started) - attempt.started for attempt in attempts),
        node_authentication=True,
    )
    result["runs"] = [{"run_id": str(a.run_id), "outcome": a.outcome} for a in attempts]
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
