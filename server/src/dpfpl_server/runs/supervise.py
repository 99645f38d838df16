"""``dpfpl-server run`` and ``resume``: one experiment on a running SuperLink, watched to its end."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dpfpl_common.config import build
from dpfpl_common.errors import ConfigError, DeploymentError, RoundError, StateError
from dpfpl_common.experiment import Experiment, experiment_table, with_secure
from dpfpl_common.privacy_plan import resolve_noise
from dpfpl_server.federation.rounds import Status
from dpfpl_server.report import write_report
from dpfpl_server.runs.folder import Attempt, RunFolder
from dpfpl_server.runs.result import build_result
from dpfpl_server.sites.admin import revoked_sites
from dpfpl_server.sites.control import RunStatus
from dpfpl_server.sites.register import enrolled_sites, load_sites, node_ids
from dpfpl_server.sites.superlink import run_log, run_status, stop_run, submit_run

__all__ = ["Limits", "finish", "load_planned_experiment", "run_experiment", "stop_experiment", "supervise"]


# Sees one experiment through: submits a Flower run, follows it, and resumes in a new one what was killed on the way.
#
# A run that *decided* to end (a round abandoned three times, sites missing for too long, a damaged checkpoint) is not
# tried again: asking again changes nothing, and its reason is what the operator needs. A run that was cut off (server
# program, SuperLink or machine killed) is resumed from its checkpoint, visibly, until a limit.


POLL_SECONDS = 0.5
CUT_OFF_S = 3.0
"""A ServerApp that was seen at work, ended without a word and stays away this long was killed."""
START_S = 120.0
"""A run that Flower calls running has to have a ServerApp at work by then."""

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How much trouble a run tolerates.

    Attributes:
        restarts: Flower runs that may follow a first one that was cut off.
        server_wait_s: how long a SuperLink that does not answer is waited for.
        site_wait_s: how long missing sites are waited for before a round.
    """

    restarts: int = 5
    server_wait_s: float = 600.0
    site_wait_s: float = 120.0


def supervise(
    folder: RunFolder,
    server_folder: Path,
    sites: Callable[[], dict[str, dict[str, Any]]],
    limits: Limits,
    on_status: Callable[[Status], None],
) -> None:
    """Return when the experiment is complete.

    Args:
        folder: of the experiment; begun.
        server_folder: of a running SuperLink.
        sites: node id and signing key of each site, looked up again for every Flower run.
        limits: how much trouble to tolerate.
        on_status: gets everything that strategy and supervision report.

    Raises:
        RoundError: the run ended for good, was stopped, or was cut off too often; ``resume`` goes on later.
        DeploymentError: no SuperLink answers at the start.
    """
    folder.store.set_fact("settings", {"site_wait_s": limits.site_wait_s, "server": str(server_folder.resolve())})
    follower = _Follower(folder, server_folder, limits, on_status)
    attempt = _still_running(folder, server_folder)
    restarts = 0
    while True:
        if attempt is None:
            attempt = follower.patiently(lambda: _submit(folder, server_folder, sites), restarts > 0)
        try:
            outcome, details = follower.follow(attempt)
        except KeyboardInterrupt:
            stop_run(server_folder, attempt.run_id)
            folder.add_event(_stopped("interrupted in the terminal"))
            folder.store.end_attempt(attempt.number, "stopped")
            raise
        folder.store.end_attempt(attempt.number, outcome)
        if outcome == "completed":
            return
        if outcome != "crashed" or restarts == limits.restarts:
            raise follower.error(outcome, details)
        restarts += 1
        text = f"the run was cut off ({details}); resuming, {restarts} of at most {limits.restarts} times"
        folder.add_event({"phase": "RESUMING", "restart": restarts, "limit": limits.restarts, "text": text})
        attempt = None


def stop_experiment(folder: RunFolder, server_folder: Path) -> None:
    """End the experiment's Flower run; its checkpoint stays, and ``resume`` goes on.

    Raises:
        StateError: no run of it is going on.
    """
    experiment = folder.experiment()
    going_on = [attempt for attempt in folder.store.attempts() if not attempt.outcome]
    if not going_on:
        raise StateError(
            code="NOT_RUNNING",
            message=f"The experiment {experiment.name!r} is not running.",
            advice="See dpfpl-server list.",
        )
    folder.add_event(_stopped("dpfpl-server stop"))  # first, so that no supervisor takes the end for an accident
    stop_run(server_folder, going_on[-1].run_id)
    if not folder.supervisor_life().alive:
        folder.store.end_attempt(going_on[-1].number, "stopped")


def _stopped(by: str) -> Status:
    return {"phase": "STOPPED", "by": by, "text": f"stopped ({by}); to continue: dpfpl-server resume"}


def _submit(folder: RunFolder, server_folder: Path, sites: Callable[[], dict[str, dict[str, Any]]]) -> Attempt:
    folder.store.set_fact("sites", sites())
    run_id = submit_run(server_folder, {"run-dir": str(folder.path)})
    return Attempt(folder.store.begin_attempt(run_id), run_id, time.time(), None, "")


def _still_running(folder: RunFolder, server_folder: Path) -> Attempt | None:
    """The Flower run that an earlier supervisor left at work; one that is over is noted as such."""
    for attempt in folder.store.attempts():
        if attempt.outcome:
            continue
        status = _status(server_folder, attempt.run_id)
        if status is not None and not status.finished:
            if folder.server_life().alive:
                return attempt
            stop_run(server_folder, attempt.run_id)
        folder.store.end_attempt(attempt.number, "completed" if status is not None and status.completed else "crashed")
    return None


class _Follower:
    """Passes a run's events on until it ends."""

    def __init__(
        self, folder: RunFolder, server_folder: Path, limits: Limits, on_status: Callable[[Status], None]
    ) -> None:
        self._folder = folder
        self._server = server_folder
        self._limits = limits
        self._on_status = on_status
        self._seen = folder.store.event_count()
        self._last: dict[str, Status] = {}

    def follow(self, attempt: Attempt) -> tuple[str, str]:
        """How the run ended (completed, failed, stopped, crashed), and Flower's word for it."""
        self._last = {}
        seen_alive, quiet_since = False, time.monotonic()
        while True:
            status = self.patiently(lambda: _status(self._server, attempt.run_id), True)
            alive = self._folder.server_life().alive
            self._forward()
            if alive:
                seen_alive, quiet_since = True, time.monotonic()
            if (ended := self._ended(status)) is not None:
                self._forward()
                return ended
            if time.monotonic() - quiet_since > (CUT_OFF_S if seen_alive else START_S):
                stop_run(self._server, attempt.run_id)
                return "crashed", "the server's program is gone"
            time.sleep(POLL_SECONDS)

    def patiently(self, call: Callable[[], T], patient: bool) -> T:
        """The call's value; while no SuperLink answers it is tried again, visibly and for a bounded time."""
        end, said = time.monotonic() + self._limits.server_wait_s, False
        while True:
            try:
                return call()
            except DeploymentError as error:
                if error.code != "CONTROL_UNREACHABLE" or not patient:
                    raise
                if time.monotonic() >= end:
                    raise RoundError(
                        code="SERVER_UNREACHABLE",
                        message=f"No SuperLink answered for {self._limits.server_wait_s:g} s.",
                        advice="Start it (dpfpl-server start), then resume the experiment; nothing is lost.",
                    ) from None
            if not said:
                said = True
                text = f"the SuperLink does not answer; waiting up to {self._limits.server_wait_s:g} s for it"
                self._folder.add_event({"phase": "SERVER_UNREACHABLE", "text": text})
            self._forward()
            time.sleep(POLL_SECONDS)

    def error(self, outcome: str, details: str) -> RoundError:
        """What to raise for a run that did not complete."""
        if outcome == "stopped":
            return RoundError(
                code="STOPPED",
                message="The experiment was stopped; its completed rounds are kept.",
                advice="To continue: dpfpl-server resume NAME.",
            )
        if (said := self._last.get("FAILED")) is not None:
            return RoundError(code=said["code"], message=said["message"], advice=said["advice"])
        attempts = self._folder.store.attempts()
        log = _log_tail(self._server, attempts[-1].run_id) if attempts else ""
        return RoundError(
            code="RUN_FAILED",
            message=f"The run was cut off too often, the last time: {details}.\n{log}".rstrip(),
            advice="Look at the server's log; then resume: dpfpl-server resume NAME.",
        )

    def _ended(self, status: RunStatus | None) -> tuple[str, str] | None:
        """None while it goes on."""
        if "STOPPED" in self._last:
            return "stopped", "stopped"
        over = status is None or status.finished
        quiet = not self._folder.server_life().alive
        if self._folder.store.fact("final") is not None and (quiet or over):
            return "completed", ""
        if "FAILED" in self._last and (quiet or over):
            return "failed", ""
        if status is None:
            return "crashed", "the SuperLink does not know the run"
        if not status.finished:
            return None
        words = f"{status.status}:{status.sub_status} {status.details}".strip()
        return ("stopped" if status.sub_status == "stopped" else "crashed"), words

    def _forward(self) -> None:
        for event in self._folder.events(self._seen):
            self._seen += 1
            self._last[event["phase"]] = event
            self._on_status(event)


def _status(server_folder: Path, run_id: int) -> RunStatus | None:
    """Where a run stands; None if the SuperLink has another database than when it was submitted."""
    try:
        return run_status(server_folder, run_id)
    except DeploymentError as error:
        if error.code != "CONTROL_REFUSED":
            raise
        return None


def _log_tail(server_folder: Path, run_id: int) -> str:
    try:
        return "".join(run_log(server_folder, run_id))[-2000:]
    except DeploymentError:
        return ""


def load_planned_experiment(path: Path, server_folder: Path, *, registered: bool = True) -> Experiment:
    """Read experiment.toml and calibrate its noise.

    Without a list of sites the experiment takes all that the SuperLink knows, or without ``registered`` all that are
    provisioned; without a name, the file's; without a trust, ``secure`` where all its sites enrolled for it.
    """
    table = experiment_table(path)
    known = node_ids(server_folder) if registered else load_sites(server_folder)
    table.setdefault("sites", sorted(known))
    if not table["sites"]:
        raise ConfigError(
            code="NO_SITES",
            message="No site is provisioned yet.",
            advice="Provision sites first: dpfpl-server provision --site NAME --out KITS, then dpfpl-server start.",
        )
    experiment = build(Experiment, table, path.name)
    if table.get("privacy", {}).get("trust", "auto") == "auto":
        experiment, _ = with_secure(experiment, enrolled_sites(server_folder))
    return resolve_noise(experiment)


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
        limits: how much trouble to tolerate.

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
            before = folder.store.fact("sites") or {}
            supervise(
                folder,
                server_folder,
                lambda: _sites(experiment, server_folder, before),
                limits or Limits(),
                on_status,
            )
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
        scores=folder.store.fact("scores") or {},
        num_classes={},
        evidence=checkpoint.evidence,
        seconds=sum((attempt.ended or attempt.started) - attempt.started for attempt in attempts),
        node_authentication=True,
    )
    result["runs"] = [{"run_id": str(a.run_id), "outcome": a.outcome} for a in attempts]
    folder.write_json("result.json", result)
    write_report(folder.path)
    return result


def _sites(
    experiment: Experiment, server_folder: Path, before: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Flower's node id and the public signing key of every site of the experiment.

    A site that was there when the experiment began and was revoked since keeps the place it had ``before``: whether the
    others are enough for a round, the strategy decides and says.
    """
    known = {name: site for name, site in load_sites(server_folder).items() if site.node_id is not None}
    kept = {site: before[site] for site in experiment.sites if site in before and site not in known}
    missing = [site for site in experiment.sites if site not in known and site not in kept]
    if missing:
        revoked = any(row["name"] == missing[0] and row["why"] == "revoked" for row in revoked_sites(server_folder))
        raise ConfigError(
            code="SITE_REVOKED" if revoked else "UNKNOWN_SITE",
            message=f"The site {missing[0]!r} {'was revoked' if revoked else 'is not registered'} at this server.",
            advice=f"Leave it out of the experiment, or let it in{' again' if revoked else ''} with a new kit: "
            f"dpfpl-server sites add {missing[0]} --out kits. Registered: {', '.join(sorted(known)) or 'none'}.",
        )
    unsigned = [site for site in experiment.sites if site not in kept and not known[site].agent_key]
    if unsigned:
        raise ConfigError(
            code="NO_SIGNING_KEY",
            message=f"The site {unsigned[0]!r} was provisioned without a signing key, by an earlier release.",
            advice=f"Give it a new kit: dpfpl-server provision --site {unsigned[0]} --force.",
        )
    return {
        site: kept.get(site) or {"node": known[site].node_id, "key": known[site].agent_key} for site in experiment.sites
    }
