"""A SuperNode whose answers cost fractions of a second: everything is imported once, and each message gets a fork.

Stock Flower starts a fresh ``flwr-clientapp`` per message (about a second of CPU for imports alone) and looks for
messages every 3 s. Here the SuperNode runs in Flower's isolation mode "process", which is made for an executor of one's
own. Ours is forked from the SuperNode before that starts any thread. A pipe tells it that a message is there; then it
asks the SuperNode's Runtime API for the task, as Flower's SuperExec does, and forks itself for it. So a ClientApp is
as isolated as before but has nothing to import. What is changed in Flower for that stands in
:mod:`dpfpl_client.node.flower_patches`.

The Runtime API listens on loopback, where other users of the machine reach it. It gives tasks only to our executor:
requests for one are signed with a secret that is drawn at the start and lies in no file (Flower's SuperExec
authentication). A task's token, which opens the rest of that API, travels by fork and stands in no command line.

Takes the arguments of ``flower-supernode``; ``DPFPL_NODE_POLL_S`` sets the wait. Run by
:mod:`dpfpl_client.node.supernode`.
"""

import contextlib
import ctypes
import importlib
import os
import secrets
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.cli.flower_supernode import flower_supernode
from flwr.supernode.runtime.run_clientapp import run_clientapp

from dpfpl_client.node import flower_patches
from dpfpl_client.node.link import node_heartbeat
from dpfpl_common.ops.files import prune_apps
from dpfpl_common.ops.guard import descendants
from dpfpl_common.ops.telemetry import silence_telemetry

__all__ = ["adopt_orphans", "clear_strays", "main", "reap"]


# Ends what a ClientApp leaves behind: the operator's code may fork, let go of its parent and stay.
#
# Orphans come to this process once it has declared itself their reaper (Linux), so nothing below it is lost sight of.


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


silence_telemetry()  # before Flower is imported, which reads its switch then


_PRELOAD = "DPFPL_NODE_PRELOAD"
_POLL = "DPFPL_NODE_POLL_S"
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_SECRET_BYTES = 32
_PR_SET_PDEATHSIG = 1
_SOON_S = 0.05
_LOOK_S = 1.0
"""How often the executor asks for tasks unasked, should it ever have missed a word."""


def main() -> NoReturn:
    """Fork the executor, then become the SuperNode."""
    poll_s = float(os.environ.get(_POLL, "1.0"))
    port = sys.argv[sys.argv.index("--port") + 1]
    importlib.import_module(os.environ.get(_PRELOAD, "dpfpl_client.node.app"))
    flower_patches.pull_again_soon()
    parent, secret = os.getpid(), secrets.token_bytes(_SECRET_BYTES)
    heard, told = os.pipe()
    executor = os.fork()
    if executor == 0:
        os.close(told)
        _die_with_parent(parent)
        _execute_tasks(f"127.0.0.1:{port}", heard, secret)
    os.close(heard)
    threading.Thread(target=_end_with, args=(executor,), daemon=True).start()
    flower_patches.watch_the_link(Path(os.environ["FLWR_HOME"]) / "link.json")
    flower_patches.shorten_waits(poll_s)
    flower_patches.announce_messages(told)
    flower_patches.push_late_replies()
    flower_patches.push_every_part()
    own = ("--isolation", "process", "--superexec-auth-secret-file", _readable_once(secret))
    sys.argv = ["flower-supernode", *sys.argv[1:], *own]
    with node_heartbeat(Path(os.environ["FLWR_HOME"])):  # after the fork: the sign ends with this process alone
        flower_supernode()
    sys.exit()


def _readable_once(secret: bytes) -> str:
    """A path at which this process, and no other user's, reads the secret one time; nothing is written to a disk."""
    reader, writer = os.pipe()
    os.write(writer, secret)
    os.close(writer)
    return f"/dev/fd/{reader}"


def _execute_tasks(address: str, heard: int, secret: bytes) -> NoReturn:
    """Ask the SuperNode for a task whenever a message is announced, and fork for each; never returns."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # loopback, the same as Flower's own SuperExec
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE}),
        ],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    me, alive, strays = os.getpid(), set[int](), False
    due = 0.0
    adopt_orphans()
    while True:
        if time.monotonic() >= due:
            due = time.monotonic() + _LOOK_S
            task = client.AcquireTask(request)
            if task.HasField("task") and task.token:
                due = 0.0  # another one may be there
                if (pid := os.fork()) == 0:
                    os.close(heard)
                    _die_with_parent(me)
                    _run_one(address, task.token)
                alive.add(pid)
        patience = _SOON_S if alive or strays else _LOOK_S
        if select.select([heard], [], [], max(0.0, min(patience, due - time.monotonic())))[0]:
            if not os.read(heard, 4096):
                os._exit(0)  # the SuperNode has gone
            due = 0.0
        ended = alive & reap()
        alive -= ended
        if ended and not alive:  # nothing uses the unpacked bundles now
            with contextlib.suppress(OSError):
                prune_apps(Path(os.environ["FLWR_HOME"]))
        if ended or strays:  # look into /proc only when a ClientApp ended, and until nothing is left
            strays = clear_strays(alive)


def _run_one(address: str, token: str) -> NoReturn:
    """Run the ClientApp for one message in this process and end it."""
    status = 1
    try:
        run_clientapp(runtime_api_address=address, token=token, insecure=True, parent_pid=os.getppid())
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _end_with(executor: int) -> None:
    """Without its executor the SuperNode would take messages and never answer, so let it end."""
    os.waitpid(executor, 0)
    print("the task executor ended", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def _die_with_parent(parent: int) -> None:
    """Make the kernel end this process when its parent ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)


if __name__ == "__main__":
    main()
