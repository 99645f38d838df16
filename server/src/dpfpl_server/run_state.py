"""Where a run stands, told from its state on disk and from who is alive, so that a dead server is never called busy."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from dpfpl_server.exit_codes import FAILED, NOT_GOING_ON, STUCK
from dpfpl_server.plain_words import seconds_text
from dpfpl_server.run_folder import RunFolder

__all__ = ["STATES", "RunState", "run_state"]

STATES = {
    "NOT_STARTED": "planned, no run was submitted",
    "STARTING": "a run was submitted, its program is not at work yet, or it is being resumed",
    "WAITING_FOR_SITES": "too few sites are connected",
    "RUNNING": "rounds are made",
    "HANGING": "the program is there but has given no sign of life for a while",
    "FAILED": "ended for the reason given; mend it, then resume",
    "STOPPED": "stopped by the operator; resume goes on",
    "CUT_OFF": "the program is gone and nobody supervises it; resume goes on",
    "FINISHED": "result.json is there",
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
        at: seconds since the epoch of that event.
        alive: whether the ServerApp's program runs now.
        sign_age_s: seconds since it last showed that it works; None if it never ran.
        supervised: whether a ``run`` or ``resume`` looks after it now.
        runs: Flower runs so far.
        drops: replies that were not used, by site and code.
    """

    name: str
    state: str
    round: int
    rounds: int
    last: dict[str, Any]
    at: float | None
    alive: bool
    sign_age_s: float | None
    supervised: bool
    runs: int
    drops: dict[str, int]

    @property
    def over(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.state in ("FINISHED", "FAILED", "STOPPED", "CUT_OFF", "NOT_STARTED")

    @property
    def exit_code(self) -> int:
        """See ``exit_codes``."""
        codes = {"FAILED": FAILED, "STOPPED": NOT_GOING_ON, "CUT_OFF": NOT_GOING_ON}
        return {**codes, "WAITING_FOR_SITES": STUCK, "HANGING": STUCK}.get(self.state, 0)

    def table(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "state": self.state,
            "meaning": STATES[self.state],
            "round": self.round,
            "rounds": self.rounds,
            "last": self.last,
            "finished": self.state == "FINISHED",
            "alive": self.alive,
            "sign_age_s": None if self.sign_age_s is None else round(self.sign_age_s, 1),
            "supervised": self.supervised,
            "runs": self.runs,
            "drops": self.drops,
        }

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
    attempts = folder.store.attempts()
    return RunState(
        name=experiment.name,
        state=_state(last, finished, server.alive, server.age_s, supervisor.alive, bool(attempts)),
        round=checkpoint.round if checkpoint else 0,
        rounds=experiment.rounds.number,
        last=last,
        at=last.get("at"),
        alive=server.alive,
        sign_age_s=server.age_s,
        supervised=supervisor.alive,
        runs=len(attempts),
        drops=dict(drops),
    )


def _state(
    last: dict[str, Any], finished: bool, alive: bool, age_s: float | None, supervised: bool, submitted: bool
) -> str:
    phase = last["phase"]
    if finished:
        return "FINISHED"
    if alive:
        if age_s is not None and age_s > HANGING_S:
            return "HANGING"
        return "WAITING_FOR_SITES" if phase == "WAITING_FOR_SITES" else "RUNNING"
    if supervised:
        return "STARTING"
    if phase in ("FAILED", "STOPPED"):
        return str(phase)
    return "CUT_OFF" if submitted or phase != "NOT_STARTED" else "NOT_STARTED"
