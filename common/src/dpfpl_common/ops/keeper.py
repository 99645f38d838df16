"""Restarts a process that crashed: after growing pauses, visibly, until it says that a restart is no use."""

import time
from collections.abc import Callable

from dpfpl_common.errors import DeploymentError
from dpfpl_common.ops.processes import ManagedProcess, ProcessGroup

__all__ = ["REFUSED", "Keeper"]

QUIET_S = 600.0
"""A process that ran so long starts again with the shortest pause."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
REFUSED = 2
"""Exit status with which a program of ours says that it will not serve as things are; another start would not help."""


class Keeper:
    """Watches one process. Meanwhile health is red by the process's own sign of life, so nobody is told otherwise.

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
            raise self._ended(self._process, status)
        pause = min(FIRST_PAUSE_S * 2**self._restarts, LONGEST_PAUSE_S)
        self._restarts += 1
        self._say(
            f"The {self._process.name} ended with status {status}; starting it again in {pause:g} s "
            f"(restart {self._restarts}). See {self._process.log_file}"
        )
        self._group.processes.remove(self._process)
        self._process, self._due = None, self._clock() + pause

    def _ended(self, process: ManagedProcess, status: int) -> DeploymentError:
        times = "" if status == REFUSED else f" after {self._restarts} restarts"
        return DeploymentError(
            code="PROCESS_ENDED",
            message=f"{process.name} ended with status {status}{times}.\n"
            f"End of {process.log_file}:\n{process.log_tail()}",
            advice="Its log says why.",
        )
