"""How many sites one server bears: keys at a real SuperLink, calls a second, and a run's folder after many runs."""

import os
import statistics
import threading
import time
import tracemalloc
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.app import Message
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from wire_samples import reply_content

from dpfpl_bench.simulation.in_process import InProcessGrid, site_names
from dpfpl_client.node.fleet_probe import load_node_key
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.ops.processes import ProcessGroup, free_ports
from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.codec import read_request
from dpfpl_common.wire.payloads import EvaluateRequest, SiteReply, TrainRequest
from dpfpl_server.federation.rounds import DPFPLStrategy
from dpfpl_server.sites.admin import add_sites, list_sites
from dpfpl_server.sites.provision import ProvisionRequest, provision
from dpfpl_server.sites.register import load_sites
from dpfpl_server.sites.superlink import SuperLinkSettings, start_superlink

WIDTH = 512
"""Of CLIP ViT-B/16's text tower."""


class StandIns(InProcessGrid):
    """Sites that answer at once, so that only the server's own work is measured.

    A real site reads the experiment, with every site's name in it, for itself; here one reads it for all.
    """

    def __init__(self, names: tuple[str, ...], update: np.ndarray) -> None:
        super().__init__(dict.fromkeys(names))  # type: ignore[arg-type]
        self._update = update
        self._read: dict[tuple[str, str], TrainRequest | EvaluateRequest] = {}

    def _answer(self, message: Message) -> Message:
        kind, group = message.metadata.message_type, message.metadata.group_id
        if (kind, group) not in self._read:
            data = read_request(message.content).message
            message_kind = agent_pb2.TrainRequest if kind == "train" else agent_pb2.EvaluateRequest
            self._read[kind, group] = wire.decode_request(wire.parse(message_kind, data))
        request = self._read[kind, group]
        update = self._update if kind == "train" else None
        reply = SiteReply(self._names[message.metadata.dst_node_id], request.round, update, {"personal_local": 0.5})
        return Message(reply_content(reply, request), reply_to=message)


def server_side(count: int) -> tuple[float, float, int, int]:
    """Seconds a round, peak MiB that the rounds allocated, and bytes up and down of one round."""
    names = tuple(site_names(count))
    experiment = Experiment(
        name="scale",
        classes=("cat", "dog"),
        sites=names,
        model=ModelSettings(width=WIDTH),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0, clipping_norm=1.0),
        rounds=RoundSettings(number=1),
    )
    update = np.full(experiment.context_shape, 2.0**-12, "<f4")
    grid = StandIns(names, update)
    strategy = DPFPLStrategy(experiment, grid.nodes, keys=None)
    tracemalloc.start()
    strategy.run(grid)
    peak = tracemalloc.get_traced_memory()[1] / (1 << 20)
    tracemalloc.stop()
    assert np.abs(strategy.checkpoint.global_context).max() > 0
    last = strategy.checkpoint.history[-1]
    assert len(last["sites"]) == count
    return last["seconds"], peak, last["bytes_up"], last["bytes_down"]


@pytest.mark.slow
def test_R3_a_round_of_a_thousand_sites_costs_the_server_little_and_no_memory_for_updates() -> None:
    found = {count: server_side(count) for count in (10, 100, 1000)}
    for count, (seconds, peak, up, down) in found.items():
        print(
            f"R3 server alone: {count} sites: {seconds:.2f} s a round, peak {peak:.1f} MiB, up {up}, down {down} bytes"
        )
    update_mib = 4 * WIDTH * 4 / (1 << 20)  # [num_context, width], float32
    assert found[1000][0] < 30.0, "docs/results/scale.md says 5.4 s, on two cores"
    # Names, numbers and messages in flight grow with the sites; their updates do not.
    assert found[1000][1] - found[100][1] < 900 * update_mib
    assert found[1000][2] / found[10][2] == pytest.approx(100, rel=0.05)


def memory_mib(pid: int) -> float:
    """Resident memory of a process and its children."""
    from dpfpl_common.ops.guard import descendants

    total = 0
    for one in [pid, *descendants(pid)]:
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total / (1 << 20)


@pytest.mark.processes
@pytest.mark.long
def test_R3_a_thousand_keys_at_a_real_superlink(tmp_path: Path) -> None:
    fleet, control = free_ports(2)
    server, kits = tmp_path / "server", tmp_path / "kits"
    provision(ProvisionRequest(server, kits, ("site-0000",), port=fleet))
    with ProcessGroup() as group:
        process = start_superlink(SuperLinkSettings(server, f"127.0.0.1:{fleet}", control), group)
        for count in (10, 100, 1000):
            names = tuple(f"site-{number:04d}" for number in range(count))
            started = time.monotonic()
            _, live = add_sites(server, names, kits)
            added = time.monotonic() - started
            assert live
            assert len(load_sites(server)) == count
            started = time.monotonic()
            rows = list_sites(server)
            listed = time.monotonic() - started
            assert len(rows) == count
            load = polling(server, kits, names, fleet, seconds=10.0)
            print(
                f"R3: {count} sites: added in {added:.1f} s, listed in {listed:.2f} s, "
                f"SuperLink {memory_mib(process.pid):.0f} MiB; "
                f"{load['calls_per_s']:.0f} polls/s, median {load['median_ms']:.0f} ms, p95 {load['p95_ms']:.0f} ms, "
                f"errors {load['errors']:.0f}"
            )
            assert load["errors"] == 0


def polling(server: Path, kits: Path, names: tuple[str, ...], port: int, seconds: float) -> dict[str, float]:
    """Polls of all sites as fast as the server answers, eight at a time."""
    sites = load_sites(server)
    credentials = grpc.ssl_channel_credentials((server / "ca.crt").read_bytes())
    base = grpc.secure_channel(f"127.0.0.1:{port}", credentials)
    stubs = []
    for name in names:
        key = load_node_key(kits / name / "node.key")
        stub = FleetStub(grpc.intercept_channel(base, NodeAuthClientInterceptor(key, key.public_key())))
        node = Node(node_id=sites[name].node_id)
        public = public_key_to_bytes(load_ssh_public_key(sites[name].public_key.encode()))
        stubs.append((stub, node, public))
    with futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda entry: activated(*entry), stubs))
    times: list[float] = []
    errors = 0
    end = time.monotonic() + seconds
    turn = iter(range(10**9))
    lock = threading.Lock()

    def work() -> None:
        nonlocal errors
        while time.monotonic() < end:
            with lock:
                stub, node, _ = stubs[next(turn) % len(stubs)]
            began = time.monotonic()
            try:
                stub.PullMessages(PullMessagesRequest(node=node), timeout=30)
            except grpc.RpcError:
                errors += 1
            times.append(time.monotonic() - began)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    base.close()
    ordered = sorted(times)
    return {
        "calls_per_s": len(times) / seconds,
        "median_ms": 1000 * statistics.median(ordered),
        "p95_ms": 1000 * ordered[int(0.95 * len(ordered))],
        "errors": errors,
    }


def activated(stub: FleetStub, _node: Node, public: bytes) -> None:
    try:
        stub.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=600.0), timeout=30)
    except grpc.RpcError as error:
        if "2004" not in str(error.details()):  # online from the smaller count before
            raise
