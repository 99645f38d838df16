"""Starts an agent that crashed again: with growing pauses, a limited number of times, and never silently."""

import time
from collections.abc import Callable

from dpfpl_common.errors import DeploymentError
from dpfpl_common.processes import ManagedProcess, ProcessGroup

__all__ = ["Keeper"]

MOST = 5
"""Restarts without a quiet time between."""
QUIET_S = 600.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
REFUSED = 2
"""Exit status with which an agent says that it will not serve as things are; starting it again would not help."""


class Keeper:
    """Watches one agent of a site.

    Args:
        process: the agent as it runs now, a member of ``group``.
        start: starts another one in ``group``.
        group: the site's processes.
        say: tells the administrator.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        process: ManagedProcess,
        start: Callable[[], ManagedProcess],
        group: ProcessGroup,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._process: ManagedProcess | None = process
        self._start = start
        self._group = group
        self._say = say
        self._clock = clock
        self._restarts = 0
        self._started_at = clock()
        self._due = 0.0

    def look(self) -> None:
        """To be called often; never waits.

        Raises:
            DeploymentError: the agent refuses to serve, or crashed too often.
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
        if status == REFUSED or self._restarts >= MOST:
            raise DeploymentError(
                code="AGENT_ENDED",
                message=f"{self._process.name} ended with status {status}"
                + ("" if status == REFUSED else f" after {self._restarts} restarts")
                + f".\nEnd of {self._process.log_file}:\n{self._process.log_tail()}",
                advice="Its log says why.",
            )
        pause = min(FIRST_PAUSE_S * 2**self._restarts, LONGEST_PAUSE_S)
        self._restarts += 1
        self._say(
            f"The {self._process.name} ended with status {status}; starting it again in {pause:g} s "
            f"({self._restarts} of {MOST}). Nothing is lost; see {self._process.log_file}"
        )
        self._group.processes.remove(self._process)
        self._process, self._due = None, self._clock() + pause
