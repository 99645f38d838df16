"""What a run leaves on the operator's disk: experiment, state and result.

::

    experiment.json             the experiment, noise level resolved; never changes
    run.sqlite                  rounds, drops, checkpoint, events, Flower runs: see RunStore
    serverapp.lock              held by the ServerApp while it works on the run
    supervisor.lock             held by dpfpl-server run or resume meanwhile
    result.json, report.html    once it is finished
"""

import hashlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpfpl_common.config import to_table
from dpfpl_common.errors import StateError
from dpfpl_common.experiment import Experiment, parse_experiment
from dpfpl_common.ops.files import write_durably
from dpfpl_common.ops.heartbeat import Heartbeat, LifeSign, life_sign
from dpfpl_common.optimizer import OptimizerState
from dpfpl_common.privacy_plan import planned_events
from dpfpl_common.secure import SUMS
from dpfpl_server.federation.evidence import Checkpoint, Evidence
from dpfpl_server.federation.secure import SumBook

__all__ = ["Attempt", "Checkpoint", "RunFolder", "RunStore"]


class RunFolder:
    """``runs/<name>``: a reader never sees half of anything."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = RunStore(path / "run.sqlite")
        self._experiment: Experiment | None = None

    def begin(self, experiment: Experiment) -> None:
        """Make the folder for an experiment, or check that it is this experiment's.

        Raises:
            StateError: the folder belongs to another configuration.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)
        file = self.path / "experiment.json"
        if file.exists():
            if parse_experiment(file.read_text()).digest() != experiment.digest():
                raise StateError(
                    code="OTHER_EXPERIMENT",
                    message=f"{self.path} holds a run of {experiment.name!r} with another configuration.",
                    advice="Give the changed experiment a new name, or move the old folder away.",
                )
        else:
            write_durably(file, experiment.to_json().encode(), 0o644)

    def experiment(self) -> Experiment:
        """The experiment that the folder belongs to."""
        if self._experiment is None:
            try:
                self._experiment = parse_experiment((self.path / "experiment.json").read_text())
            except (FileNotFoundError, NotADirectoryError):
                known = sorted(file.parent.name for file in self.path.parent.glob("*/experiment.json"))
                raise StateError(
                    code="NO_RUN",
                    message=f"{self.path} holds no run.",
                    advice=f"Check the run's name; there is {', '.join(known) or 'none yet'}. A run that was just "
                    "started needs some seconds.",
                ) from None
            except OSError as error:
                raise StateError(
                    code="RUN_UNREADABLE",
                    message=f"{self.path / 'experiment.json'} cannot be read ({error.strerror or error}).",
                    advice="Use the account that started the run, or let this one read its folder.",
                ) from None
            except UnicodeDecodeError:
                raise self._damaged("experiment.json") from None
        return self._experiment

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep a completed round; durable on return."""
        self.store.save(self.experiment(), checkpoint)

    def load_checkpoint(self) -> Checkpoint | None:
        """The last completed round, or None before the first.

        Raises:
            StateError: it is damaged, or of another configuration.
        """
        return self.store.load(self.experiment())

    def add_event(self, event: dict[str, Any]) -> None:
        """Append what is going on, for ``run``, ``status`` and ``watch``; a warning goes to the server's log, too."""
        self.store.add_event(event)
        if event.get("warning"):
            logging.getLogger(__name__).warning("%s: %s", self.path.name, event["warning"])

    def events(self, skip: int = 0) -> list[dict[str, Any]]:
        """The events so far, without the first ``skip``."""
        return self.store.events(skip)

    def server_pulse(self, wait_s: float = 0.0) -> Heartbeat:
        """To be held by the ServerApp: two of them on one run would overwrite each other's rounds."""
        return self._heartbeat("serverapp.lock", "runs this experiment", wait_s)

    def supervisor_pulse(self) -> Heartbeat:
        """Held by the process that submits runs and resumes them."""
        return self._heartbeat("supervisor.lock", "runs and supervises this experiment", 0.0)

    def _heartbeat(self, file: str, what: str, wait_s: float) -> Heartbeat:
        advice = "Look at it with dpfpl-server watch NAME, or end it with dpfpl-server stop NAME."
        return Heartbeat(self.path / file, what, wait_s, code="RUN_IN_PROGRESS", advice=advice)

    def server_life(self) -> LifeSign:
        """Whether a ServerApp works on the run now."""
        return life_sign(self.path / "serverapp.lock")

    def supervisor_life(self) -> LifeSign:
        """Whether somebody supervises the run now."""
        return life_sign(self.path / "supervisor.lock")

    def write_json(self, name: str, content: Any) -> None:
        """Replace a JSON file of the folder."""
        write_durably(self.path / name, (json.dumps(content, indent=2) + "\n").encode(), 0o644)

    def read_json(self, name: str) -> Any | None:
        """A JSON file of the folder, or None.

        Raises:
            StateError: the file is damaged.
        """
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            raise self._damaged(name) from None

    def _damaged(self, name: str) -> StateError:
        return StateError(
            code="RUN_DAMAGED",
            message=f"{self.path / name} cannot be read.",
            advice="Restore it from a backup, or start the experiment under a new name.",
        )


SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rounds (number INTEGER PRIMARY KEY, entry TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS drops (
    round INTEGER NOT NULL, attempt INTEGER NOT NULL, site TEXT NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS checkpoint (
    only INTEGER PRIMARY KEY CHECK (only = 1), round INTEGER NOT NULL, configuration TEXT NOT NULL,
    context BLOB NOT NULL, first BLOB NOT NULL, second BLOB NOT NULL, steps INTEGER NOT NULL,
    events TEXT NOT NULL, sha256 TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS evidence (
    site TEXT PRIMARY KEY, columns INTEGER NOT NULL, rows BLOB NOT NULL, vote BLOB
) STRICT;
CREATE TABLE IF NOT EXISTS attempts (
    number INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, started REAL NOT NULL,
    ended REAL, outcome TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, body TEXT NOT NULL
) STRICT;
"""


@dataclass(frozen=True)
class Attempt:
    """One Flower run of the experiment; a resumed experiment has several. ``outcome`` is empty while it goes on."""

    number: int
    run_id: int
    started: float
    ended: float | None
    outcome: str


class RunStore:
    """The file ``run.sqlite``; may be used by several threads and read by other processes meanwhile.

    A completed round is one transaction, durable on return: its entry, its drops and the checkpoint appear together or
    not at all. Events say what is going on; losing the last ones with the machine's power costs nothing, so they are
    not waited for.

    Args:
        path: the file; made at the first write, so that looking at a run leaves nothing behind.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def save(self, experiment: Experiment, checkpoint: Checkpoint) -> None:
        """Keep a completed round; durable on return."""
        planned = planned_events(experiment, checkpoint.round * experiment.rounds.local_steps)
        events = [dict(to_table(event)) for event in planned]
        configuration = experiment.digest()
        state = checkpoint.optimizer
        row = (
            checkpoint.round,
            configuration,
            np.ascontiguousarray(checkpoint.global_context, dtype="<f4").tobytes(),
            np.ascontiguousarray(state.first, dtype="<f8").tobytes(),
            np.ascontiguousarray(state.second, dtype="<f8").tobytes(),
            state.steps,
            json.dumps(events),
            _digest(checkpoint, configuration, events),
        )
        with self._writing() as database:
            ((known,),) = database.execute("SELECT coalesce(max(number), 0) FROM rounds").fetchall()
            for entry in checkpoint.history:
                if entry["round"] > known:
                    database.execute("INSERT INTO rounds VALUES (?, ?)", (entry["round"], json.dumps(entry)))
                    _add_drops(database, entry, entry.get("attempt", 1))
            evidence = checkpoint.evidence
            kept = {site for (site,) in database.execute("SELECT site FROM evidence")}
            database.executemany("DELETE FROM evidence WHERE site = ?", [(site,) for site in kept - set(evidence.rows)])
            for site, rows in evidence.rows.items():
                if site not in kept:
                    values = (site, rows.shape[1], np.ascontiguousarray(rows, dtype="<f4").tobytes())
                    database.execute("INSERT INTO evidence VALUES (?, ?, ?, NULL)", values)
            database.executemany(
                "UPDATE evidence SET vote = ? WHERE site = ?",
                [(np.ascontiguousarray(vote, dtype="<f4").tobytes(), site) for site, vote in evidence.votes.items()],
            )
            database.execute("INSERT OR REPLACE INTO checkpoint VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def load(self, experiment: Experiment) -> Checkpoint | None:
        """The last completed round, or None before the first.

        Raises:
            StateError: CHECKPOINT_DAMAGED, it is not what was saved; OTHER_EXPERIMENT, another configuration saved it.
        """
        rows = self._rows("SELECT round, configuration, context, first, second, steps, events, sha256 FROM checkpoint")
        if not rows:
            return None
        number, configuration, context, first, second, steps, events, sha256 = rows[0]
        if configuration != experiment.digest():
            raise StateError(
                code="OTHER_EXPERIMENT",
                message=f"The checkpoint in {self._path} belongs to another configuration of {experiment.name!r}.",
                advice="Give the changed experiment a new name, or move the old folder away.",
            )
        try:
            shape = experiment.context_shape
            first, second = (np.frombuffer(part, dtype="<f8").reshape(shape).copy() for part in (first, second))
            checkpoint = Checkpoint(
                round=number,
                global_context=np.frombuffer(context, dtype="<f4").reshape(shape).copy(),
                optimizer=OptimizerState(first, second, steps),
                history=tuple(entry for entry in self.rounds() if entry["round"] <= number),
                evidence=self._evidence(),
            )
            whole = len(checkpoint.history) == number
            digest = _digest(checkpoint, configuration, json.loads(events))
        except (ValueError, TypeError, KeyError):
            raise self._damaged() from None
        if not whole or digest != sha256:
            raise self._damaged()
        return checkpoint

    def sum_book(self) -> SumBook:
        """What is kept of the run's secure sums; durable after each change."""
        facts = {name: self.fact(f"sum {name}") for name in SUMS}
        entries = {name: entry for name, entry in facts.items() if entry is not None}
        return SumBook(entries, lambda name, entry: self.set_fact(f"sum {name}", entry))

    def _evidence(self) -> Evidence:
        entries = self._rows("SELECT site, columns, rows, vote FROM evidence")
        return Evidence(
            {site: np.frombuffer(rows, dtype="<f4").reshape(-1, columns).copy() for site, columns, rows, _ in entries},
            {site: np.frombuffer(vote, dtype="<f4").copy() for site, _, _, vote in entries if vote is not None},
            {name: summed for name in SUMS if (summed := self.sum_book().summed(name)) is not None},
        )

    def rounds(self) -> list[dict[str, Any]]:
        """The entries of all completed rounds."""
        return [json.loads(entry) for (entry,) in self._rows("SELECT entry FROM rounds ORDER BY number")]

    def drops(self) -> list[dict[str, Any]]:
        """Every reply that was not used: round, attempt, site, code, reason."""
        names = ("round", "attempt", "site", "code", "reason")
        rows = self._rows("SELECT round, attempt, site, code, reason FROM drops ORDER BY rowid")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def add_event(self, event: Mapping[str, Any]) -> None:
        """Append what is going on; drops of an abandoned round are kept with it."""
        with self._writing(durable=False) as database:
            database.execute("INSERT INTO events (at, body) VALUES (?, ?)", (round(time.time(), 3), json.dumps(event)))
            if event.get("phase") == "ROUND_ABANDONED":
                _add_drops(database, event, event["attempt"])

    def events(self, skip: int = 0) -> list[dict[str, Any]]:
        """The events so far, without the first ``skip``."""
        rows = self._rows("SELECT at, body FROM events WHERE number > ? ORDER BY number", skip)
        return [{"at": at, **json.loads(body)} for at, body in rows]

    def event_count(self) -> int:
        """How many events there are."""
        rows = self._rows("SELECT coalesce(max(number), 0) FROM events")
        return int(rows[0][0]) if rows else 0

    def last_event(self, phase: str = "") -> dict[str, Any] | None:
        """The newest event, or the newest of one phase."""
        rows = self._rows(
            "SELECT at, body FROM events WHERE ? IN ('', json_extract(body, '$.phase')) ORDER BY number DESC LIMIT 1",
            phase,
        )
        return {"at": rows[0][0], **json.loads(rows[0][1])} if rows else None

    def begin_attempt(self, run_id: int) -> int:
        """Note that a Flower run was submitted; gives its number, from 1."""
        with self._writing() as database:
            cursor = database.execute(
                "INSERT INTO attempts (run_id, started) VALUES (?, ?)", (str(run_id), round(time.time(), 3))
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def end_attempt(self, number: int, outcome: str) -> None:
        """Note how it ended: completed, failed, crashed or stopped."""
        with self._writing() as database:
            database.execute(
                "UPDATE attempts SET ended = ?, outcome = ? WHERE number = ?", (round(time.time(), 3), outcome, number)
            )

    def attempts(self) -> list[Attempt]:
        """The Flower runs so far, oldest first."""
        rows = self._rows("SELECT number, run_id, started, ended, outcome FROM attempts ORDER BY number")
        return [Attempt(number, int(run_id), *rest) for number, run_id, *rest in rows]

    def fact(self, name: str) -> Any | None:
        """A named value, or None."""
        rows = self._rows("SELECT value FROM facts WHERE name = ?", name)
        return json.loads(rows[0][0]) if rows else None

    def set_fact(self, name: str, value: Any) -> None:
        """Keep a named value; durable on return."""
        with self._writing() as database:
            database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            database = sqlite3.connect(self._path, timeout=30.0, isolation_level=None, check_same_thread=False)
            self._connection = database
            database.execute("PRAGMA journal_mode=WAL")
            ((version,),) = database.execute("PRAGMA user_version").fetchall()
            if version == 0:
                # Two processes may open a new file at once: the second finds the tables that the first made.
                database.executescript(f"BEGIN IMMEDIATE;{SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
            elif version != SCHEMA_VERSION:
                raise StateError(
                    code="RUN_VERSION",
                    message=f"{self._path} is of format {version}, this release knows {SCHEMA_VERSION}.",
                    advice="Use the release that wrote it, or a later one.",
                )
        return self._connection

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            if self._connection is None and not self._path.exists():
                return []
            try:
                return self._open().execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise self._unusable(error) from None

    @contextmanager
    def _writing(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction; with ``durable`` it survives a loss of power once it is over."""
        with self._lock:
            try:
                database = self._open()
                database.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                database.execute("BEGIN IMMEDIATE")
                try:
                    yield database
                except BaseException:
                    database.execute("ROLLBACK")
                    raise
                database.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._unusable(error) from None

    def _damaged(self) -> StateError:
        return StateError(
            code="CHECKPOINT_DAMAGED",
            message=f"The checkpoint in {self._path} is not what was saved.",
            advice="Restore the run's folder from a backup, or start the experiment under a new name.",
        )

    def _unusable(self, error: sqlite3.Error) -> StateError:
        return StateError(
            code="RUN_DAMAGED",
            message=f"{self._path} cannot be used ({error}).",
            advice="Free disk space if it is full; else restore it from a backup, or start under a new name.",
        )


def _add_drops(database: sqlite3.Connection, entry: Mapping[str, Any], attempt: int) -> None:
    dropped, codes = entry.get("dropped", {}), entry.get("codes", {})
    rows = [(entry["round"], attempt, site, codes[site], why) for site, why in sorted(dropped.items())]
    database.executemany("INSERT INTO drops VALUES (?, ?, ?, ?, ?)", rows)


def _chained(entries: Iterable[Mapping[str, Any]]) -> str:
    """A digest of all entries in their order: each round's covers the one before."""
    link = ""
    for entry in entries:
        link = hashlib.sha256((link + json.dumps(entry, sort_keys=True)).encode()).hexdigest()
    return link


def _digest(checkpoint: Checkpoint, configuration: str, events: list[dict[str, Any]]) -> str:
    """sha256 over everything that a resumed run starts from: arrays, counters, events, history and configuration."""
    digest = hashlib.sha256()
    state = checkpoint.optimizer
    texts: tuple[str, ...] = (
        configuration,
        str(checkpoint.round),
        str(state.steps),
        json.dumps(events, sort_keys=True),
        _chained(checkpoint.history),
    )
    evidence = checkpoint.evidence
    if evidence.rows:
        shapes = {site: rows.shape for site, rows in sorted(evidence.rows.items())}
        texts = (*texts, json.dumps([shapes, sorted(evidence.votes)]))
    arrays = (
        *(rows.astype("<f4") for _, rows in sorted(evidence.rows.items())),
        *(row.astype("<f4") for _, row in sorted(evidence.votes.items())),
        checkpoint.global_context.astype("<f4"),
        state.first.astype("<f8"),
        state.second.astype("<f8"),
    )
    for part in (*(text.encode() for text in texts), *(np.ascontiguousarray(array).tobytes() for array in arrays)):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
