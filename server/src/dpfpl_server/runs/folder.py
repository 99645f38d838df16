"""What a run leaves on the operator's disk: experiment, state and result.

::

    experiment.json             the experiment, noise level resolved; never changes
    run.sqlite                  rounds, drops, checkpoint, events, Flower runs: see run_store
    serverapp.lock              held by the ServerApp while it works on the run
    supervisor.lock             held by dpfpl-server run or resume meanwhile
    result.json, report.html    once it is finished
"""

import contextlib
import fcntl
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from dpfpl_common.errors import StateError
import json
from typing import Any
from dpfpl_common.ops.files import write_durably
from dpfpl_common.experiment import Experiment, parse_experiment
from dpfpl_server.federation.checkpoint import Checkpoint
from dpfpl_server.runs.run_import import import_earlier_run
from dpfpl_server.runs.store import RunStore

__all__ = ["Checkpoint", "LifeSign", "Pulse", "RunFolder", "life_sign"]


# A sign of life on disk: whether a process that works on a run is still there, whatever its last words were.
#
# The sign is a lock on a file, which the kernel drops with the process, also one that was killed, and the file's time,
# which a thread renews, so that a process that hangs can be told from one that works.


BEAT_SECONDS = 1.0


@dataclass(frozen=True)
class LifeSign:
    """What a reader sees.

    Attributes:
        alive: a process holds the lock.
        age_s: seconds since it last renewed the file; None if there never was one.
    """

    alive: bool
    age_s: float | None


class Pulse:
    """Held by the one process of its kind that works on a run; a context manager.

    Args:
        path: the lock file.
        what: what the process does, for the message that a second one gets.
        wait_s: how long to wait for an earlier process to end.
        by_itself: renew the file from a thread; else the process calls :meth:`beat` from its own loop, as one that
            forks has to.
    """

    def __init__(self, path: Path, what: str, wait_s: float = 0.0, *, by_itself: bool = True) -> None:
        self._path = path
        self._what = what
        self._wait_s = wait_s
        self._by_itself = by_itself
        self._done = threading.Event()
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            StateError: another process holds it.
        """
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        end = time.monotonic() + self._wait_s
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    os.close(self._descriptor)
                    raise StateError(
                        code="RUN_IN_PROGRESS",
                        message=f"Another process {self._what} already ({self._path.parent}).",
                        advice="Look at it with dpfpl-server watch NAME, or end it with dpfpl-server stop NAME.",
                    ) from None
                time.sleep(0.2)
        os.utime(self._path)
        if self._by_itself:
            threading.Thread(target=self._go_on, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        os.close(self._descriptor)

    def beat(self) -> None:
        """Renew the file."""
        with contextlib.suppress(OSError):  # the folder was moved away
            os.utime(self._path)

    def let_go(self) -> None:
        """In a forked child: the sign is the parent's alone and must end with it."""
        os.close(self._descriptor)

    def _go_on(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            self.beat()


def life_sign(path: Path) -> LifeSign:
    """Whether a process holds the lock now, and when it last renewed the file; changes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return LifeSign(False, None)
    try:
        age = max(0.0, time.time() - os.fstat(descriptor).st_mtime)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return LifeSign(True, age)
        return LifeSign(False, age)
    finally:
        os.close(descriptor)


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
        self.path.mkdir(parents=True, exist_ok=True)
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
        if (self.path / "checkpoint.npz").exists() and not (self.path / "run.sqlite").exists():
            import_earlier_run(self.path, experiment, self.store)

    def experiment(self) -> Experiment:
        """The experiment that the folder belongs to."""
        if self._experiment is None:
            try:
                self._experiment = parse_experiment((self.path / "experiment.json").read_text())
            except (FileNotFoundError, NotADirectoryError):
                raise StateError(
                    code="NO_RUN", message=f"{self.path} holds no run.", advice="Check the run's name."
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
        """Append what is going on, for ``run``, ``status`` and ``watch``."""
        self.store.add_event(event)

    def events(self, skip: int = 0) -> list[dict[str, Any]]:
        """The events so far, without the first ``skip``."""
        return self.store.events(skip)

    def server_pulse(self, wait_s: float = 0.0) -> Pulse:
        """To be held by the ServerApp: two of them on one run would overwrite each other's rounds."""
        return Pulse(self.path / "serverapp.lock", "runs this experiment", wait_s)

    def supervisor_pulse(self) -> Pulse:
        """To be held by whoever submits runs and resumes them."""
        return Pulse(self.path / "supervisor.lock", "runs and supervises this experiment")

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
