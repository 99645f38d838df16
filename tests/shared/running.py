"""Processes as /proc shows them: by what stands in their environment or their command line."""

import uuid
from pathlib import Path

MARK = "DPFPL_TEST_MARK"
Mark = dict[str, str]
"""An environment by which everything that is started with it can be found."""


def command_line(pid: int) -> bytes:
    """Its words, each followed by a zero byte; empty of one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def marked() -> Mark:
    """A new one."""
    return {MARK: uuid.uuid4().hex}


def alive(mark: Mark) -> dict[int, str]:
    """What inherited the mark, also orphans in other sessions: command lines by process id."""
    line, found = f"{MARK}={mark[MARK]}".encode(), {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if line in (entry / "environ").read_bytes().split(b"\0") and b") Z " not in (entry / "stat").read_bytes():
                found[int(entry.name)] = command_line(int(entry.name)).replace(b"\0", b" ").decode()[:150]
        except OSError:
            continue
    return found
