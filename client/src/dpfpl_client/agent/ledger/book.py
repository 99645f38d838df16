"""A site's privacy ledger: every charge as a record that is only ever added, and what they sum up to."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dpfpl_client.agent.ledger.anchor import (
    Anchor,
    ExperimentTotal,
    Kind,
    Registry,
    Snapshot,
    event_of,
    events_from_json,
    events_to_json,
    kind_of,
    missing_from,
)
from dpfpl_client.agent.ledger.file import BrokenChainError, LedgerFile, create_schema, follow
from dpfpl_common.errors import RefusedError, StateError
from dpfpl_common.privacy.accounting import BOTH_PARTS, PrivacyEvent
from dpfpl_common.privacy_plan import ADVERSARIES

__all__ = ["LEDGER_FILE", "ROWS", "SCORES", "VOTE", "Charge", "Ledger", "LedgerState"]


# What a ledger's records add up to.


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


@dataclass
class LedgerState:
    """What the records read so far add up to."""

    kind: str = ""
    identity: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    charges: dict[int, Charge] = field(default_factory=dict)
    latest: dict[tuple[str, int], int] = field(default_factory=dict)
    last_round: dict[str, int] = field(default_factory=dict)
    totals: dict[str, dict[Kind, int]] = field(default_factory=dict)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    begun: dict[str, str] = field(default_factory=dict)
    repeats: dict[str, int] = field(default_factory=dict)
    plans: dict[str, dict[Kind, int]] = field(default_factory=dict)
    voted: set[str] = field(default_factory=set)
    accepted: int = 0
    unmasked: dict[tuple[str, str], str] = field(default_factory=dict)

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
                if record.get("vote"):
                    self.voted.add(charge.experiment)
            case "dataset":
                self.datasets.append({key: value for key, value in record.items() if key != "kind"})
                if record.get("moved"):
                    self._mix_parts()
            case "accepted":
                self.accepted = sequence
            case "unmasked":
                self.unmasked[record["experiment"], record["sum"]] = record["request"]
            case "evaluate":
                self.evaluations.setdefault(record["experiment"], {})[record["request"]] = record["answer"]

    def events(self, of: Callable[[str], bool], adversary: str, *, planned: bool = False) -> list[PrivacyEvent]:
        """What the experiments whose names satisfy ``of`` told an adversary; equal mechanisms added up. With
        ``planned`` an experiment counts as its plan where that was kept and is more.
        """
        sums: dict[Kind, int] = {}
        for name in filter(of, self.totals):
            totals, plan = self.totals[name], self.plans.get(name, {}) if planned else {}
            for kind in {**totals, **plan}:
                if kind[0] == adversary:
                    sums[kind] = sums.get(kind, 0) + max(totals.get(kind, 0), plan.get(kind, 0))
        return [event_of(kind, steps) for kind, steps in sorted(sums.items())]

    def totals_by_experiment(self) -> dict[str, ExperimentTotal]:
        """What each experiment was charged, all adversaries."""
        return {
            name: ExperimentTotal(
                self.last_round.get(name, 0),
                tuple(event_of(kind, steps) for kind, steps in totals.items()),
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
            totals[kind_of(event)] = totals.get(kind_of(event), 0) + event.steps
        if "plan" in record:
            plan = self.plans.setdefault(name, {})
            for event in events_from_json(record["plan"]):
                plan[kind_of(event)] = max(event.steps, plan.get(kind_of(event), 0))

    def _mix_parts(self) -> None:
        """An example changed its part: all that was charged so far counts for both parts from now on."""
        for name, totals in self.totals.items():
            mixed: dict[Kind, int] = {}
            for (*kind, _), steps in totals.items():
                both: Kind = (*kind, BOTH_PARTS)  # type: ignore[assignment]
                mixed[both] = mixed.get(both, 0) + steps
            self.totals[name] = mixed


# The durable record of what a site's data has paid: reserve before computing, commit after the release is safe.


SCORES = 0
"""The round under which the ledger keeps the charge for an experiment's scores; training rounds begin with 1."""

ROWS = -1
"""The same for the class sums of secure trust, with which its vote is charged."""

VOTE = -2
"""The same for that vote: charged nothing more, so that the ledger knows that it was drawn."""

LEDGER_FILE = "ledger.sqlite"
"""The ledger's name in a state folder."""


class Ledger:
    """Charges against one site's data, over experiments, operators and restarts.

    Invariants: every release was reserved, durably, before it was computed; a reservation is never taken back; a record
    is never changed; a ledger that is not the one that was last written is not used.
    """

    def __init__(
        self, path: Path | None, registry: Registry | None = None, identity: str = "", *, observe: bool = False
    ) -> None:
        """Open or make the ledger, and read its whole chain.

        Args:
            path: its file; None keeps it in memory, for simulations.
            registry: remembers how far it came; None only for simulations and tests.
            identity: of a ledger to be made; drawn if empty.
            observe: only look, beside an agent that may be at work; the registry is left as it is.

        Raises:
            StateError: LEDGER_DAMAGED, naming the first wrong record; LEDGER_ROLLED_BACK or ANCHOR_MISSING if it may be
                an old copy; LEDGER_OTHER_SCHEMA; LEDGER_UNREADABLE.
        """
        self._known = LedgerState()
        self._anchor: Anchor | None = None
        self._file = LedgerFile(path)
        try:
            remembered = self._open(registry, identity)
            if registry is not None:
                self._check_anchor(remembered)
            if self._anchor is not None and not observe and (not remembered or remembered.sequence < self.records):
                self._anchor.advance(self.snapshot())
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def accept_rollback(
        cls, path: Path, registry: Registry, *, identity: str = "", nothing_lost: bool = False
    ) -> dict[str, ExperimentTotal]:
        """Go on with an old copy of a ledger, charging what may have been spent since it was made.

        Args:
            path: the ledger's file; a new one is made if it is gone.
            registry: whose anchor knows how far it had come.
            identity: the ledger's, needed where the file is gone.
            nothing_lost: the administrator's word, where there is no anchor, that this is no old copy; without it all
                that could ever be spent counts as spent.

        Returns:
            What was charged, by experiment.
        """
        ledger = cls(path, None, identity)
        try:
            ledger._anchor = registry.anchor(ledger.identity)
            remembered = ledger._anchor.read()
            here = ledger.snapshot()
            if remembered is None:
                unknown = tuple(PrivacyEvent(adversary, "unknown", 0.0, 1.0, 1) for adversary in ADVERSARIES)
                missing = {} if nothing_lost else {"": ExperimentTotal(0, unknown)}
            elif remembered.sequence <= here.sequence and ledger._hash_of(remembered.sequence) == remembered.head:
                return {}
            else:
                forked = remembered.sequence <= here.sequence
                missing = missing_from(here, remembered, forked=forked)
            for name, total in missing.items():
                ledger._append(
                    {
                        "kind": "assume",
                        "experiment": name,
                        "round": total.last_round,
                        "events": events_to_json(total.events),
                        "at": _now(),
                    }
                )
            ledger._append({"kind": "accepted", "nothing_lost": nothing_lost, "at": _now()})
            return missing
        finally:
            ledger.close()

    @property
    def identity(self) -> str:
        """Drawn when the ledger was made; a copy has the same."""
        return self._known.identity

    @property
    def accepted(self) -> int:
        """The record with which an old copy was last accepted: what followed earlier ones is not known; 0 for none."""
        return self._known.accepted

    def doubtful(self, experiment: str) -> bool:
        """Whether an old copy was accepted since the experiment was first charged: not all that left it is known."""
        return any(c.experiment == experiment and c.sequence < self.accepted for c in self._known.charges.values())

    @property
    def records(self) -> int:
        """How many records it has."""
        return self._file.sequence

    @property
    def datasets(self) -> Sequence[Mapping[str, Any]]:
        """The registered versions of the data set, oldest first."""
        return tuple(self._known.datasets)

    def register(self, manifest: Mapping[str, Any], moved: int = 0) -> None:
        """Record a new version of the data set that this ledger charges.

        Args:
            manifest: what the record says of it.
            moved: examples that were in the other part of the division before; if there are any, releases about the two
                parts no longer compose in parallel, and what was charged before counts for both.
        """
        self._append({"kind": "dataset", **manifest, "moved": moved, "at": _now()})

    def check_name(self, experiment: str, digest: str) -> None:
        """Refuse a name that stands for another configuration.

        Raises:
            RefusedError: EXPERIMENT_CHANGED.
        """
        if self._known.digests.get(experiment, digest) != digest:
            raise RefusedError(
                code="EXPERIMENT_CHANGED",
                message="An experiment of this name was run with another configuration.",
                rule="experiment digest",
                advice="Run it under a new name.",
            )

    def bind(self, experiment: str, digest: str) -> None:
        """Tie an experiment's name to one configuration for good; as ``check_name`` if it is tied already."""
        self.check_name(experiment, digest)
        if experiment not in self._known.digests:
            self._append({"kind": "bind", "experiment": experiment, "digest": digest, "at": _now()})

    def begun(self) -> Mapping[str, str]:
        """When each experiment was first charged, UTC."""
        return self._known.begun

    def repeats(self, experiment: str) -> int:
        """Charges of the experiment beyond one for each round."""
        return self._known.repeats.get(experiment, 0)

    def find(self, experiment: str, round_number: int) -> Charge | None:
        """The latest charge for this round, if any."""
        sequence = self._known.latest.get((experiment, round_number))
        return None if sequence is None else self._known.charges[sequence]

    def last_round(self, experiment: str) -> int:
        """The last round charged; 0 before the first."""
        return self._known.last_round.get(experiment, 0)

    def reserve(
        self,
        experiment: str,
        round_number: int,
        request_digest: str,
        events: Sequence[PrivacyEvent],
        plan: Sequence[PrivacyEvent] = (),
    ) -> int:
        """Charge a release before it is computed; durable on return. Gives the charge's sequence number.

        Args:
            experiment: its name.
            round_number: the round.
            request_digest: what was asked.
            events: what the release tells each adversary.
            plan: what the whole experiment would tell them, if all of it is to count for later ones, however much ran.
        """
        known = self._known.plans.get(experiment, {})
        more = any(event.steps > known.get(kind_of(event), 0) for event in plan)
        kept = {"plan": events_to_json(tuple(plan))} if more else {}
        return self._append(
            {
                "kind": "reserve",
                "experiment": experiment,
                "round": round_number,
                "request": request_digest,
                "events": events_to_json(tuple(events)),
                **kept,
                "at": _now(),
            }
        )

    def commit(self, sequence: int, release_digest: str, *, vote: bool = False) -> None:
        """Record that the release reserved under ``sequence`` exists and may leave; durable on return.

        Args:
            sequence: what ``reserve`` gave.
            release_digest: sha256 of the release.
            vote: whether it holds the site's vote, or an earlier one did: charged before, it leaves no other mark here.
        """
        assert sequence in self._known.charges
        mark = {"vote": True} if vote else {}
        self._append({"kind": "commit", "reserve": sequence, "release": release_digest, **mark, "at": _now()})

    def voted(self, experiment: str) -> bool:
        """Whether the site's vote may have left in a round of training."""
        return experiment in self._known.voted

    @property
    def evaluation_count(self) -> int:
        """How many different evaluations were answered, of all experiments."""
        return sum(len(answers) for answers in self._known.evaluations.values())

    def evaluations(self, experiment: str) -> Mapping[str, Mapping[str, Any]]:
        """What was answered to evaluations, by the digest of what was asked."""
        return self._known.evaluations.get(experiment, {})

    def record_evaluation(self, experiment: str, request_digest: str, answer: Mapping[str, Any]) -> None:
        """Record an answer to an evaluation before it leaves; durable on return."""
        record = {"kind": "evaluate", "experiment": experiment, "request": request_digest, "answer": dict(answer)}
        self._append({**record, "at": _now()})

    def unmasked(self, experiment: str, name: str) -> str:
        """The request that the site answered with what unmasks a secure sum; empty while there was none."""
        return self._known.unmasked.get((experiment, name), "")

    def record_unmasked(self, experiment: str, name: str, request: str) -> None:
        """Record, before the answer leaves, to which request a secure sum was unmasked; durable on return."""
        self._append({"kind": "unmasked", "experiment": experiment, "sum": name, "request": request, "at": _now()})

    def charges(self) -> list[Charge]:
        """Everything charged, oldest first."""
        return [self._known.charges[sequence] for sequence in sorted(self._known.charges)]

    def events(self, experiment: str | None = None, adversary: str = "prompt_recipient") -> list[PrivacyEvent]:
        """What an adversary was told, by one experiment or by all; equal mechanisms added up, for the accountant."""
        return self._known.events(lambda name: experiment is None or name == experiment, adversary)

    def events_of_others(self, experiment: str, adversary: str = "prompt_recipient") -> list[PrivacyEvent]:
        """What an adversary was told by all experiments but this one, or planned to be where that has to count."""
        return self._known.events(lambda name: name != experiment, adversary, planned=True)

    def counts_whole(self, experiment: str) -> bool:
        """Whether later experiments have to count all that this one was planned to tell, however little of it ran."""
        return experiment in self._known.plans

    def snapshot(self) -> Snapshot:
        """How far the ledger is."""
        return Snapshot(self._file.sequence, self._file.head, self._known.totals_by_experiment())

    def damage(self) -> list[str]:
        """What SQLite finds wrong with the file; empty if nothing."""
        return self._file.damage()

    def close(self) -> None:
        """Close the database."""
        self._file.close()

    def _open(self, registry: Registry | None, identity: str) -> Snapshot | None:
        """Read the chain from its first record; gives what the anchor remembers, if anything."""
        if self._file.version == 0:
            self._file.execute("BEGIN IMMEDIATE")
            create_schema(self._file)
            self._file.append(
                {
                    "kind": "genesis",
                    "ledger": identity or secrets.token_hex(16),
                    "at": _now(),
                    "nonce": secrets.token_hex(8),
                }
            )
            self._file.execute("COMMIT")
        remembered: Snapshot | None = None
        try:
            for link in follow(self._file.read()):
                self._known.apply(link.sequence, link.parsed())
                # The anchor is read before all but the first record: an agent at work writes them the other way round.
                if link.sequence == 1 and registry is not None:
                    self._anchor = registry.anchor(self.identity)
                    remembered = self._anchor.read()
        except BrokenChainError as broken:
            raise _damaged(str(broken)) from None
        except (LookupError, TypeError, ValueError) as error:
            raise _damaged(f"A record after record {self._file.sequence} is no record ({error!r}).") from None
        if not self.identity:
            raise _damaged("Record 1 is missing.")
        return remembered

    def _check_anchor(self, remembered: Snapshot | None) -> None:
        """Refuse what may be an old copy."""
        here = self._file.sequence
        if remembered is None:
            if self._known.kind != "genesis":  # then nothing was charged yet
                raise StateError(
                    code="ANCHOR_MISSING",
                    message="Nothing outside the state folder remembers this privacy ledger: it may be an old copy.",
                    advice="Restore the registry folder, or: dpfpl-client ledger accept-rollback.",
                )
        elif remembered.sequence > here:
            raise _rolled_back(f"records {here + 1} to {remembered.sequence} were written once and are missing")
        elif self._hash_of(remembered.sequence) != remembered.head:
            raise _rolled_back(f"record {remembered.sequence} was written once with other content")

    def _hash_of(self, sequence: int) -> str:
        rows = self._file.execute("SELECT hash FROM records WHERE sequence = ?", sequence).fetchall()
        return str(rows[0][0]) if rows else ""

    def _append(self, content: dict[str, Any]) -> int:
        """Add a record, durably, first here and then at the anchor."""
        # Two copies of a ledger must not go on alike, not even with equal requests within a second.
        sequence = self._file.append({**content, "nonce": secrets.token_hex(8)})
        self._known.apply(sequence, content)
        if self._anchor is not None:
            self._anchor.advance(self.snapshot())
        return sequence


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _damaged(what: str) -> StateError:
    return StateError(
        code="LEDGER_DAMAGED",
        message=f"The privacy ledger is damaged: {what}",
        advice="Restore the state folder from a backup, then: dpfpl-client ledger accept-rollback.",
    )


def _rolled_back(what: str) -> StateError:
    return StateError(
        code="LEDGER_ROLLED_BACK",
        message=f"The privacy ledger is an old copy: {what}.",
        advice="Put the newest state folder back. If it is lost: dpfpl-client ledger accept-rollback, which charges "
        "what may have been spent since.",
    )
