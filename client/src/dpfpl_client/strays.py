"""Ends what a ClientApp leaves behind: the operator's code may fork, let go of its parent and stay.

Orphans come to this process once it has declared itself their reaper (Linux), so nothing below it is lost sight of.
"""

import contextlib
import ctypes
import os
import signal
import sys

from dpfpl_common.guard import descendants

__all__ = ["adopt_orphans", "clear_strays", "reap"]

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of every orphan below this process; elsewhere than on Linux do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap() -> set[int]:
    """Collect the children that are dead and return their process ids."""
    dead: set[int] = set()
    with contextlib.suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            dead.add(pid)
    return dead


def clear_strays(alive: set[int]) -> bool:
    """Kill everything below this process but the processes ``alive`` and what is below them.

    Returns:
        Whether anything had to be killed; one that forks meanwhile is caught by the next call.
    """
    kept = alive | {below for pid in alive for below in descendants(pid)}
    strays = [pid for pid in descendants(os.getpid()) if pid not in kept]
    for pid in strays:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(strays)
