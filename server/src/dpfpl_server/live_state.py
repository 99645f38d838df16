"""What is known of a running experiment, as a frozen value that each status of the strategy moves on."""

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dpfpl_server.plain_words import amount, bytes_text, percent, printable, seconds_text

__all__ = ["LiveState"]


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
        metrics, seconds = status.get("metrics", {}), status.get("site_seconds", {})
        sites = dict(self.sites)
        for site in status.get("sites", ()):
            took = f" in {seconds_text(seconds[site])}" if site in seconds else ""
            sites[printable(site)] = f"round {number} done{took}"
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
