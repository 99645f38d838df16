"""One call computes at a time, few wait, the others are sent away."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dpfpl_common.errors import RefusedError

__all__ = ["Turns"]

_LOOK_S = 0.1
"""How often a waiting call looks whether it is still wanted."""


class Turns:
    """Hands the agent to one caller after the other.

    Args:
        queue: how many may wait.
    """

    def __init__(self, queue: int) -> None:
        self._places = threading.Semaphore(1 + queue)
        self._computing = threading.Lock()

    @property
    def idle(self) -> bool:
        """Whether no one computes."""
        return not self._computing.locked()

    @contextmanager
    def hold(self, wanted: Callable[[], bool]) -> Iterator[None]:
        """Wait for the agent and hold it for the block.

        Args:
            wanted: whether someone still waits for the result; asked while waiting and once more before the block.

        Raises:
            RefusedError: BUSY, too many wait; AGENT_UNAVAILABLE, no one wants the result any more.
        """
        if not self._places.acquire(blocking=False):
            raise RefusedError(code="BUSY", message="The site's agent is busy.", advice="Call again later.")
        try:
            while not self._computing.acquire(timeout=_LOOK_S):
                _refuse_unless(wanted())
            try:
                _refuse_unless(wanted())
                yield
            finally:
                self._computing.release()
        finally:
            self._places.release()


def _refuse_unless(wanted: bool) -> None:
    if not wanted:
        raise RefusedError(
            code="AGENT_UNAVAILABLE",
            message="The site's agent is stopping, or the caller has gone.",
            advice="Send the same request again; it costs no privacy budget twice.",
        )
