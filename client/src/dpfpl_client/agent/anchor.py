"""Remembers outside the state folder how far a ledger had come, so that an old copy put back is noticed.

The anchor is written after the ledger and before anything is released: it is never ahead of a ledger that was left
alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dpfpl_common.accounting import PrivacyEvent
from dpfpl_common.durable import is_full, make_folder_durably, write_durably
from dpfpl_common.errors import StateError

__all__ = ["Anchor", "ExperimentTotal", "FileAnchor", "Snapshot", "events_from_json", "events_to_json", "missing_from"]


@dataclass(frozen=True)
class ExperimentTotal:
    """What one experiment was charged by then: its last round, and all its events."""

    last_round: int = 0
    events: tuple[PrivacyEvent, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """How far a ledger had come.

    Attributes:
        sequence: its last record.
        head: that record's hash.
        experiments: what each experiment was charged; enough to charge it again if the ledger forgets.
    """

    sequence: int
    head: str
    experiments: Mapping[str, ExperimentTotal] = field(default_factory=dict)


class Anchor(Protocol):
    """Where the last snapshot is kept."""

    def read(self) -> Snapshot | None:
        """The last snapshot, or None if there never was one."""
        ...

    def advance(self, snapshot: Snapshot) -> None:
        """Remember a later snapshot; durable on return."""
        ...


class FileAnchor:
    """A snapshot in a file, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Snapshot | None:
        """See ``Anchor``.

        Raises:
            StateError: it is there and cannot be read.
        """
        try:
            table = json.loads(self._path.read_bytes())
            experiments = {
                name: ExperimentTotal(int(entry["last_round"]), events_from_json(entry["events"]))
                for name, entry in table["experiments"].items()
            }
            return Snapshot(int(table["sequence"]), str(table["head"]), experiments)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise StateError(
                code="ANCHOR_UNREADABLE",
                message=f"{self._path}, which remembers how far the privacy ledger had come, cannot be read ({error}).",
                advice="Restore it, or remove it and run: dpfpl-client ledger accept-rollback.",
            ) from None

    def advance(self, snapshot: Snapshot) -> None:
        """See ``Anchor``.

        Raises:
            StateError: it cannot be written; then nothing may be released.
        """
        table = {
            "sequence": snapshot.sequence,
            "head": snapshot.head,
            "experiments": {
                name: {"last_round": total.last_round, "events": events_to_json(total.events)}
                for name, total in snapshot.experiments.items()
            },
        }
        try:
            make_folder_durably(self._path.parent)
            write_durably(self._path, json.dumps(table).encode())
        except OSError as error:
            if is_full(error):
                raise StateError(
                    code="STORAGE_FULL",
                    message=f"The disk of {self._path} is full.",
                    advice="Free disk space at the site; nothing was released.",
                ) from None
            raise StateError(
                code="ANCHOR_UNWRITABLE",
                message=f"{self._path} cannot be written ({error.strerror}).",
                advice="Free disk space, mend the folder's permissions, or name another: registry in site.toml. "
                "Until then nothing may be released.",
            ) from None


def missing_from(ledger: Snapshot, anchor: Snapshot, *, forked: bool) -> dict[str, ExperimentTotal]:
    """What the anchor knows as spent and the ledger does not, by experiment; the most that it can be.

    Args:
        ledger: how far the ledger says it is.
        anchor: how far it had come.
        forked: the ledger went on by itself after the two had parted, so nothing of what it holds is sure to be among
            what the anchor knows: all of that counts as missing.
    """
    missing: dict[str, ExperimentTotal] = {}
    for name, total in anchor.experiments.items():
        known = ledger.experiments.get(name, ExperimentTotal())
        have = {} if forked else {_kind(event): event.steps for event in known.events}
        lost = tuple(
            PrivacyEvent(*_kind(event), steps=event.steps - have.get(_kind(event), 0))
            for event in total.events
            if event.steps > have.get(_kind(event), 0)
        )
        if lost or total.last_round > known.last_round:
            missing[name] = ExperimentTotal(total.last_round, lost)
    return missing


def events_to_json(events: tuple[PrivacyEvent, ...]) -> list[list[Any]]:
    """Events as lists of adversary, mechanism, noise multiplier, sample rate, steps."""
    return [[e.adversary, e.mechanism, e.noise_multiplier, e.sample_rate, e.steps] for e in events]


def events_from_json(rows: list[list[Any]]) -> tuple[PrivacyEvent, ...]:
    """The inverse of ``events_to_json``."""
    return tuple(PrivacyEvent(str(a), str(m), float(z), float(q), int(steps)) for a, m, z, q, steps in rows)


def _kind(event: PrivacyEvent) -> tuple[str, str, float, float]:
    return (event.adversary, event.mechanism, event.noise_multiplier, event.sample_rate)
