"""Doors of the operator's machine (DR1 to DR4): what strangers at the sites' port, other local users and kills get."""

import contextlib
import hashlib
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from federations import Server
from flwr.cli.build import build_fab_from_files
from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient

from dpfpl_client.node.fleet_probe import load_node_key
from dpfpl_common.ops.guard import descendants
from dpfpl_common.ops.heartbeat import life_sign
from dpfpl_common.ops.processes import ProcessGroup, wait_until
from dpfpl_server.sites.control import Control, bundle_files
from dpfpl_server.sites.control_secret import ShownSecret, control_secret, make_control_secret
from dpfpl_server.sites.superlink import SuperLinkSettings, launch_superlink, open_control, start_superlink

pytestmark = [pytest.mark.processes, pytest.mark.slow]

FIFTY_MB = 50_000_000
SITES = ("north", "south", "east")


class WatchedServer(Server):
    """Without any site that runs."""

    def stub(self, key: ec.EllipticCurvePrivateKey | None) -> tuple[grpc.Channel, Any]:
        """The Fleet API as a caller with this key sees it; None signs nothing."""
        credentials = grpc.ssl_channel_credentials((self.folder / "ca.crt").read_bytes())
        options = [("grpc.max_send_message_length", -1)]
        channel = grpc.secure_channel(f"127.0.0.1:{self.fleet}", credentials, options=options)
        caller = grpc.intercept_channel(channel, NodeAuthClientInterceptor(key, key.public_key())) if key else channel
        return channel, FleetStub(caller)

    def call(self, key: ec.EllipticCurvePrivateKey | None, method: str, request: Any) -> grpc.StatusCode:
        """How the server ends a call; OK if it serves it."""
        channel, stub = self.stub(key)
        with channel:
            try:
                getattr(stub, method)(request, timeout=60)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    def status(self, site: str) -> str:
        with open_control(self.folder) as control:
            return next(node.status for node in control.nodes() if node.name == site)

    def pids(self) -> list[int]:
        return [pid for process in self.group.processes for pid in descendants(process.pid)]

    def memory(self) -> dict[int, int]:
        """Resident kilobytes of each of the server's processes; from now on peaks are counted anew."""
        pids = self.pids()
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        return {pid: _kilobytes(pid, "VmRSS") for pid in pids}

    def grown_mb(self, before: dict[int, int]) -> float:
        """By how many megabytes the process that grew most did, at its peak since then."""
        grown = {pid: (_kilobytes(pid, "VmHWM") - was) / 1024 for pid, was in before.items()}
        return max(grown.values())

    def settle(self) -> None:
        """Wait until nothing grows any more by itself: programs are still being loaded when a server answers."""
        executor = self.folder / "life" / "executor"
        wait_until(lambda: life_sign(executor).alive, timeout_s=60, what="the executor")
        for _ in range(3):
            self.call(None, "ActivateNode", ActivateNodeRequest())
        before = self.memory()
        for _ in range(60):
            time.sleep(1.0)
            if self.grown_mb(before) < 0.5:
                return
            before = self.memory()

    def log_bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.folder / "logs").iterdir())


def _kilobytes(pid: int, what: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedServer]:
    made = WatchedServer(tmp_path_factory.mktemp("doors"), SITES)
    with made.group:
        made.start_server()
        made.settle()
        yield made


CALLS = {
    "ActivateNode": lambda: ActivateNodeRequest(public_key=b"k" * FIFTY_MB, heartbeat_interval=30.0),
    "RegisterNode": lambda: RegisterNodeFleetRequest(public_key=b"k" * FIFTY_MB),
    "PullMessages": lambda: PullMessagesRequest(node=Node(node_id=1), message_ids=["m" * FIFTY_MB]),
}
"""Made when they are needed."""


def answer_to_fifty_megabytes(
    server: WatchedServer, key: ec.EllipticCurvePrivateKey | None, method: str
) -> grpc.StatusCode:
    """How a call with so much ends; neither memory nor log take it in."""
    request = CALLS[method]()
    server.call(None, "ActivateNode", ActivateNodeRequest())  # what a first call loads does not count
    memory, log = server.memory(), server.log_bytes()
    answer = server.call(key, method, request)
    time.sleep(0.5)
    grown, logged = server.grown_mb(memory), server.log_bytes() - log
    print(f"DR1 {method}: {answer.name}, {grown:.1f} MB more at the peak, {logged} bytes of log")
    assert grown < 20
    assert logged < 10_000
    return answer


@pytest.mark.parametrize("kind", [*(f"unregistered key, {method}" for method in CALLS), "no key, ActivateNode"])
def test_DR1_fifty_megabytes_of_a_stranger_fill_neither_memory_nor_log(server: WatchedServer, kind: str) -> None:
    key = ec.generate_private_key(ec.SECP384R1()) if kind.startswith("unregistered") else None
    method = kind.split(", ")[1]
    answer = answer_to_fifty_megabytes(server, key, method)
    assert answer in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION)


def test_DR1_a_registered_site_sends_eight_mebibytes_at_most(server: WatchedServer) -> None:
    key = load_node_key(server.kits["north"] / "node.key")
    answer = answer_to_fifty_megabytes(server, key, "PullMessages")
    assert answer == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_DR1_a_key_that_is_none_is_refused_in_few_words(server: WatchedServer) -> None:
    log = server.log_bytes()
    channel, stub = server.stub(None)
    with channel:
        for name, value in (("flwr-public-key-bin", b"garbage" * 100), ("flwr-signature-bin", b"")):
            metadata = (
                (name, value),
                ("flwr-timestamp", "not a time"),
                ("flwr-signature-bin" if "public" in name else "flwr-public-key-bin", b"x"),
            )
            with pytest.raises(grpc.RpcError) as caught:
                stub.PullMessages(PullMessagesRequest(node=Node(node_id=1)), timeout=10, metadata=metadata)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED, caught.value.details()
    time.sleep(0.3)
    assert server.log_bytes() - log < 2_000


def test_DR4_a_stranger_cannot_take_an_offline_sites_place(server: WatchedServer) -> None:
    real = load_node_key(server.kits["south"] / "node.key")
    request = ActivateNodeRequest(public_key=public_key_to_bytes(real.public_key()), heartbeat_interval=30.0)
    stranger = server.call(ec.generate_private_key(ec.SECP384R1()), "ActivateNode", request)
    neighbour = server.call(load_node_key(server.kits["north"] / "node.key"), "ActivateNode", request)
    nobody = server.call(None, "ActivateNode", request)
    before = server.status("south")
    began = time.monotonic()
    itself = server.call(real, "ActivateNode", request)
    took = time.monotonic() - began
    print(
        f"DR4: stranger {stranger.name}, neighbour {neighbour.name}, no key {nobody.name}, status {before}; "
        f"the site itself {itself.name} after {took:.2f} s"
    )
    refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION)
    assert stranger in refused
    assert neighbour in refused
    assert nobody in refused
    assert before == "registered"
    assert itself == grpc.StatusCode.OK
    assert server.status("south") == "online"


def runs_of(control: Control) -> int:
    return len(control._call(control._client.ListRuns, ListRunsRequest()).run_dict)


def test_DR3_another_user_of_the_machine_starts_nothing_and_takes_no_task(server: WatchedServer) -> None:
    """He reaches loopback and may know the authority's certificate, which every site has; nothing else."""
    address, authority = f"127.0.0.1:{server.control}", (server.folder / "ca.crt").read_bytes()
    with open_control(server.folder) as control:
        before = runs_of(control)
    interceptors = [CliClientHttpInterceptor(), RuntimeVersionHttpInterceptor(component_name="flwr CLI")]
    content, _ = build_fab_from_files(bundle_files())
    run = StartRunRequest(fab=fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {})))
    answers = {}
    for kind, client_class, method, request in (
        ("StartRun", ControlHttpClient, "StartRun", run),
        (
            "AcquireTask",
            RuntimeHttpClient,
            "AcquireTask",
            AcquireTaskRequest(supported_task_types=["flwr-serverapp"]),
        ),
    ):
        client = client_class.from_server_address(
            server_address=address, insecure=False, root_certificates=authority, interceptors=interceptors
        )
        try:
            getattr(client, method)(request)
            answers[kind] = 200
        except httpx.HTTPStatusError as error:
            answers[kind] = error.response.status_code
        finally:
            client.close()
    with httpx.Client(verify=False) as client:
        for path in ("/", "/docs", "/openapi.json", "/health", "/v1/control/list-nodes"):
            answers[path] = client.get(f"https://{address}{path}").status_code
        memory = server.memory()
        try:
            headers = {"content-type": "application/protobuf"}
            place = f"https://{address}/v1/control/start-run"
            answers["50 MB"] = client.post(place, content=b"x" * FIFTY_MB, headers=headers).status_code
        except httpx.TransportError:  # it hung up while we were still sending
            answers["50 MB"] = 401
        grown = server.grown_mb(memory)
    with open_control(server.folder) as control:
        after = runs_of(control)
    positive = ControlHttpClient.from_server_address(
        server_address=address,
        insecure=False,
        root_certificates=authority,
        interceptors=[*interceptors, ShownSecret(control_secret(server.folder))],
    )
    run_id = positive.StartRun(run).run_id  # the same request with the secret: it is the secret that is missing
    positive.StopRun(StopRunRequest(run_id=run_id))
    positive.close()
    print(f"DR3: {answers}, {after - before} runs more, {grown:.1f} MB more")
    assert set(answers.values()) == {401}
    assert after == before
    assert grown < 20


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_DR3_another_user_reads_no_key_and_no_secret(server: WatchedServer) -> None:
    for folder in (server.root, *server.root.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o011)
    assert server.folder.stat().st_mode & 0o077 == 0
    os.chmod(server.folder, 0o755)  # even where somebody opened the folder
    command = ["find", str(server.folder), "-type", "f", "-readable"]
    done = subprocess.run(command, user=65534, group=65534, extra_groups=[], capture_output=True, text=True)
    readable = {Path(line).name for line in done.stdout.splitlines()}
    print(f"DR3: another user reads {sorted(readable)}")
    assert readable <= {"ca.crt", "server.crt", "sites.json", "federation.json"}, "names and public keys at most"


def test_DR2_a_first_start_that_is_killed_is_begun_anew(tmp_path: Path) -> None:
    """Flower makes its tables one after another; half of them were "table task already exists" for ever."""
    server = Server(tmp_path, SITES)
    settings = SuperLinkSettings(server.folder, f"127.0.0.1:{server.fleet}", server.control)
    settings.flower_home.mkdir(mode=0o700)
    make_control_secret(settings.server_folder)
    database = settings.flower_home / "superlink.db"
    with ProcessGroup() as group:
        started = launch_superlink(settings, group)
        wait_until(lambda: "task" in tables(database), timeout_s=60, what="half of the tables", interval_s=0.001)
        for pid in descendants(started.pid):
            os.kill(pid, signal.SIGKILL)
        os.kill(started.pid, signal.SIGKILL)
    assert "connector" not in tables(database), "it was killed too late for this test"
    with ProcessGroup() as group:
        start_superlink(settings, group)
        with open_control(settings.server_folder) as opened:
            assert {node.name for node in opened.nodes()} == set(SITES)


def tables(database: Path) -> set[str]:
    """Those that another program has made so far."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
            return {str(row[0]) for row in opened.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error:
        return set()
