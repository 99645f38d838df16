"""What a ledger's records add up to."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from dpfpl_client.agent.anchor import ExperimentTotal, events_from_json
from dpfpl_common.accounting import PrivacyEvent

__all__ = ["Charge", "LedgerState"]


@dataclass(frozen=True)
class Charge:
    """One reserved or committed release, or what was assumed to be spent when an old ledger was accepted.

    Attributes:
        sequence: its record in the ledger.
        request_digest: what was asked; empty if it was assumed.
        release_digest: sha256 of what left; empty while only reserved.
        events: what every adversary learns.
        at: when, by the site's clock, UTC.
    """

    sequence: int
    experiment: str
    round: int
    request_digest: str
    release_digest: str
    events: tuple[PrivacyEvent, ...]
    at: str = ""

    def event(self, adversary: str) -> PrivacyEvent:
        """What this adversary learns."""
        return next(event for event in self.events if event.adversary == adversary)


@dataclass
class LedgerState:
    """What the records read so far add up to."""

    kind: str = ""
    identity: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    charges: dict[int, Charge] = field(default_factory=dict)
    latest: dict[tuple[str, int], int] = field(default_factory=dict)
    last_round: dict[str, int] = field(default_factory=dict)
    totals: dict[str, dict[tuple[str, str, float, float], int]] = field(default_factory=dict)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    begun: dict[str, str] = field(default_factory=dict)
    repeats: dict[str, int] = field(default_factory=dict)

    def apply(self, sequence: int, record: dict[str, Any]) -> None:
        """Count a record in.

        Raises:
            LookupError, TypeError or ValueError: it is no record.
        """
        self.kind = record["kind"]
        match record["kind"]:
            case "genesis":
                self.identity = record["ledger"]
            case "bind":
                self.digests[record["experiment"]] = record["digest"]
            case "reserve" | "assume":
                self._charge(sequence, record)
            case "commit":
                charge = self.charges[record["reserve"]]
                self.charges[charge.sequence] = replace(charge, release_digest=record["release"])
            case "dataset":
                self.datasets.append({key: value for key, value in record.items() if key != "kind"})
            case "evaluate":
                self.evaluations.setdefault(record["experiment"], {})[record["request"]] = record["answer"]

    def events(self, of: Callable[[str], bool], adversary: str) -> list[PrivacyEvent]:
        """What the experiments whose names satisfy ``of`` told an adversary; equal mechanisms added up."""
        sums: dict[tuple[str, str, float, float], int] = {}
        for name, totals in self.totals.items():
            for kind, steps in totals.items() if of(name) else ():
                if kind[0] == adversary:
                    sums[kind] = sums.get(kind, 0) + steps
        return [PrivacyEvent(*kind, steps=steps) for kind, steps in sorted(sums.items())]

    def totals_by_experiment(self) -> dict[str, ExperimentTotal]:
        """What each experiment was charged, all adversaries."""
        return {
            name: ExperimentTotal(
                self.last_round.get(name, 0),
                tuple(PrivacyEvent(*kind, steps=steps) for kind, steps in totals.items()),
            )
            for name, totals in self.totals.items()
        }

    def _charge(self, sequence: int, record: dict[str, Any]) -> None:
        name, number, events = record["experiment"], record["round"], events_from_json(record["events"])
        self.charges[sequence] = Charge(sequence, name, number, record.get("request", ""), "", events, record["at"])
        self.begun.setdefault(name, record["at"])
        if (name, number) in self.latest:
            self.repeats[name] = self.repeats.get(name, 0) + 1
        self.latest[name, number] = sequence
        self.last_round[name] = max(number, self.last_round.get(name, 0))
        totals = self.totals.setdefault(name, {})
        for event in events:
            kind = (event.adversary, event.mechanism, event.noise_multiplier, event.sample_rate)
            totals[kind] = totals.get(kind, 0) + event.steps
