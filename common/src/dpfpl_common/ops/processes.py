"""Start, watch and reliably stop the processes that a federation on one machine consists of."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from dpfpl_common.errors import DeploymentError
from dpfpl_common.ops import guard
from dpfpl_common.ops.telemetry import quiet_environment

__all__ = [
    "Keeper",
    "ManagedProcess",
    "ProcessGroup",
    "child_environment",
    "free_port",
    "free_ports",
    "installed_command",
    "rotate_log",
    "wait_until",
]

_LOOPBACK = "127.0.0.1,localhost,::1"
LOG_BYTES = 5 << 20
"""A log that has grown beyond this is cut: its end is kept beside it as ``NAME.1``, the one before as ``NAME.2``."""
_LOGS_KEPT = 3
_LOG_LOOK_S = 1.0
_GUARD_SLACK_S = 4.0  # what the guard needs on top of the grace time to clear leftovers
QUIET_S = 600.0
"""A process that ran so long starts again with the shortest pause."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
REFUSED = 2
"""Exit status with which a program of ours says that it will not serve as things are; another start would not help."""


def installed_command(name: str) -> str:
    """Return the path of a command that was installed with this Python, such as ``flower-superlink``."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise DeploymentError(
            code="COMMAND_MISSING",
            message=f"The command {name} is not installed beside {sys.executable}.",
            advice="Install the package with its dependencies in this environment (make setup) and try again.",
        )
    return found


def child_environment(extra: Mapping[str, str] | None = None, *, offline: bool = False) -> dict[str, str]:
    """Return the environment for a child: ours, quiet, with our commands on PATH and no proxy for loopback."""
    environment = {**os.environ, **quiet_environment(offline), "PYTHONUNBUFFERED": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    for name in ("no_proxy", "NO_PROXY"):
        environment[name] = ",".join(filter(None, [os.environ.get(name, ""), _LOOPBACK]))
    return {**environment, **(extra or {})}


def free_ports(count: int) -> list[int]:
    """Return ``count`` different TCP ports that are free right now."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [int(held.getsockname()[1]) for held in sockets]
    finally:
        for held in sockets:
            held.close()


def free_port() -> int:
    """Return a TCP port that is free right now."""
    return free_ports(1)[0]


class ManagedProcess:
    """One command, its log and everything it starts; see :mod:`dpfpl_common.ops.guard` for how it ends.

    Args:
        name: how messages call it.
        command: program and arguments, never a shell line.
        log_file: where its output goes, appended; this user's alone, and rotated while we live.
        environment: the whole environment; ``None`` takes :func:`child_environment`.
        folder: its working folder.
        grace_s: how long it may take to end by itself once asked.
        user: whose process it is, as (user, group, all groups), if not ours; only root can say so.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        log_file: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        grace_s: float = 5.0,
        user: tuple[int, int, Sequence[int]] | None = None,
    ) -> None:
        self.name = name
        self.command = command
        self.log_file = log_file
        self.grace_s = grace_s
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as log:
            self._log_start = log.seek(0, os.SEEK_END)
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), str(grace_s), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(child_environment() if environment is None else environment),
                cwd=folder,
                start_new_session=True,  # Ctrl-C reaches only us, and we decide on the order
                user=None if user is None else user[0],
                group=None if user is None else user[1],
                extra_groups=None if user is None else user[2],
                umask=-1 if user is None else 0o077,
            )
        threading.Thread(target=self._rotate_while_alive, name=f"log of {name}", daemon=True).start()

    @property
    def pid(self) -> int:
        """The guard's process id, the ancestor of all that belongs to this command."""
        return self._guard.pid

    def poll(self) -> int | None:
        """Return the exit status, or ``None`` while it runs; 128 + n stands for signal n."""
        return self._guard.poll()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the end and return the exit status, or ``None`` when the time is up."""
        try:
            return self._guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def log_text(self) -> str:
        """Return what it has written since this start, or since the log was last rotated."""
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode("utf-8", errors="replace")

    def log_tail(self) -> str:
        """Return the last lines it has written."""
        return "\n".join(self.log_text().splitlines()[-15:])

    def _rotate_while_alive(self) -> None:
        while self.wait(_LOG_LOOK_S) is None:
            try:
                if rotate_log(self.log_file, LOG_BYTES):
                    self._log_start = 0
            except OSError:
                continue  # a full disk; the next look may find room

    def ask_to_stop(self) -> None:
        """Ask it to end, without waiting; asking twice means at once."""
        if self.poll() is None:
            self._guard.send_signal(signal.SIGTERM)

    def stop(self, grace_s: float | None = None) -> int:
        """End it and all it started, by force after the grace time, and return the exit status."""
        self.ask_to_stop()
        return self.finish(self.grace_s if grace_s is None else grace_s)

    def finish(self, grace_s: float) -> int:
        """Wait for a process that was asked to stop, and use force after the grace time."""
        if (status := self.wait(grace_s)) is not None:
            return status
        self.ask_to_stop()
        if (status := self.wait(_GUARD_SLACK_S)) is not None:
            return status
        for pid in [*guard.descendants(self.pid), self.pid]:  # the guard itself hangs: do its work
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return self._guard.wait()


class ProcessGroup:
    """Processes that live and die together.

    Used as a context manager in the main thread. Leaving the block in whatever way (its end, an error, Ctrl-C, SIGTERM,
    a closed terminal) asks all processes to stop, the last started first, and waits for them side by side, so that many
    take no longer than one. A further Ctrl-C meanwhile ends them at once.
    """

    def __init__(self) -> None:
        self.processes: list[ManagedProcess] = []
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                self._previous[number] = signal.signal(number, _leave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            self._previous.clear()

    def start(
        self,
        name: str,
        command: list[str],
        *,
        log_file: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        grace_s: float = 5.0,
        user: tuple[int, int, Sequence[int]] | None = None,
    ) -> ManagedProcess:
        """Start one more process; the arguments are those of :class:`ManagedProcess`."""
        process = ManagedProcess(
            name, command, log_file=log_file, environment=environment, folder=folder, grace_s=grace_s, user=user
        )
        self.processes.append(process)
        return process

    def check(self) -> None:
        """Raise if any of the processes has ended."""
        _raise_if_ended(self.processes)

    def stop(self) -> None:
        """Stop all processes; returns when none of them, and nothing they started, is left."""
        remaining = list(reversed(self.processes))
        hurry = False
        while remaining:
            try:
                for process in remaining:
                    process.ask_to_stop()
                while remaining:
                    remaining[0].finish(0.0 if hurry else remaining[0].grace_s)
                    remaining.pop(0)
            except (KeyboardInterrupt, SystemExit):
                hurry = True
        self.processes.clear()


class Keeper:
    """Restarts a process that crashed: after growing pauses, visibly, until it says that a restart is no use.

    Meanwhile health is red by the process's own sign of life.

    Args:
        process: as it runs now, a member of ``group``.
        start: starts another one in ``group``.
        group: of processes that live and die together.
        say: prints a line in the terminal.
        most: restarts without a quiet time between; None for any number.
        final: an error where another start would not help, from the process and its exit status; None where it may.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        process: ManagedProcess,
        start: Callable[[], ManagedProcess],
        group: ProcessGroup,
        say: Callable[[str], object],
        *,
        most: int | None = None,
        final: Callable[[ManagedProcess, int], DeploymentError | None] = lambda process, status: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._process: ManagedProcess | None = process
        self._start = start
        self._group = group
        self._say = say
        self._most = most
        self._final = final
        self._clock = clock
        self._restarts = 0
        self._started_at = clock()
        self._due = 0.0

    def look(self) -> None:
        """To be called often; never waits for the process.

        Raises:
            DeploymentError: the process refuses to serve, or crashed too often.
        """
        if self._process is None:
            if self._clock() >= self._due:
                self._process, self._started_at = self._start(), self._clock()
            return
        status = self._process.poll()
        if status is None:
            return
        if self._clock() - self._started_at > QUIET_S:
            self._restarts = 0
        if (error := self._final(self._process, status)) is not None:
            raise error
        if status == REFUSED or self._restarts == self._most:
            raise _ended(self._process, status, "" if status == REFUSED else f" after {self._restarts} restarts")
        pause = min(FIRST_PAUSE_S * 2**self._restarts, LONGEST_PAUSE_S)
        self._restarts += 1
        self._say(
            f"The {self._process.name} ended with status {status}; starting it again in {pause:g} s "
            f"(restart {self._restarts}). See {self._process.log_file}"
        )
        self._group.processes.remove(self._process)
        self._process, self._due = None, self._clock() + pause


def rotate_log(path: Path, most_bytes: int = LOG_BYTES) -> bool:
    """Cut a log that has grown too long, while its writers, which append, go on; tells whether it was.

    Its end is kept, up to ``most_bytes``. What is written between the copy and the cut is lost.
    """
    size = path.stat().st_size
    if size <= most_bytes:
        return False
    for number in range(_LOGS_KEPT - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number + 1}"))
    with path.open("rb") as log:
        log.seek(size - most_bytes)
        kept = log.read(most_bytes)
    descriptor = os.open(path.with_name(f"{path.name}.1"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as copy:
        copy.write(kept)
    os.truncate(path, 0)
    return True


def wait_until(
    predicate: Callable[[], bool],
    *,
    timeout_s: float,
    what: str,
    processes: Iterable[ManagedProcess] = (),
    interval_s: float = 0.1,
) -> None:
    """Wait until the predicate holds.

    Raises:
        DeploymentError: a process that has to live meanwhile ended, or the time is up; with the end of its log.
    """
    watched = list(processes)
    deadline = time.monotonic() + timeout_s
    while not predicate():
        _raise_if_ended(watched)
        if time.monotonic() > deadline:
            raise DeploymentError(
                code="TIMED_OUT",
                message=f"Waited {timeout_s:g} s for {what}, which did not happen.{_tails(watched)}",
                advice="Read the logs named above; on a slow or busy machine try again.",
            )
        time.sleep(interval_s)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _tails(processes: list[ManagedProcess]) -> str:
    return "".join(f"\nEnd of {p.log_file}:\n{p.log_tail()}\n" for p in processes)


def _raise_if_ended(processes: Iterable[ManagedProcess]) -> None:
    for process in processes:
        if (status := process.poll()) is not None:
            raise _ended(process, status)


def _ended(process: ManagedProcess, status: int, when: str = "") -> DeploymentError:
    return DeploymentError(
        code="PROCESS_ENDED",
        message=f"{process.name} ended with status {status}{when}.{_tails([process])}",
        advice="Its log says why.",
    )
