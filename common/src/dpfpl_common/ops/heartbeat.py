"""A sign of life on disk: whether the process that does something is still there, whatever its last words were.

The sign is a lock on a file, which the kernel drops with the process, also one that was killed, and the file's time,
which the process renews, so that one that hangs can be told from one that works.
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

__all__ = ["Heartbeat", "LifeSign", "life_sign"]

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


class Heartbeat:
    """Held by the one process of its kind; a context manager.

    Args:
        path: the lock file.
        what: what the process does, for the message that a second one gets.
        wait_s: how long to wait for an earlier process to end.
        code: of the error that a second process gets.
        advice: what it is told to do.
        by_itself: renew the file from a thread; else the process calls :meth:`beat` from its own loop, as one that
            forks has to.
    """

    def __init__(
        self, path: Path, what: str, wait_s: float = 0.0, *, code: str, advice: str, by_itself: bool = True
    ) -> None:
        self._path = path
        self._what = what
        self._wait_s = wait_s
        self._code, self._advice = code, advice
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
                        code=self._code,
                        message=f"Another process {self._what} already ({self._path.parent}).",
                        advice=self._advice,
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
