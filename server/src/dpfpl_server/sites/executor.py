"""Starts the runs: ``python -m dpfpl_server.sites.executor SERVER_FOLDER CONTROL_ADDRESS``.

Flower's own ``flower-superexec`` is started by the SuperLink, which does not notice its death: runs then stay
"pending" while everything looks well. This one is a process of its own that ``dpfpl-server start`` watches. It asks the
SuperLink for tasks and forks itself for each run, so a ServerApp has nothing to import, and the token that opens the
rest of the Runtime API travels by fork and stands in no command line.
"""

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()  # before Flower is imported, which reads its switch then

import contextlib  # noqa: E402  after the switch
import ctypes  # noqa: E402
import importlib  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from queue import Queue  # noqa: E402
from typing import NoReturn  # noqa: E402

import httpx  # noqa: E402
from flwr.proto.runtime_pb2 import AcquireTaskRequest  # noqa: E402
from flwr.supercore.constant import TaskType  # noqa: E402
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor  # noqa: E402
from flwr.supercore.logger import mirror_output_to_queue  # noqa: E402
from flwr.supercore.runtime import RuntimeHttpClient  # noqa: E402
from flwr.superlink.runtime import run_serverapp  # noqa: E402

from dpfpl_server.flower_patches import show_with_every_call  # noqa: E402
from dpfpl_server.sites.control_secret import ShownSecret, control_secret  # noqa: E402
from dpfpl_server.sites.life import life_of  # noqa: E402

__all__ = ["main"]

POLL_S = float(os.environ.get("DPFPL_TASK_POLL_S", "0.5"))
PATIENCE_S = 5.0
"""How long one question to the SuperLink may take; shorter than what counts as hanging."""
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> NoReturn:
    """Ask for runs until the process is stopped."""
    folder, address = Path(arguments[0]), arguments[1]
    authority = (folder / "ca.crt").read_bytes()
    importlib.import_module("dpfpl_server.federation.app")
    show_with_every_call(ShownSecret(control_secret(folder)))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    client: RuntimeHttpClient | None = None
    me, silent = os.getpid(), False
    with life_of("executor", folder, by_itself=False) as life:
        while True:
            life.beat()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            try:
                client = client or _client(address, authority)
                task = client.AcquireTask(request)
                silent = False
            except (httpx.HTTPError, ValueError) as error:
                if not silent:
                    print(
                        f"the SuperLink does not answer ({type(error).__name__}: {error})", file=sys.stderr, flush=True
                    )
                silent = True
                if client is not None:
                    client.close()
                client = None
                time.sleep(POLL_S)
                continue
            if not (task.HasField("task") and task.token):
                time.sleep(POLL_S)
            elif os.fork() == 0:
                life.let_go()
                _run(address, authority, task.token, me)


def _client(address: str, authority: bytes) -> RuntimeHttpClient:
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=False,
        root_certificates=authority,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
    )
    client._client.timeout = PATIENCE_S
    return client


def _run(address: str, authority: bytes, token: str, parent: int) -> NoReturn:
    """Run the ServerApp in this process, which ends with it, and with the executor."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 1
    try:
        log: Queue[str | None] = Queue()
        mirror_output_to_queue(log)
        run_serverapp(runtime_api_address=address, log_queue=log, token=token, insecure=False, certificates=authority)
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
