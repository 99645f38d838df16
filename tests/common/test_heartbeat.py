"""The sign of life tells who is there, ends with its process however that ends, and admits one holder only."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dpfpl_common.errors import StateError
from dpfpl_common.ops import heartbeat as module
from dpfpl_common.ops.heartbeat import Heartbeat, LifeSign, life_sign

HOLD = """
import sys, time
from pathlib import Path
from dpfpl_common.ops.heartbeat import Heartbeat
with Heartbeat(Path(sys.argv[1]), "works", code="X", advice="Wait."):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    path = tmp_path / "serverapp.lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield path, process
    process.kill()
    process.wait(10)
    process.stdout.close()


def test_nobody_was_ever_there(tmp_path):
    assert life_sign(tmp_path / "x.lock") == LifeSign(False, None)
    assert list(tmp_path.iterdir()) == []


def test_a_holder_is_seen_a_second_one_refused_and_a_killed_one_gone(holder):
    path, process = holder
    assert life_sign(path).alive
    with pytest.raises(StateError) as caught, Heartbeat(path, "works", code="RUN_IN_PROGRESS", advice="Wait."):
        pass
    assert caught.value.code == "RUN_IN_PROGRESS"
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    sign = life_sign(path)
    assert (sign.alive, sign.age_s is not None) == (False, True)
    with Heartbeat(path, "works", code="RUN_IN_PROGRESS", advice="Wait."):
        assert life_sign(path).alive
    assert not life_sign(path).alive


def test_a_successor_waits_for_its_predecessor(holder):
    path, process = holder
    os.kill(process.pid, signal.SIGKILL)
    with Heartbeat(path, "works", wait_s=10.0, code="RUN_IN_PROGRESS", advice="Wait."):
        assert life_sign(path).alive


def test_a_process_that_hangs_stops_renewing_the_file(holder, monkeypatch):
    path, process = holder
    os.utime(path, (time.time() - 100, time.time() - 100))
    deadline = time.monotonic() + 10
    while life_sign(path).age_s > 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert life_sign(path).age_s <= 5, "a process at work renews it"
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    os.utime(path, (time.time() - 100, time.time() - 100))
    time.sleep(1.5 * module.BEAT_SECONDS)
    sign = life_sign(path)
    assert sign.alive
    assert sign.age_s > 90
