"""What is known of a running experiment, as a frozen value that each status of the strategy moves on."""

import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dpfpl_common.ops.heartbeat import LifeSign
from dpfpl_common.ops.text import printable
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.words import amount, bytes_text, percent, seconds_text

__all__ = ["STATES", "LiveState", "RunState", "run_state"]


# Where a run stands is told from its state on disk and from who is alive, so that a dead server is never called busy.

STATES = {
    "NOT_STARTED": "planned, no run was submitted",
    "STARTING": "a run was submitted or resumed; its program has not started to work",
    "WAITING_FOR_SITES": "too few sites are connected",
    "RUNNING": "training",
    "HANGING": "the program has not responded for a while",
    "FAILED": "ended for the reason given; fix it, then resume",
    "STOPPED": "stopped by the operator; resume continues",
    "CUT_OFF": "the program has ended without a supervisor; resume continues",
    "FINISHED": "results are ready",
}
"""Every state and what it means."""

HANGING_S = 20.0


@dataclass(frozen=True)
class RunState:
    """One look at a run.

    Attributes:
        name: of the experiment.
        state: key of STATES.
        round: rounds completed.
        rounds: in all.
        last: the newest event.
        alive: whether the ServerApp's program runs now.
        sign_age_s: seconds since it last showed that it works; None if it never ran.
        supervised: whether a ``run`` or ``resume`` looks after it now.
        runs: Flower runs so far.
        drops: replies that were not used, by site and code.
        nothing_found: what is said where no class stands out of the noise, by the newest class sums; else empty.
    """

    name: str
    state: str
    round: int
    rounds: int
    last: dict[str, Any]
    alive: bool
    sign_age_s: float | None
    supervised: bool
    runs: int
    drops: dict[str, int]
    nothing_found: str = ""

    @property
    def at(self) -> float | None:
        """Seconds since the epoch of the newest event."""
        at: float | None = self.last.get("at")
        return at

    @property
    def over(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.state in ("FINISHED", "FAILED", "STOPPED", "CUT_OFF", "NOT_STARTED")

    def table(self) -> dict[str, Any]:
        """For JSON."""
        age = None if self.sign_age_s is None else round(self.sign_age_s, 1)
        more = {"meaning": STATES[self.state], "finished": self.state == "FINISHED", "sign_age_s": age}
        return {**vars(self), **more}

    def lines(self) -> list[str]:
        """For people."""
        age = "" if self.at is None else f", for {seconds_text(max(0.0, time.time() - self.at))}"
        head = f"{self.name}: {self.state}{self._waiting()}, round {self.round} of {self.rounds} done"
        lines = [head + (age if not self.over else ""), f"  {STATES[self.state]}"]
        if self.state == "FAILED":
            lines.append(f"  {self.last['code']}: {self.last['message']} {self.last['advice']}".rstrip())
        elif self.last.get("text"):
            lines.append(f"  {self.last['text']}")
        if self.runs:
            sign = "never" if self.sign_age_s is None else f"{seconds_text(self.sign_age_s)} ago"
            alive = f"alive, last sign {sign}" if self.alive else f"not running, last sign {sign}"
            supervised = "yes" if self.supervised else "no"
            lines.append(f"  server's program: {alive}; supervised: {supervised}; Flower runs so far: {self.runs}")
        if self.drops:
            lines.append("  replies not used: " + ", ".join(f"{what} {n}x" for what, n in sorted(self.drops.items())))
        if self.nothing_found and self.nothing_found != self.last.get("text"):
            lines.append(f"  {self.nothing_found}")
        return lines

    def _waiting(self) -> str:
        if self.state == "WAITING_FOR_SITES":
            missing = ", ".join(self.last.get("waiting_for", ()))
            return f" ({self.last.get('connected')}/{self.last.get('sites')}, missing: {missing})"
        if self.state == "RUNNING" and self.last.get("waiting_for"):
            return f" ({self.last['phase'].lower()}, no answer yet: {', '.join(self.last['waiting_for'])})"
        return ""


def run_state(folder: RunFolder) -> RunState:
    """Look at a run; changes nothing.

    Raises:
        StateError: there is none, or it is damaged.
    """
    experiment, checkpoint = folder.experiment(), folder.load_checkpoint()
    last = folder.store.last_event() or {"phase": "NOT_STARTED"}
    server, supervisor = folder.server_life(), folder.supervisor_life()
    drops = Counter(f"{drop['site']} {drop['code']}" for drop in folder.store.drops())
    finished = folder.read_json("result.json") is not None
    found = folder.store.last_event("EVIDENCE") or {}
    attempts = folder.store.attempts()
    return RunState(
        name=experiment.name,
        state=_state(last["phase"], finished, server, supervisor.alive, bool(attempts)),
        round=checkpoint.round if checkpoint else 0,
        rounds=experiment.rounds.number,
        last=last,
        alive=server.alive,
        sign_age_s=server.age_s,
        supervised=supervisor.alive,
        runs=len(attempts),
        drops=dict(drops),
        nothing_found=str(found.get("warning", "")),
    )


def _state(phase: str, finished: bool, server: LifeSign, supervised: bool, submitted: bool) -> str:
    if finished:
        return "FINISHED"
    if server.alive:
        if server.age_s is not None and server.age_s > HANGING_S:
            return "HANGING"
        return "WAITING_FOR_SITES" if phase == "WAITING_FOR_SITES" else "RUNNING"
    if supervised:
        return "STARTING"
    if phase in ("FAILED", "STOPPED"):
        return phase
    return "CUT_OFF" if submitted or phase != "NOT_STARTED" else "NOT_STARTED"


@dataclass(frozen=True)
class LiveState:
    """Where an experiment stands.

    Statuses may be repeated, missing, or of an unknown phase: the state says what the last ones said.

    Attributes:
        rounds: rounds in all.
        completed: rounds completed.
        activity: what happens now, one line of printable text.
        sites: last state of each site seen so far, by name.
        accuracy: mean accuracy on the sites' own classes, as last reported; None if no site reports it.
        accuracy_rounds: rounds that had been completed when it was measured.
    """

    rounds: int
    completed: int = 0
    activity: str = "starting"
    sites: Mapping[str, str] = field(default_factory=dict)
    accuracy: float | None = None
    accuracy_rounds: int = 0

    def after(self, status: Mapping[str, Any]) -> "LiveState":
        """The state after one more status."""
        number = int(status.get("round", self.completed))
        match status.get("phase"):
            case "WAITING_FOR_SITES":
                return self._waiting(status, number)
            case "TRAINING":
                return self._exchanging(status, "training", f"round {number}: training", number - 1)
            case "EVALUATING":
                return self._exchanging(status, "evaluating", "evaluating the final prompt", number)
            case "ROUND_DONE":
                return self._done(status, number)
            case "ROUND_ABANDONED":
                attempt, reasons = status.get("attempt", "?"), status.get("reasons", "")
                text = f"round {number}: attempt {attempt} abandoned ({reasons})"
                return dataclasses.replace(self, activity=printable(text))
            case "FINISHED":
                return dataclasses.replace(self, completed=number, activity=f"finished after {amount(number, 'round')}")
            case phase:
                text = status.get("text") or status.get("message") or phase or "working"
                return dataclasses.replace(self, activity=printable(text))

    def _waiting(self, status: Mapping[str, Any], number: int) -> "LiveState":
        missing = [printable(site) for site in status.get("waiting_for", ())]
        connected = f"{status.get('connected', '?')} of {status.get('sites', '?')} connected"
        sites = dict.fromkeys(self.sites, "connected") | dict.fromkeys(missing, "not connected")
        activity = f"round {number}: waiting for {', '.join(missing) or 'sites'} ({connected})"
        return dataclasses.replace(self, completed=max(0, number - 1), activity=activity, sites=sites)

    def _exchanging(self, status: Mapping[str, Any], verb: str, activity: str, completed: int) -> "LiveState":
        waiting = {printable(site) for site in status.get("waiting_for", ())}
        sites = {site: verb if site in waiting else "answered" for site in sorted({*self.sites, *waiting})}
        activity += f", waiting for {', '.join(sorted(waiting))}" if waiting else ""
        return dataclasses.replace(self, completed=max(0, completed), activity=activity, sites=sites)

    def _done(self, status: Mapping[str, Any], number: int) -> "LiveState":
        metrics = status.get("metrics", {})
        sites = dict(self.sites)
        for site in status.get("sites", ()):
            sites[printable(site)] = f"round {number} done"
        dropped = {printable(site): printable(reason) for site, reason in status.get("dropped", {}).items()}
        sites |= {site: f"left out of round {number}: {reason}" for site, reason in dropped.items()}
        values = [m["personal_local"] for m in metrics.values() if "personal_local" in m]
        traffic = f"{bytes_text(status.get('bytes_up'))} up, {bytes_text(status.get('bytes_down'))} down"
        parts = [
            f"round {number}: done in {seconds_text(status.get('seconds'))}",
            amount(len(status.get("sites", ())), "site"),
            traffic,
            *(f"left out {site} ({reason})" for site, reason in sorted(dropped.items())),
        ]
        state = dataclasses.replace(
            self, completed=number, activity=", ".join(parts), sites=dict(sorted(sites.items()))
        )
        if not values:
            return state
        return dataclasses.replace(state, accuracy=statistics.fmean(values), accuracy_rounds=number - 1)

    @property
    def accuracy_text(self) -> str:
        """The accuracy so far, with the number of rounds that it belongs to."""
        if self.accuracy is None:
            return "not reported yet"
        return f"{percent(self.accuracy)} after {amount(self.accuracy_rounds, 'round')}"
