"""The agent's socket: who may call, what comes back, and what never does."""

import contextlib
import gzip
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time

import grpc
import numpy as np
import pytest
from wire_samples import CONTEXT, EXPERIMENT, Caller

from dpfpl_client.agent.endpoint import SocketFile, parse_address, private_host, read_token
from dpfpl_client.agent.service import AgentServer
from dpfpl_common.errors import ConfigError, DataError, DeploymentError, RefusedError, StateError
from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.codec import MAX_MESSAGE_BYTES
from dpfpl_common.wire.payloads import EvaluateRequest, SiteReply, TrainRequest

TRAIN = TrainRequest(EXPERIMENT, 3, CONTEXT)
EVALUATE = EvaluateRequest(EXPERIMENT, 10, CONTEXT)
SECRET = "patient_123.png"


class FakeAgent:
    def __init__(self, error=None, gate=None):
        self.error, self.gate = error, gate
        self.calls, self.inside, self.most_inside = 0, 0, 0
        self.entered = threading.Event()

    def train(self, request):
        self.calls += 1
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.entered.set()
        try:
            if self.gate is not None:
                assert self.gate.wait(20)
            if self.error is not None:
                raise self.error
            return SiteReply("north", request.round, request.global_context * 2, {"personal_local": 0.5})
        finally:
            self.inside -= 1

    def evaluate(self, request):
        return SiteReply("north", request.round, None, {"personal_local": 1.0})


@pytest.fixture
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("a", numbered=True)
    path.chmod(0o700)
    return path


@contextlib.contextmanager
def serving(agent, folder, address=None, **settings):
    server = AgentServer(
        agent, f"unix:{folder}/agent.sock" if address is None else address, folder / "agent.token", **settings
    )
    server.start()
    try:
        yield server
    finally:
        server.stop(grace_s=1.0)


def channel(server, folder, deadline_s=10.0, wait_s=5.0):
    return Caller(server.address, folder / "agent.token", deadline_s, wait_s=wait_s)


def raw_call(server, folder, method="/dpfpl.v1.SiteAgent/Train", data=b"", compression=None, token="Bearer {token}"):
    """The answer to bytes; ``token`` is how the caller shows the token, None for not at all."""
    token = None if token is None else token.format(token=read_token(folder / "agent.token"))
    metadata = () if token is None else (("authorization", token),)
    with grpc.insecure_channel(server.address, compression=compression) as connection:
        return connection.unary_unary(method)(data, metadata=metadata, timeout=5)


@pytest.mark.parametrize("address", [None, "127.0.0.1:0"])
def test_calls_reach_the_agent_and_come_back(folder, address):
    with serving(FakeAgent(), folder, address) as server, channel(server, folder) as agent:
        reply = agent.train(TRAIN)
        assert (reply.site, reply.round, reply.metrics) == ("north", 3, {"personal_local": 0.5})
        np.testing.assert_array_equal(reply.update, CONTEXT * 2)
        assert agent.evaluate(EVALUATE).update is None


def test_files_are_this_users_alone(folder):
    previous = os.umask(0)
    try:
        address = f"unix:{folder}/made/agent.sock"
        server = AgentServer(FakeAgent(), address, folder / "state" / "agent.token")
        server.start()
    finally:
        os.umask(previous)
    modes = {
        path: stat.S_IMODE((folder / path).stat().st_mode)
        for path in ("made", "made/agent.sock", "made/agent.sock.lock", "state", "state/agent.token")
    }
    server.stop(1.0)
    assert modes == {
        "made": 0o700,
        "made/agent.sock": 0o600,
        "made/agent.sock.lock": 0o600,
        "state": 0o700,
        "state/agent.token": 0o600,
    }
    assert not (folder / "made/agent.sock").exists()


def test_token_is_random_kept_and_refused_if_others_can_read_it(folder):
    path = folder / "agent.token"
    with serving(FakeAgent(), folder):
        token = read_token(path)
    with serving(FakeAgent(), folder):
        assert read_token(path) == token
    path.unlink()
    with serving(FakeAgent(), folder):
        assert read_token(path) not in (None, token)
    path.chmod(0o644)
    with pytest.raises(StateError, match="TOKEN_FILE"), serving(FakeAgent(), folder):
        pass
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(StateError, match="TOKEN_FILE"), serving(FakeAgent(), folder):
        pass


@pytest.mark.parametrize("token", [None, "", "Bearer", "Bearer wrong", "Basic {token}", "Bearer {token}x", "{token}"])
@pytest.mark.parametrize(
    "method", ["/dpfpl.v1.SiteAgent/Train", "/grpc.health.v1.Health/Check", "/dpfpl.v1.SiteAgent/Export"]
)
def test_without_the_token_nothing_is_answered(folder, token, method):
    agent = FakeAgent()
    with serving(agent, folder) as server, pytest.raises(grpc.RpcError) as caught:
        raw_call(server, folder, method, wire.encode_request(TRAIN).SerializeToString(), token=token)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert caught.value.details() == ""
    assert agent.calls == 0


def test_idle_callers_without_the_token_do_not_hold_up_the_others(folder):
    with serving(FakeAgent(), folder) as server, contextlib.ExitStack() as stack:
        stop, idle = threading.Event(), []
        for _ in range(20):
            connection = stack.enter_context(grpc.insecure_channel(server.address))
            idle.append(connection.stream_unary("/dpfpl.v1.SiteAgent/Train").future(_never(stop)))
        time.sleep(0.5)
        started = time.monotonic()
        with channel(server, folder) as agent:
            agent.train(TRAIN)
        stop.set()
        assert time.monotonic() - started < 3


def _never(stop):
    stop.wait(10)
    yield from ()


def test_channel_names_a_wrong_credential(folder):
    with serving(FakeAgent(), folder) as server:
        (folder / "other.token").write_text("x" * 43)
        with (
            Caller(server.address, folder / "other.token", 5.0) as agent,
            pytest.raises(RefusedError, match="AGENT_CREDENTIAL"),
        ):
            agent.train(TRAIN)


@pytest.mark.parametrize("method", ["Export", "Policy", "Ledger", "Stop"])
def test_there_are_no_other_methods(folder, method):
    with serving(FakeAgent(), folder) as server:
        for name in (f"/dpfpl.v1.SiteAgent/{method}", "/grpc.health.v1.Health/Watch"):
            with pytest.raises(grpc.RpcError) as caught:
                raw_call(server, folder, name)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_malformed_bytes_get_a_code_before_the_agent_is_asked(folder):
    agent = FakeAgent()
    with serving(agent, folder) as server:
        valid = wire.encode_request(TRAIN).SerializeToString()
        for data, code in (
            (b"\xff", "MALFORMED_MESSAGE"),
            (b"", "VERSION_MISMATCH"),
            (valid[:-3], "MALFORMED_MESSAGE"),
        ):
            reply = agent_pb2.Reply.FromString(raw_call(server, folder, data=data))
            assert reply.refusal.code == code
        with pytest.raises(grpc.RpcError) as caught:
            raw_call(server, folder, data=bytes(MAX_MESSAGE_BYTES + 1))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert agent.calls == 0


def test_compressed_messages_are_not_unfolded(folder):
    assert len(gzip.compress(bytes(1 << 20))) < 2000  # what a bomb would gain
    with serving(FakeAgent(), folder) as server, pytest.raises(grpc.RpcError) as caught:
        raw_call(server, folder, data=bytes(1 << 20), compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError(f"cannot open /data/{SECRET}"), "INTERNAL"),
        (KeyError(SECRET), "INTERNAL"),
        (MemoryError(SECRET), "INTERNAL"),
        (DataError(code="UNREADABLE_IMAGE", message=SECRET, advice=f"Delete {SECRET}."), "UNREADABLE_IMAGE"),
        (StateError(code="LEDGER_DAMAGED", message=f"/var/{SECRET}", advice=SECRET), "LEDGER_DAMAGED"),
        (ConfigError(code="FILE_MISSING", message=f"/etc/{SECRET} does not exist."), "FILE_MISSING"),
    ],
)
def test_text_of_errors_inside_never_crosses(folder, caplog, error, code):
    with serving(FakeAgent(error), folder) as server, caplog.at_level(logging.DEBUG):
        data = raw_call(server, folder, data=wire.encode_request(TRAIN).SerializeToString())
    refusal = agent_pb2.Reply.FromString(data).refusal
    assert refusal.code == code
    assert b"patient" not in data
    assert type(error).__name__.encode() not in data
    assert SECRET in caplog.text  # the site's own log has it
    if code == "INTERNAL":
        incident = refusal.message.split()[-1].rstrip(".")
        assert len(incident) == 16
        assert incident in caplog.text


def test_reply_that_does_not_answer_the_request_does_not_leave(folder):
    class Wrong(FakeAgent):
        def train(self, request):
            return SiteReply("north", request.round, np.zeros((5, 8), "<f4"), {})

    with (
        serving(Wrong(), folder) as server,
        channel(server, folder) as agent,
        pytest.raises(RefusedError, match="WRONG_SHAPE"),
    ):
        agent.train(TRAIN)


def test_one_computes_some_wait_the_others_are_refused(folder):
    gate = threading.Event()
    fake = FakeAgent(gate=gate)
    outcomes = []

    def call():
        with channel(server, folder) as agent:
            try:
                outcomes.append(agent.train(TRAIN).site)
            except RefusedError as error:
                outcomes.append(error.code)

    with serving(fake, folder) as server:
        callers = [threading.Thread(target=call) for _ in range(8)]
        for caller in callers:
            caller.start()
        deadline = time.monotonic() + 10
        while outcomes.count("BUSY") < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        gate.set()
        for caller in callers:
            caller.join()
    assert sorted(outcomes) == ["BUSY"] * 5 + ["north"] * 3
    assert fake.most_inside == 1


def test_caller_that_gave_up_while_waiting_is_not_served(folder):
    gate = threading.Event()
    fake = FakeAgent(gate=gate)
    with serving(fake, folder) as server:
        first = threading.Thread(target=lambda: channel(server, folder).train(TRAIN))
        first.start()
        assert fake.entered.wait(5)
        with channel(server, folder, deadline_s=0.5) as agent, pytest.raises(RefusedError, match="AGENT_DEADLINE"):
            agent.train(TRAIN)
        time.sleep(0.3)
        gate.set()
        first.join()
        with channel(server, folder) as agent:
            agent.train(TRAIN)
    assert fake.calls == 2


def test_deadline_ends_the_wait_and_frees_the_agent(folder):
    gate = threading.Event()
    fake = FakeAgent(gate=gate)
    with serving(fake, folder) as server:
        started = time.monotonic()
        with channel(server, folder, deadline_s=0.5) as agent, pytest.raises(RefusedError, match="AGENT_DEADLINE"):
            agent.train(TRAIN)
        assert time.monotonic() - started < 3
        gate.set()
        with channel(server, folder) as agent:
            assert agent.train(TRAIN).site == "north"


def test_agent_that_never_comes_is_named_within_the_bound(folder):
    started = time.monotonic()
    with (
        Caller(f"unix:{folder}/agent.sock", folder / "agent.token", 30.0, wait_s=0.5) as agent,
        pytest.raises(RefusedError, match="AGENT_UNAVAILABLE"),
    ):
        agent.train(TRAIN)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_agent_that_starts_later_than_its_caller_is_found(folder, kind):
    address = f"unix:{folder}/agent.sock"
    if kind == "tcp":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
    server = AgentServer(FakeAgent(), address, folder / "agent.token")
    starter = threading.Timer(0.7, server.start)
    starter.start()
    with Caller(address, folder / "agent.token", 20.0) as agent:
        assert agent.train(TRAIN).site == "north"
    starter.join()
    server.stop(1.0)


def test_call_survives_a_restart_of_the_agent(folder):
    address, token = f"unix:{folder}/agent.sock", folder / "agent.token"
    answers = []
    gate = threading.Event()
    fake = FakeAgent(gate=gate)
    first = AgentServer(fake, address, token)
    first.start()
    caller = threading.Thread(target=lambda: answers.append(Caller(address, token, 20.0).train(TRAIN)))
    caller.start()
    assert fake.entered.wait(5)
    first._server.stop(0).wait()  # as if killed: the call breaks off
    gate.set()
    first.stop(0)
    second = AgentServer(FakeAgent(), address, token)
    second.start()
    caller.join(15)
    second.stop(1.0)
    assert [answer.site for answer in answers] == ["north"]


def test_callers_of_an_agent_that_stops_wait_for_the_next_one(folder):
    with serving(FakeAgent(), folder) as server, channel(server, folder) as agent:
        server._stopping = True
        assert not agent.is_serving()
        with pytest.raises(grpc.RpcError) as caught:
            raw_call(server, folder)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with channel(server, folder, deadline_s=0.5) as hasty, pytest.raises(RefusedError, match="AGENT_UNAVAILABLE"):
            hasty.train(TRAIN)
        threading.Timer(0.5, setattr, [server, "_stopping", False]).start()
        assert agent.train(TRAIN).site == "north"
        assert agent.is_serving()


def test_socket_of_a_live_agent_is_not_taken(folder):
    with serving(FakeAgent(), folder) as server:
        with pytest.raises(StateError, match="AGENT_ALREADY_RUNNING"), serving(FakeAgent(), folder):
            pass
        with channel(server, folder) as agent:
            assert agent.train(TRAIN).site == "north"


def test_path_belongs_to_one_agent_even_before_it_listens(folder):
    first = SocketFile(folder / "agent.sock")
    first.claim()
    with pytest.raises(StateError, match="AGENT_ALREADY_RUNNING"):
        SocketFile(folder / "agent.sock").claim()
    first.release()
    SocketFile(folder / "agent.sock").claim()


def test_socket_of_a_live_stranger_is_not_taken(folder):
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(folder / "agent.sock"))
        stranger.listen()
        with pytest.raises(StateError, match="AGENT_ALREADY_RUNNING"), serving(FakeAgent(), folder):
            pass


def test_socket_of_a_dead_agent_is_removed(folder):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "agent.sock"))
    with serving(FakeAgent(), folder) as server, channel(server, folder) as agent:
        assert agent.train(TRAIN).site == "north"


def test_other_files_and_open_folders_are_left_alone(folder):
    (folder / "agent.sock").write_text("precious")
    with pytest.raises(StateError, match="SOCKET_PATH_OCCUPIED"), serving(FakeAgent(), folder):
        pass
    assert (folder / "agent.sock").read_text() == "precious"
    open_folder = folder / "open"
    open_folder.mkdir()
    open_folder.chmod(0o755)
    with pytest.raises(StateError, match="SOCKET_FOLDER"), serving(FakeAgent(), folder, f"unix:{open_folder}/s"):
        pass
    assert stat.S_IMODE(open_folder.stat().st_mode) == 0o755


def test_port_in_use_is_named(folder):
    with (
        serving(FakeAgent(), folder, "127.0.0.1:0") as server,
        pytest.raises(DeploymentError, match="ADDRESS_TAKEN"),
        serving(FakeAgent(), folder, server.address),
    ):
        pass


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0:9000", "[::]:9000", "0:9000", "8.8.8.8:9000", "[::ffff:8.8.8.8]:9000", "[2a00::1]:9000", "224.0.0.1:1"],
)
def test_addresses_that_strangers_reach_are_refused(folder, text):
    with pytest.raises(ConfigError, match="PUBLIC_ADDRESS"), serving(FakeAgent(), folder, text):
        pass


@pytest.mark.parametrize("text", ["127.0.0.1:9000", "localhost:9000", "[::1]:9000", "10.1.2.3:1", "192.168.0.9:1"])
def test_private_addresses_are_accepted(text):
    private_host(parse_address(text))


@pytest.mark.parametrize(
    "text", ["", "9000", ":9000", "host:", "host:99999", "host:-1", "unix:relative", "unix:", "::1:9000",
             "unix:/" + "x" * 200, "unix-abstract:a:1", "http://host:1", "*:9000", "no.such.host.invalid:1"]
)  # fmt: skip
def test_other_addresses_are_errors(folder, text):
    with pytest.raises(ConfigError, match="BAD_ADDRESS"), serving(FakeAgent(), folder, text):
        pass


PROGRAM = """
    import sys, time
    from pathlib import Path
    from dpfpl_client.agent.service import serve
    class Agent:
        def train(self, request):
            print("computing", flush=True)
            time.sleep(60)
    folder = Path(sys.argv[1])
    serve(Agent(), f"unix:{folder}/agent.sock", folder / "agent.token", grace_s=0.5,
          on_ready=lambda address: print("ready", flush=True))
    print("ended", flush=True)
"""


@pytest.mark.parametrize("computing", [False, True])
def test_sigterm_stops_it_even_while_it_computes(folder, computing):
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        caller = threading.Thread(target=_call_quietly, args=(folder,))
        if computing:
            caller.start()
            assert process.stdout.readline() == "computing\n"
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(8) == 0
        assert time.monotonic() - started < 5
        if computing:
            caller.join()
        else:
            assert process.stdout.read() == "ended\n"
    assert not (folder / "agent.sock").exists()


def _call_quietly(folder):
    with contextlib.suppress(RefusedError):
        Caller(f"unix:{folder}/agent.sock", folder / "agent.token", 2.0, wait_s=1.0).train(TRAIN)
