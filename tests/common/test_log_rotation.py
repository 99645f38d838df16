"""DR9: every log of a process of ours is cut while the process lives, so that a week of rounds fills no disk."""

import contextlib
import os
import stat
import sys
import time

from dpfpl_common.ops import processes
from dpfpl_common.ops.processes import ProcessGroup, rotate_log, wait_until

WEEK = """
import sys, time
for second in range(7 * 24 * 3600):
    if second % 12 == 0:  # a round every 12 s, and what Flower writes about one
        for word in ("GetRun", "GetFab", "PushMessages", "PullMessages"):
            print(f"INFO :      [Fleet.{word}] Requesting for run_id=1234567890123456789 second={second}")
sys.stdout.flush()
time.sleep(1)  # what is written while a log is cut may be lost, and so might the last line be
print("the last line", flush=True)
"""
LINES = 7 * 24 * 3600 // 12 * 4
SMALL = 200_000


def sizes(log):
    """Bytes of the log and of what was kept of it; one may be renamed while we look."""
    found = {}
    for file in list(log.parent.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            found[file.name] = file.stat().st_size
    return found


def texts(log):
    """Of a log and its rotated files; one may go while they are read."""
    for file in log.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield file.read_text(errors="replace")


def test_DR9_a_week_of_rounds_leaves_a_bounded_log_with_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "LOG_BYTES", SMALL)
    monkeypatch.setattr(processes, "_LOG_LOOK_S", 0.02)
    log = tmp_path / "logs" / "superlink.log"
    largest = 0
    with ProcessGroup() as group:
        program = WEEK + "time.sleep(60)\n"
        group.start("week", [sys.executable, "-c", program], log_file=log)
        end = time.monotonic() + 180  # seconds where nothing else runs
        while not any("the last line" in text for text in texts(log)) and time.monotonic() < end:
            largest = max(largest, sum(sizes(log).values()))
            time.sleep(0.05)
        wait_until(lambda: log.stat().st_size <= SMALL, timeout_s=10, what="the last rotation")
    kept = sizes(log)
    print(f"DR9: {LINES} lines; at most {largest} bytes at a time, in the end {kept}")
    assert sum(kept.values()) <= 4 * SMALL
    assert all(size <= SMALL for size in kept.values())
    assert len(kept) <= 4
    everything = "".join(file.read_text() for file in log.parent.iterdir())
    assert "the last line" in everything
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in log.parent.iterdir())


def test_DR9_a_rotation_keeps_the_end_and_the_writer(tmp_path):
    log = tmp_path / "a.log"
    with log.open("ab") as writer:  # as a managed process has it open
        writer.write(b"x" * 500 + b"newest")
        writer.flush()
        assert rotate_log(log, 100)
        writer.write(b"after")
        writer.flush()
    assert log.read_bytes() == b"after"
    kept = (tmp_path / "a.log.1").read_bytes()
    assert len(kept) == 100
    assert kept.endswith(b"newest")
    assert not rotate_log(log, 100)
    for number in range(6):
        os.truncate(log, 101 + number)
        assert rotate_log(log, 100)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2", "a.log.3"]
