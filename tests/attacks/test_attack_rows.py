"""Attacks on privacy through an agent's socket: replay, fresh noise, other methods, the personal prompt."""

import re
import socket
import stat
import struct
from pathlib import Path

import grpc
import numpy as np
import pytest
from killable import Driver, Site, make_experiment, train_request
from wire_samples import Caller

from dpfpl_client.agent.endpoint import read_token
from dpfpl_client.agent.service import AgentServer
from dpfpl_common.errors import ConfigError, RefusedError
from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.payloads import EvaluateRequest

pytestmark = [pytest.mark.processes, pytest.mark.privacy]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    made = Driver(tmp_path_factory.mktemp("driver"))
    yield made
    made.close()


@pytest.fixture
def site(driver):
    return Site(driver, driver.folder())


def code(call, *arguments):
    with pytest.raises(RefusedError) as caught:
        call(*arguments)
    return caught.value.code


def test_A1_A2_replays_and_the_smallest_change_of_the_prompt_get_no_fresh_noise_over_connections_and_restarts(site):
    ulp, updates = float(np.nextafter(np.float32(0), np.float32(1))), set()
    for _ in range(4):
        with site.agent():
            updates |= {site.train(train_request(1)).update.tobytes() for _ in range(25)}
            assert {code(site.train, train_request(1, value=k * ulp)) for k in (-1, 1, 2)} == {
                "KEY_REUSED_OTHER_DIGEST"
            }
            assert code(site.train, train_request(1, evaluate=True)) == "KEY_REUSED_OTHER_DIGEST"
    assert len(updates) == 1
    assert len(site.charges) == 1


METHODS = (
    "/dpfpl.v1.SiteAgent/Export", "/dpfpl.v1.SiteAgent/Approve", "/dpfpl.v1.SiteAgent/Policy",
    "/dpfpl.v1.SiteAgent/Ledger", "/dpfpl.v1.SiteAgent/Stop", "/dpfpl.v1.Admin/Approve", "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.channelz.v1.Channelz/GetServers",
)  # fmt: skip


def test_A6_the_socket_answers_three_methods_and_the_health_check_and_there_is_no_other_socket(site):
    with site.agent() as pid:
        header = (("authorization", f"Bearer {read_token(site.state / 'agent.token')}"),)
        with grpc.insecure_channel(f"unix:{site.state}/agent.sock") as channel:
            for method in METHODS:
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary(method)(b"", metadata=header, timeout=5)
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, method
        service = agent_pb2.DESCRIPTOR.services_by_name["SiteAgent"]
        assert sorted(service.methods_by_name) == ["AddUp", "Evaluate", "Train"]
        assert listening(pid) == {f"{site.state}/agent.sock"}


def listening(pid):
    """What a process listens at: paths of unix sockets, ports of others."""
    inodes = {
        match[1] for fd in Path(f"/proc/{pid}/fd").iterdir() if (match := re.match(r"socket:\[(\d+)\]", link(fd)))
    }
    found = set()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        parts = line.split()
        if parts[6] in inodes and int(parts[3], 16) & 0x10000 and len(parts) > 7:  # accepts connections
            found.add(parts[7])
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[9] in inodes and parts[3] in ("0A", "07"):
                found.add(f"{table} {parts[1]}")
    return found


def link(path):
    try:
        return str(path.readlink())
    except OSError:
        return ""


def test_A11_the_personal_prompt_never_leaves_the_agent(site, driver):
    shim, of = driver.shim, make_experiment(noise_multiplier=4.0)
    if shim:
        shim.set(record=True)
    replies = []
    with site.agent():
        replies += [site.train(train_request(number, of, evaluate=True)) for number in (1, 2, 2, 3)]
        with Caller(f"unix:{site.state}/agent.sock", site.state / "agent.token", 30.0) as agent:
            last = EvaluateRequest(of, 3, np.full(of.context_shape, 1e-3, "<f4"))
            replies.append(agent.evaluate(last))
            assert agent.is_serving()
        with pytest.raises(RefusedError):
            site.train(train_request(1, make_experiment("pilot", 4)))
    secrets = [site.store.read("pilot", number).state for number in (1, 2, 3)]
    marks = {mark for state in secrets for array in (state.context, state.optimizer.first) for mark in marks_of(array)}
    assert len(marks) > 1000
    sent = [operation.one for operation in shim.operations() if operation.kind == "X"] if shim else []
    messages = [wire.encode_request(train_request(1, of)).SerializeToString()]
    messages += [struct.pack("<I", 0), *(reply.update.tobytes() for reply in replies if reply.update is not None)]
    messages += [repr(reply).encode() for reply in replies]
    if shim:
        shim.set()
        assert any(reply.update is not None and reply.update.tobytes() in data for reply in replies for data in sent)
    for data in [*sent, *messages]:
        assert not holds(data, marks)
    kept = [path for path in (*site.state.rglob("*"), *driver.root.rglob("*")) if path.is_file()]
    holders = {path.name for path in kept if holds(path.read_bytes(), marks)}
    assert holders == {
        "round-00001.safetensors",
        "round-00002.safetensors",
        "round-00003.safetensors",
    }  # it is found there
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept if path.name in holders)


def marks_of(array):
    """Twelve-byte windows of an array as float64 and as float32: chance does not make two alike."""
    for kind in ("<f8", "<f4"):
        flat = np.ascontiguousarray(array, kind).ravel()
        data = flat[np.nonzero(flat)].tobytes()
        yield from (data[at : at + 12] for at in range(0, len(data) - 12, 4))


def holds(data, marks):
    return any(data[at : at + 12] in marks for at in range(len(data) - 11))


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "8.8.8.8:1"])
def test_A12_an_address_that_strangers_reach_is_refused(tmp_path, address):
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigError, match="PUBLIC_ADDRESS"):
        AgentServer(None, address, tmp_path / "agent.token").start()


def test_A12_without_the_token_the_socket_says_nothing_and_other_users_do_not_reach_it(site):
    with site.agent():
        path = site.state / "agent.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(site.state.stat().st_mode) == 0o700
        with grpc.insecure_channel(f"unix:{path}") as channel:
            for header in ((), (("authorization", "Bearer " + "x" * 43),)):
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary("/dpfpl.v1.SiteAgent/Train")(b"", metadata=header, timeout=5)
                assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAUTHENTICATED, "")
        with socket.socket(socket.AF_UNIX) as raw:  # something else than HTTP/2 is not answered either
            raw.settimeout(5)
            raw.connect(str(path))
            raw.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b"dpfpl" not in raw.recv(4096)
    assert site.charges == []
