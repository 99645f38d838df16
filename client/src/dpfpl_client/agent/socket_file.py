"""The place of a unix socket on disk: a private folder, and one agent at a time."""

import fcntl
import os
import socket
import stat
from pathlib import Path

from dpfpl_common.errors import StateError

__all__ = ["SocketFile"]


class SocketFile:
    """Holds a socket's path from :meth:`claim` to :meth:`release`.

    A lock on a file beside the socket, which the system drops when its holder dies, tells a dead agent from a live one:
    whoever has the lock may remove what a dead agent left.

    Args:
        path: the socket.
        group: the group of the callers, if they are another user; its folder must then be this user's with exactly that
            group and mode 2750, so that the socket gets the group too.
    """

    def __init__(self, path: Path, group: int | None = None) -> None:
        self._path = path
        self._group = group
        self._lock: int | None = None

    def claim(self) -> None:
        """Make or check the folder, take the lock, remove a dead agent's socket.

        Raises:
            StateError: SOCKET_FOLDER, others may write to or look into the folder; AGENT_ALREADY_RUNNING;
                SOCKET_PATH_OCCUPIED, something that is no socket lies there.
        """
        self._private_folder()
        lock = os.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_stale()
        except BlockingIOError:
            os.close(lock)
            raise self._running() from None
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    def protect(self) -> None:
        """Give the bound socket mode 0600, or 0660 for its callers' group; until then the folder alone guards it."""
        self._path.chmod(0o600 if self._group is None else 0o660)

    def release(self) -> None:
        """Remove the socket and give the path to the next agent."""
        if self._lock is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def _private_folder(self) -> None:
        folder = self._path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            state = folder.lstat()
        except OSError as error:
            raise StateError(
                code="SOCKET_FOLDER",
                message=f"The folder {folder} of the agent's socket cannot be made ({error.strerror}).",
                advice="Choose another agent address.",
            ) from None
        if self._group is not None:
            if not _is_shared(state, self._group):
                raise StateError(
                    code="SOCKET_FOLDER",
                    message=f"The folder {folder} of the agent's socket is not the one that two users share.",
                    advice="As root: dpfpl-client separate",
                )
        elif not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
            raise StateError(
                code="SOCKET_FOLDER",
                message=f"The folder {folder} of the agent's socket is not this user's alone.",
                advice=f"Choose a folder of its own for the socket, or: chmod 700 {folder}",
            )

    def _remove_stale(self) -> None:
        try:
            state = self._path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(state.st_mode):
            raise StateError(
                code="SOCKET_PATH_OCCUPIED",
                message=f"{self._path} is not a socket.",
                advice="Move it away or choose another agent address.",
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self._path))
            except (ConnectionRefusedError, FileNotFoundError):
                self._path.unlink(missing_ok=True)
                return
            except OSError:
                pass
        raise self._running()

    def _running(self) -> StateError:
        return StateError(
            code="AGENT_ALREADY_RUNNING",
            message=f"Another agent answers at {self._path}.",
            advice="Stop it first, or choose another agent address.",
        )


def _is_shared(state: os.stat_result, group: int) -> bool:
    """Whether a folder is this user's, and may be entered, not written, by exactly this group."""
    mine = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid()
    return mine and state.st_gid == group and stat.S_IMODE(state.st_mode) == 0o2750
