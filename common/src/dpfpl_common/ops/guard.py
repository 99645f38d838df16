"""Run one command and take down every process that came from it, however it or our parent ends.

Started by file path (``python -I -S guard.py PARENT_PID GRACE_S COMMAND...``), so it uses the standard library only and
costs a few milliseconds. Flower needs it: its SuperLink and SuperNode start helpers, some in a session of their own,
which outlive a killed parent. Three things end the command:

- it exits by itself;
- SIGTERM, SIGINT or SIGHUP to the guard: SIGTERM to the command, SIGKILL after the grace time or when asked twice;
- the process that started the guard is gone, even by SIGKILL.

In each case whatever the command left behind is killed before the guard exits with the command's exit status.
On Linux orphans are adopted by the guard, so nothing escapes; elsewhere the command's process group is killed.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["descendants", "main"]

_POLL_S = 0.05
_LEFTOVER_GRACE_S = 1.5
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def descendants(pid: int) -> list[int]:
    """Return the process ids below ``pid``, parents before children; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(0), [])
        found.extend(below)
        queue.extend(below)
    return found


def _prctl(option: int, value: int) -> None:
    """Call prctl on Linux; elsewhere do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _signal(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _start(command: list[str]) -> int:
    """Start the command in a process group of its own and return its process id."""

    def prepare() -> None:  # this process has one thread, so code between fork and exec is safe
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(command, preexec_fn=prepare, process_group=0, stdin=subprocess.DEVNULL).pid


def _reap() -> dict[int, int] | None:
    """Collect every dead child: exit statuses by process id, or ``None`` when there is no child at all."""
    dead: dict[int, int] = {}
    while True:
        try:
            pid, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return dead or None
        if pid == 0:
            return dead
        code = os.waitstatus_to_exitcode(raw)
        dead[pid] = code if code >= 0 else 128 - code


def _clear(main_pid: int, patient: bool) -> None:
    """End what the command left behind, first politely, then by force, and leave no zombie to others."""
    for pid in descendants(os.getpid()):
        _signal(pid, signal.SIGTERM)
    force_at = time.monotonic() + (_LEFTOVER_GRACE_S if patient else 0.0)
    give_up_at = force_at + _LEFTOVER_GRACE_S  # SIGKILL works at once, except on a process stuck in the kernel
    while _reap() is not None and time.monotonic() < give_up_at:
        if time.monotonic() >= force_at:
            for pid in descendants(os.getpid()):
                _signal(pid, signal.SIGKILL)
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all there is without /proc
        os.killpg(main_pid, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Run the command named in the arguments and return its exit status."""
    parent, grace_s, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    asked = 0

    def ask(_number: int, _frame: object) -> None:
        nonlocal asked
        asked += 1

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        pid = _start(command)
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        return 127

    deadline: float | None = None
    while pid not in (dead := _reap() or {}):
        orphaned = os.getppid() != parent
        if deadline is None and (asked or orphaned):
            deadline = time.monotonic() + grace_s
            _signal(pid, signal.SIGTERM)
        if deadline is not None and (asked > 1 or time.monotonic() > deadline):
            _signal(pid, signal.SIGKILL)
        time.sleep(_POLL_S)
    _clear(pid, patient=asked < 2)
    return dead[pid]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
