"""What a ClientApp leaves behind is ended with it, and nothing else is."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")

EXECUTOR = """
import json, os, sys, time
from dpfpl_client.node.warm_node import adopt_orphans, clear_strays, reap

def app(seconds):
    if (pid := os.fork()) == 0:
        if os.fork() == 0:              # lets go of everything, as a daemon does
            os.setsid()
            if os.fork() == 0:
                time.sleep(60)
            os._exit(0)
        os.wait()
        if os.fork() == 0:              # an ordinary child of its own
            time.sleep(60)
        time.sleep(seconds)
        os._exit(0)
    return pid

def below():
    from dpfpl_common.ops.guard import descendants
    return len(descendants(os.getpid()))

adopt_orphans()
first, alive = app(0.3), set()
time.sleep(1.0)
before, ended = below(), reap()
second = app(30)
time.sleep(0.5)
alive = {second}
deadline = time.monotonic() + 10
while clear_strays(alive) and time.monotonic() < deadline:
    reap()
    time.sleep(0.05)
time.sleep(0.2)
reap()
goes_on = os.path.exists(f"/proc/{second}")
print(json.dumps({"ended": first in ended, "before": before, "after": below(), "second": goes_on}))
os.kill(second, 9)
reap()
clear_strays(set())
"""


def test_a5_what_a_clientapp_leaves_behind_is_ended_and_running_ones_are_not(tmp_path: Path) -> None:
    script = tmp_path / "executor.py"
    script.write_text(EXECUTOR)
    began = time.monotonic()
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)

    assert found["ended"]
    assert found["before"] == 2  # the daemon and the child of the one that ended
    assert found["second"]  # the running one goes on
    assert found["after"] == 2  # it and its own child; its daemon is gone, and so is all of the first's
    assert time.monotonic() - began < 30
