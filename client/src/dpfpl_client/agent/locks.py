"""One agent for one state folder and one ledger: flocks, so that a killed holder leaves nothing to clean up."""

import fcntl
import os
from pathlib import Path

from dpfpl_common.durable import make_folder_durably
from dpfpl_common.errors import StateError

__all__ = ["Lock", "Locks", "StateLock"]


class Lock:
    """An flock on a file."""

    def __init__(self, path: Path, error: StateError) -> None:
        """Take the lock at once, or raise ``error``."""
        make_folder_durably(path.parent)  # or a loss of power might take the whole ledger, folder and all
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise error from None

    def release(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)


class StateLock(Lock):
    """One agent per state folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder / "agent.lock",
            StateError(
                code="STATE_LOCKED",
                message=f"Another agent is already using {folder}.",
                advice="Stop it first, or give this site a state folder of its own.",
            ),
        )


class Locks:
    """All locks of one agent."""

    def __init__(self, *locks: Lock) -> None:
        self._locks = list(locks)

    def add(self, lock: Lock) -> None:
        """One more."""
        self._locks.append(lock)

    def release(self) -> None:
        """Let another agent take over."""
        while self._locks:
            self._locks.pop().release()
