"""What code that an operator had pushed would try as the SuperNode's user; prints what it got as JSON.

Run as that user: ``hostile_code.py KIT DATA AGENT_PID PORT``.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

PTRACE_ATTACH = 16


def tried(act):
    """What an act gave: "yes" with its result, or the error's name."""
    try:
        result = act()
    except OSError as error:
        return os.strerror(error.errno) if error.errno else type(error).__name__
    return f"yes{'' if result is None else f' {result}'}"


def read(path):
    if path.is_dir():
        os.listdir(path)
    else:
        with path.open("rb") as file:
            file.read(1)


def overwrite(path):
    with path.open("ab"):
        pass


def attach(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def connect(port):
    with socket.create_connection(("127.0.0.1", port), timeout=2):
        pass


def leave_a_daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        with contextlib.suppress(OSError):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
        os._exit(0)
    time.sleep(0.2)


def main():
    kit, data, agent, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    proc = Path(f"/proc/{agent}")
    found = {
        "read the images": tried(lambda: read(data)),
        "read one image by its name": tried(lambda: read(data / "train/bright/0.png")),
        "read the policy": tried(lambda: read(kit / "policy.toml")),
        "read site.toml": tried(lambda: read(kit / "site.toml")),
        "read the agent's signing key": tried(lambda: read(kit / "agent.key")),
        "read the aggregation key": tried(lambda: read(kit / "aggregation.key")),
        "read the ledger": tried(lambda: read(kit / "state/ledger.sqlite")),
        "read the personal prompts": tried(lambda: read(kit / "state/experiments")),
        "read the image features": tried(lambda: read(kit / "state/cache")),
        "read the ledger's registry": tried(lambda: read(kit / "state.registry")),
        "read the agent's log": tried(lambda: read(kit / "control/logs/agent.log")),
        "read the agent's memory": tried(lambda: read(proc / "mem")),
        "read the agent's environment": tried(lambda: read(proc / "environ")),
        "list the agent's open files": tried(lambda: read(proc / "fd")),
        "attach a debugger to the agent": tried(lambda: attach(agent)),
        "kill the agent": tried(lambda: os.kill(agent, signal.SIGTERM)),
        "change the policy": tried(lambda: overwrite(kit / "policy.toml")),
        "change the kit": tried(lambda: overwrite(kit / "more.toml")),
        "change its own log": tried(lambda: overwrite(kit / "control/logs/supernode.log")),
        "put a socket in the agent's place": tried(lambda: os.unlink(kit / "run/agent.sock")),
        "change the installed program": tried(lambda: overwrite(Path(sys.argv[5]) / "app.py")),
        "find a secret of whoever started it in the environment": "yes" if "CLOUD_TOKEN" in os.environ else "not there",
        "read the node's own key": tried(lambda: read(kit / "node.key")),
        "connect elsewhere": tried(lambda: connect(port)),
        "leave a daemon behind": tried(leave_a_daemon),
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
