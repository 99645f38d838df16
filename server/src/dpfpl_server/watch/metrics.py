"""Whether the server serves, for probes; and its monitoring endpoint."""

import shutil
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from dpfpl_common.errors import DeploymentError, DpfplError
from dpfpl_common.experiment import Experiment
from dpfpl_common.ops.diagnostics import Trouble
from dpfpl_common.ops.monitor import Family, Monitor, Sample, parse_monitor_address
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.result import mean, privacy_statement
from dpfpl_server.runs.state import STATES, RunState, run_state
from dpfpl_server.sites.certificates import expiries
from dpfpl_server.sites.life import part_troubles
from dpfpl_server.sites.superlink import open_control

__all__ = ["experiment_families", "server_families", "server_troubles", "start_server_monitor"]


# What the operator's dashboards show, read from the runs' folders and from the running SuperLink.
#
# Where sites are sampled secretly, nothing is shown that tells how many or which took part in a round: the epsilons
# count
# on that.


def server_families(server_folder: Path, runs: Path) -> list[Family]:
    """Everything that ``/metrics`` shows."""
    statuses = _statuses(server_folder)
    now = datetime.now(UTC)
    days = [({"file": expiry.file}, expiry.days_left(now)) for expiry in expiries(server_folder)]
    counts = Counter(statuses or ())
    sites: list[Sample] = [({"status": status}, counts[status]) for status in ("online", "offline", "registered")]
    return [
        Family("dpfpl_server_up", "gauge", "1 if the SuperLink answers.", [({}, 0 if statuses is None else 1)]),
        Family("dpfpl_server_sites", "gauge", "Sites by status.", sites if statuses is not None else []),
        Family("dpfpl_server_certificate_days", "gauge", "Days until a certificate ends.", days),
        *experiment_families(runs),
    ]


def experiment_families(runs: Path) -> list[Family]:
    """Every experiment under the runs' folder that can be read."""
    samples: dict[str, list[Sample]] = {name: [] for name in _FAMILIES}
    for path in sorted(runs.iterdir()) if runs.is_dir() else []:
        if (path / "experiment.json").is_file():
            folder = RunFolder(path)
            try:
                _collect(folder.experiment(), run_state(folder), folder, samples)
            except DpfplError:
                samples["dpfpl_experiment_unreadable"].append(({"experiment": path.name}, 1))
            finally:
                folder.store.close()
    return [Family(name, kind, said, samples[name]) for name, (kind, said) in _FAMILIES.items()]


_FAMILIES = {
    "dpfpl_experiment_unreadable": ("gauge", "1 for a run's folder that is damaged."),
    "dpfpl_experiment_state": ("gauge", "1 for the state that an experiment is in."),
    "dpfpl_experiment_round": ("gauge", "Rounds completed."),
    "dpfpl_experiment_rounds_planned": ("gauge", "Rounds in all."),
    "dpfpl_experiment_waiting_sites": ("gauge", "Sites that the run is waiting for now."),
    "dpfpl_experiment_round_seconds": ("gauge", "Seconds that the last round took."),
    "dpfpl_experiment_round_seconds_total": ("counter", "Seconds that all completed rounds took."),
    "dpfpl_experiment_bytes_total": ("counter", "Bytes of arrays and text in the messages of completed rounds."),
    "dpfpl_experiment_replies_total": ("counter", "Replies by outcome, and by reason where they were dropped."),
    "dpfpl_experiment_epsilon": ("gauge", "Epsilon spent so far, by adversary; +Inf where nothing is promised."),
    "dpfpl_experiment_accuracy": ("gauge", "Mean of the accuracies that sites let out last, by kind."),
    "dpfpl_experiment_runs_total": ("counter", "Flower runs of the experiment: more than one means it was resumed."),
}


def _collect(experiment: Experiment, state: RunState, folder: RunFolder, into: dict[str, list[Sample]]) -> None:
    own = {"experiment": experiment.name}
    into["dpfpl_experiment_state"] += [({**own, "state": name}, float(name == state.state)) for name in STATES]
    into["dpfpl_experiment_round"].append((own, state.round))
    into["dpfpl_experiment_rounds_planned"].append((own, state.rounds))
    into["dpfpl_experiment_runs_total"].append((own, state.runs))
    for entry in privacy_statement(experiment, state.round)["epsilons"]:
        spent = float("inf") if entry["epsilon"] == "infinite" else float(entry["epsilon"])
        into["dpfpl_experiment_epsilon"].append(({**own, "adversary": entry["adversary"]}, spent))
    if experiment.privacy.site_sample_rate < 1:  # who was drawn is secret, and each of the following would tell
        return
    waiting = 0 if state.over else len(state.last.get("waiting_for", ()))
    into["dpfpl_experiment_waiting_sites"].append((own, waiting))
    rounds = folder.store.rounds()
    if rounds:
        into["dpfpl_experiment_round_seconds"].append((own, rounds[-1]["seconds"]))
        into["dpfpl_experiment_round_seconds_total"].append((own, sum(entry["seconds"] for entry in rounds)))
    for direction in ("up", "down"):
        carried = sum(entry[f"bytes_{direction}"] for entry in rounds)
        into["dpfpl_experiment_bytes_total"].append(({**own, "direction": direction}, carried))
    accepted = sum(len(entry["sites"]) for entry in rounds)
    into["dpfpl_experiment_replies_total"].append(({**own, "outcome": "accepted", "reason": ""}, accepted))
    for reason, count in sorted(Counter(drop["code"] for drop in folder.store.drops()).items()):
        into["dpfpl_experiment_replies_total"].append(({**own, "outcome": "dropped", "reason": reason}, count))
    _accuracies(own, folder, rounds, into["dpfpl_experiment_accuracy"])


def _accuracies(own: dict[str, str], folder: RunFolder, rounds: list[dict[str, object]], into: list[Sample]) -> None:
    result = folder.read_json("result.json")
    if result is not None:
        found = {kind: result["accuracy"].get(kind) for kind in ("local", "neighbour", "worst_site")}
    else:
        last = next((entry["metrics"] for entry in reversed(rounds) if entry["metrics"]), {})
        assert isinstance(last, dict)
        found = {
            kind: mean(metrics.get(f"personal_{kind}") for metrics in last.values()) for kind in ("local", "neighbour")
        }
    into += [({**own, "kind": kind}, value) for kind, value in found.items() if value is not None]


def _statuses(server_folder: Path) -> list[str] | None:
    """The status of every registered site; None if no SuperLink answers."""
    try:
        with open_control(server_folder) as control:
            return [node.status for node in control.nodes()]
    except DeploymentError:
        return None


FULL_BYTES = 50 << 20


def server_troubles(server_folder: Path) -> list[Trouble]:
    """Every real reason why the server does not serve its sites; empty if it does.

    Sites that are away are none: a round waits for them, and its experiment's state says so.
    """
    found = part_troubles(server_folder)
    if not any(trouble.part == "superlink" for trouble in found):
        try:
            with open_control(server_folder) as control:
                control.nodes()
        except DeploymentError as error:
            found.append(Trouble("superlink", error.code, error.message))
    now = datetime.now(UTC)
    for expiry in expiries(server_folder):
        if expiry.days_left(now) <= 0:
            text = f"{expiry.file} ended on {expiry.not_after:%Y-%m-%d}: no site can connect any more"
            found.append(Trouble("certificate", "CERTIFICATE_EXPIRED", text))
    if server_folder.is_dir() and shutil.disk_usage(server_folder).free < FULL_BYTES:
        found.append(Trouble("disk", "DISK_FULL", f"less than 50 MiB are free for {server_folder}"))
    return found


def start_server_monitor(server_folder: Path, runs: Path, address: str, *, public: bool = False) -> Monitor:
    """Show health and metrics at ``host:port``, on loopback unless ``public``.

    Raises:
        ConfigError: the address is none or public.
        DeploymentError: it cannot be listened on.
    """
    host, port = parse_monitor_address(address, public=public)
    return Monitor(
        host,
        port,
        health=lambda: server_troubles(server_folder),
        metrics=lambda: server_families(server_folder, runs),
    )
