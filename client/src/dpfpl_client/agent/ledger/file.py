"""The ledger's SQLite file: chained records that are only ever added, each durable before ``append`` returns."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpfpl_common.errors import StateError

__all__ = [
    "ROOT",
    "SCHEMA_VERSION",
    "BrokenChainError",
    "LedgerFile",
    "Link",
    "canonical",
    "chained",
    "create_schema",
    "follow",
]


# Records that vouch for each other: the hash of each covers its content and the hash before it.
#
# Changing, removing, inserting or exchanging a record breaks the chain at that record. Records cut off at the end
# leave a chain that is whole but shorter; that is found by :mod:`dpfpl_client.agent.ledger.anchor`. There is no secret
# key: somebody who may write the file can forge a whole new chain, and is not defended against.


ROOT = "0" * 64
"""What the first record's hash covers in place of a hash before it."""


@dataclass(frozen=True)
class Link:
    """One record: its place from 1 on, its content as canonical JSON, and its hash."""

    sequence: int
    content: str
    hash: str

    def parsed(self) -> dict[str, Any]:
        """The content as a dictionary."""
        table: dict[str, Any] = json.loads(self.content)
        return table


class BrokenChainError(Exception):
    """The record ``sequence`` is not what was once written there."""

    def __init__(self, sequence: int, what: str) -> None:
        super().__init__(f"Record {sequence} {what}.")
        self.sequence = sequence


def canonical(content: dict[str, Any]) -> str:
    """The one JSON text of a record's content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def chained(previous: str, content: str) -> str:
    """sha256 over the previous record's hash and this content."""
    return hashlib.sha256(f"{previous}\n{content}".encode(errors="surrogateescape")).hexdigest()


def follow(links: Iterable[Link]) -> Iterator[Link]:
    """The links, each one checked as it passes.

    Raises:
        BrokenChainError: naming the first record that is missing or is not what was written.
    """
    previous = Link(0, "", ROOT)
    for link in links:
        if link.sequence != previous.sequence + 1:
            raise BrokenChainError(previous.sequence + 1, "is missing")
        if link.hash != chained(previous.hash, link.content):
            raise BrokenChainError(link.sequence, "was changed")
        yield link
        previous = link


SCHEMA_VERSION = 2
BUSY_S = 15.0
"""How long a write waits for another program, such as a backup, that holds the file; then it is refused for now."""
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

# The views show records as a table. They also bear the names of the first schema's tables, so that a program which
# knows only that one fails at its first write instead of beginning a ledger of its own.
SCHEMA = (
    "CREATE TABLE records (sequence INTEGER PRIMARY KEY, content TEXT NOT NULL, hash TEXT NOT NULL) STRICT",
    "CREATE TRIGGER never_changed BEFORE UPDATE ON records BEGIN SELECT RAISE(ABORT, 'records are only added'); END",
    "CREATE TRIGGER never_removed BEFORE DELETE ON records BEGIN SELECT RAISE(ABORT, 'records are only added'); END",
    """CREATE VIEW charges AS SELECT sequence, content ->> 'experiment' AS experiment, content ->> 'round' AS round,
        content ->> 'request' AS request_digest, content ->> 'events' AS events, content ->> 'at' AS at
        FROM records WHERE content ->> 'kind' IN ('reserve', 'assume')""",
    """CREATE VIEW experiments AS SELECT content ->> 'experiment' AS name, content ->> 'digest' AS digest
        FROM records WHERE content ->> 'kind' = 'bind'""",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class LedgerFile:
    """Chained records in SQLite with ``synchronous=FULL``; a torn end is SQLite's to repair.

    After a write that failed for another reason than a full disk, nobody knows what reached the disk: every later write
    is refused until the ledger is opened, and its chain read, again.

    Attributes:
        sequence: the last record's number; 0 before the first.
        head: the last record's hash.
    """

    def __init__(self, path: Path | None) -> None:
        """Open or make the file; None keeps it in memory."""
        self.path = path
        self._broken = False
        try:
            self._database = sqlite3.connect(path or ":memory:", BUSY_S, isolation_level=None, check_same_thread=False)
            # A damaged byte must be found as a changed record, not end the reading.
            self._database.text_factory = lambda text: text.decode(errors="surrogateescape")
        except sqlite3.Error as error:
            raise _unusable(path, error) from None
        try:
            self.execute("PRAGMA journal_mode=WAL" if path else "PRAGMA journal_mode=MEMORY")
            self.execute("PRAGMA synchronous=FULL")
            self.version = self._version()
        except StateError:
            self._database.close()
            raise
        if self.version not in (0, SCHEMA_VERSION):
            self._database.close()
            raise StateError(
                code="LEDGER_OTHER_SCHEMA",
                message=f"The privacy ledger {path} has schema {self.version}; this program knows {SCHEMA_VERSION}.",
                advice="Another release of DP-FPL wrote it: install that one again.",
            )
        self.sequence, self.head = 0, ROOT

    def read(self) -> Iterator[Link]:
        """All records in order, unchecked; sets where the next one is added."""
        cursor = self.execute("SELECT sequence, content, hash FROM records ORDER BY sequence")
        while True:
            try:
                row = cursor.fetchone()
            except sqlite3.Error as error:
                raise _unusable(self.path, f"{error}, after record {self.sequence}") from None
            if row is None:
                return
            link = Link(row[0], str(row[1]), str(row[2]))
            yield link
            self.sequence, self.head = link.sequence, link.hash

    def append(self, content: dict[str, Any]) -> int:
        """Add a record; durable on return. Gives its number.

        Raises:
            StateError: STORAGE_FULL or LEDGER_BUSY, nothing was added and the next try may succeed;
                LEDGER_NOT_DURABLE, nothing more can be added until a restart.
        """
        if self._broken:
            raise _not_durable("an earlier write failed")
        text = canonical(content)
        sequence, digest = self.sequence + 1, chained(self.head, text)
        try:
            self._database.execute("INSERT INTO records VALUES (?, ?, ?)", (sequence, text, digest))
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code
            if code in _BUSY:  # the file was never locked for us, so nothing was begun
                raise StateError(
                    code="LEDGER_BUSY",
                    message=f"Another program has held the privacy ledger for more than {BUSY_S:g} s.",
                    advice="Nothing was charged or released. It serves again by itself when the other program, for "
                    "instance a backup, is done.",
                ) from None
            if code == sqlite3.SQLITE_FULL:
                raise StateError(
                    code="STORAGE_FULL",
                    message="The disk of the privacy ledger is full.",
                    advice="Free disk space at the site; nothing was released.",
                ) from None
            self._broken = True
            if isinstance(error, sqlite3.IntegrityError):
                raise _not_durable("another program writes it too") from None
            raise _not_durable(str(error)) from None
        self.sequence, self.head = sequence, digest
        return sequence

    def damage(self) -> list[str]:
        """What SQLite itself finds wrong with the file; empty if nothing."""
        try:
            found = [str(row[0]) for row in self.execute("PRAGMA integrity_check").fetchall()]
        except (StateError, sqlite3.Error) as error:
            return [str(error)]
        return [] if found == ["ok"] else found

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        """One statement; an error of SQLite becomes a StateError."""
        try:
            return self._database.execute(statement, values)
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from None

    def _version(self) -> int:
        """The schema's version; 0 for an empty file."""
        ((version,),) = self.execute("PRAGMA user_version").fetchall()
        tables = self.execute("SELECT count(*) FROM sqlite_master WHERE name = 'charges'").fetchall()
        return int(version) or int(tables[0][0])


def create_schema(file: LedgerFile) -> None:
    """Make the tables of the current version."""
    for statement in SCHEMA:
        file.execute(statement)
    file.version = SCHEMA_VERSION


def _unusable(path: Path | None, error: object) -> StateError:
    """The error for a file that SQLite cannot use."""
    return StateError(
        code="LEDGER_UNREADABLE",
        message=f"The privacy ledger {path} cannot be used ({error}).",
        advice="Restore it from a backup; without it nothing may be released.",
    )


def _not_durable(reason: str) -> StateError:
    return StateError(
        code="LEDGER_NOT_DURABLE",
        message=f"The privacy ledger could not be written ({reason}).",
        advice="Nothing more is released until the site's administrator has checked the disk and restarted the agent.",
    )
