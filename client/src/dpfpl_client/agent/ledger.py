"""The durable record of what a site's data has paid: reserve before computing, commit after the release is safe."""

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpfpl_common.accounting import PrivacyEvent
from dpfpl_common.errors import RefusedError, StateError

__all__ = ["Charge", "Ledger"]

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS experiments (name TEXT PRIMARY KEY, digest TEXT NOT NULL) STRICT",
    """CREATE TABLE IF NOT EXISTS charges (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        experiment TEXT NOT NULL, round INTEGER NOT NULL, request_digest TEXT NOT NULL,
        mechanism TEXT NOT NULL, noise_multiplier REAL NOT NULL, sample_rate REAL NOT NULL, steps INTEGER NOT NULL,
        release_digest TEXT NOT NULL DEFAULT '', at TEXT NOT NULL
    ) STRICT""",
)


@dataclass(frozen=True)
class Charge:
    """One reserved or committed release.

    Attributes:
        sequence: its place in the ledger.
        request_digest: what was asked.
        release_digest: sha256 of what left; empty while only reserved.
    """

    sequence: int
    experiment: str
    round: int
    request_digest: str
    release_digest: str
    event: PrivacyEvent


class Ledger:
    """Charges against one site's data, over experiments and restarts.

    Invariant: every release was reserved, durably, before it was computed; a reservation is never taken back.
    """

    def __init__(self, path: Path | None) -> None:
        """Open or make the ledger; None keeps it in memory, for simulations."""
        self._path = path
        try:
            self._database = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._unusable(error) from None
        self._execute("PRAGMA journal_mode=WAL" if path else "PRAGMA journal_mode=MEMORY")
        self._execute("PRAGMA synchronous=FULL")
        for statement in SCHEMA:
            self._execute(statement)

    def bind(self, experiment: str, digest: str) -> None:
        """Tie an experiment's name to one configuration for good.

        Raises:
            RefusedError: the name was used with another configuration.
        """
        self._execute("INSERT OR IGNORE INTO experiments VALUES (?, ?)", experiment, digest)
        ((known,),) = self._rows("SELECT digest FROM experiments WHERE name = ?", experiment)
        if known != digest:
            raise RefusedError(
                code="EXPERIMENT_CHANGED",
                message="An experiment of this name was run with another configuration (rule experiment digest).",
                advice="Run it under a new name.",
            )

    def find(self, experiment: str, round_number: int) -> Charge | None:
        """The latest charge for this round, if any."""
        rows = self._select(
            "WHERE experiment = ? AND round = ? ORDER BY sequence DESC LIMIT 1", experiment, round_number
        )
        return rows[0] if rows else None

    def last_round(self, experiment: str) -> int:
        """The last round charged; 0 before the first."""
        ((last,),) = self._rows("SELECT coalesce(max(round), 0) FROM charges WHERE experiment = ?", experiment)
        return int(last)

    def reserve(self, experiment: str, round_number: int, request_digest: str, event: PrivacyEvent) -> int:
        """Charge a release before it is computed; durable on return. Gives the charge's sequence number."""
        cursor = self._execute(
            "INSERT INTO charges"
            " (experiment, round, request_digest, mechanism, noise_multiplier, sample_rate, steps, at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            experiment,
            round_number,
            request_digest,
            event.mechanism,
            event.noise_multiplier,
            event.sample_rate,
            event.steps,
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def commit(self, sequence: int, release_digest: str) -> None:
        """Record that this release exists and may leave; durable on return."""
        self._execute("UPDATE charges SET release_digest = ? WHERE sequence = ?", release_digest, sequence)

    def charges(self) -> list[Charge]:
        """Everything charged, oldest first."""
        return self._select("ORDER BY sequence")

    def events(self, experiment: str | None = None) -> list[PrivacyEvent]:
        """What was charged, by one experiment or by all; equal mechanisms added up, ready for the accountant."""
        return self._events("?1 IS NULL OR experiment = ?1", experiment)

    def events_of_others(self, experiment: str) -> list[PrivacyEvent]:
        """What all experiments but this one were charged."""
        return self._events("experiment <> ?1", experiment)

    def damage(self) -> list[str]:
        """What SQLite finds wrong with the file; empty if nothing."""
        try:
            found = [str(row[0]) for row in self._rows("PRAGMA integrity_check")]
        except StateError as error:
            return [error.message]
        return [] if found == ["ok"] else found

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _unusable(self, error: sqlite3.Error) -> StateError:
        return StateError(
            code="LEDGER_UNREADABLE",
            message=f"The privacy ledger {self._path} cannot be used ({error}).",
            advice="Free disk space if it is full, else restore it from a backup; without it nothing may be released.",
        )

    def _select(self, clause: str, *values: object) -> list[Charge]:
        columns = "sequence, experiment, round, request_digest, release_digest"
        event = "mechanism, noise_multiplier, sample_rate, steps"
        # The clauses are constants of this module.
        rows = self._rows(f"SELECT {columns}, {event} FROM charges {clause}", *values)  # noqa: S608
        return [_charge(row) for row in rows]

    def _events(self, condition: str, experiment: str | None) -> list[PrivacyEvent]:
        # The conditions are constants of this module.
        event = "mechanism, noise_multiplier, sample_rate, sum(steps)"
        query = f"SELECT {event} FROM charges WHERE {condition} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"  # noqa: S608
        return [PrivacyEvent("prompt_recipient", *row) for row in self._rows(query, experiment)]


def _charge(row: tuple[Any, ...]) -> Charge:
    sequence, experiment, number, request_digest, release_digest, *event = row
    return Charge(
        sequence, experiment, number, request_digest, release_digest, PrivacyEvent("prompt_recipient", *event)
    )
