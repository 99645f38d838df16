"""Releases of unequal age meet: named at once where they cannot understand each other, and nothing is paid twice."""

from importlib import metadata

import grpc
import numpy as np
import pytest
from wire_samples import Caller

import dpfpl_common
from dpfpl_client.agent.build import build_agent
from dpfpl_client.agent.endpoint import read_token
from dpfpl_client.agent.ledger.view import summarise
from dpfpl_client.agent.service import AgentServer
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.node.flower_patches import failure_reason
from dpfpl_client.node.supernode import SuperNodeSettings, start_supernode
from dpfpl_client.site.settings import load_site
from dpfpl_common import PROTOCOL_VERSION
from dpfpl_common.errors import DeploymentError, PayloadError, RefusedError
from dpfpl_common.ops import diagnostics as surroundings_module
from dpfpl_common.ops.files import prune_apps
from dpfpl_common.ops.processes import ProcessGroup
from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.payloads import SiteReply, TrainRequest
from dpfpl_server.federation.messages import request_content
from dpfpl_server.sites.provision import ProvisionRequest, provision
from dpfpl_server.sites.superlink import SuperLinkSettings, start_superlink


class Agent:
    calls = 0

    def train(self, request):
        self.calls += 1
        return SiteReply("north", request.round, np.zeros_like(request.global_context), {})

    evaluate = train


@pytest.fixture
def request_of(trained_site):
    experiment = DiskStore(load_site(trained_site).state_folder).experiment("pilot")
    return TrainRequest(experiment, 1, np.zeros(experiment.context_shape, "<f4"), evaluate=False)


@pytest.fixture
def served(tmp_path_factory):
    place = tmp_path_factory.mktemp("s")
    agent = Agent()
    server = AgentServer(agent, f"unix:{place}/a.sock", place / "token")
    server.start()
    yield agent, server.address, place / "token"
    server.stop(0.1)


@pytest.mark.parametrize("change", [-1, 1])
def test_O4_an_agent_and_a_clientapp_of_other_protocols_say_so(served, request_of, change):
    agent, address, token = served
    message = wire.encode_request(request_of)
    message.protocol_version = PROTOCOL_VERSION + change
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/dpfpl.v1.SiteAgent/Train", response_deserializer=agent_pb2.Reply.FromString)
        header = (("authorization", f"Bearer {read_token(token)}"),)
        reply = call(message.SerializeToString(), metadata=header, timeout=10)
    assert reply.refusal.code == "VERSION_MISMATCH"
    assert str(PROTOCOL_VERSION) in reply.refusal.message + reply.refusal.advice
    assert "same release" in reply.refusal.advice
    assert agent.calls == 0


@pytest.mark.parametrize("change", [-1, 1])
def test_O4_a_newer_agents_reply_is_named_too(served, request_of, monkeypatch, change):
    _, address, token = served
    with Caller(address, token, 10.0) as channel:
        real = wire.encode_reply

        def other(reply, request):
            message = real(reply, request)
            message.protocol_version = PROTOCOL_VERSION + change
            return message

        monkeypatch.setattr(wire, "encode_reply", other)
        with pytest.raises(PayloadError) as caught:
            channel.train(request_of)
    assert caught.value.code == "VERSION_MISMATCH"


def test_O4_the_server_and_the_clientapp_negotiate_by_the_same_number(request_of, monkeypatch):
    content = request_content(request_of)
    for record in content.values():
        record["protocol_version"] = PROTOCOL_VERSION + 1
    with pytest.raises(PayloadError) as caught:
        wire.read_request(content)
    assert (caught.value.code, f"expected {PROTOCOL_VERSION}" in caught.value.message) == ("VERSION_MISMATCH", True)


def test_O4_a_compatible_minor_release_works(served, request_of, monkeypatch):
    """Releases count by protocol alone: another version of the package with the same protocol is no mismatch."""
    _, address, token = served
    monkeypatch.setattr(dpfpl_common, "__version__", "0.99.7")
    with Caller(address, token, 10.0) as channel:
        assert channel.train(request_of).round == 1


@pytest.mark.privacy
def test_O6_after_both_ends_are_upgraded_a_stored_release_is_served_for_nothing(trained_site, request_of, monkeypatch):
    settings = load_site(trained_site)
    before = summarise(settings)
    monkeypatch.setattr(wire, "PROTOCOL_VERSION", PROTOCOL_VERSION + 1)
    monkeypatch.setattr(dpfpl_common, "__version__", "9.0.0")
    stored = DiskStore(settings.state_folder).read("pilot", 1)
    built = build_agent(settings)
    again = built.agent.train(request_of)
    built.lock.release()
    assert again.update.tobytes() == stored.reply.update.tobytes()
    after = summarise(settings)
    assert after["experiments"][0]["charges"] == before["experiments"][0]["charges"] == 2  # the round, the scores
    assert after["spent_epsilon"] == before["spent_epsilon"]


def test_O5_a_server_of_the_next_line_of_flower_is_named():
    """From 1.40 the Fleet API is HTTP: what gRPC said to such a SuperLink, measured with 1.40.0."""
    said = "failed to connect to all addresses; last error: UNKNOWN: Cannot check peer: missing selected ALPN property."
    reason, fatal = failure_reason(said)
    assert (reason.split(":")[0], fatal) == ("WRONG_SERVICE", True)


@pytest.mark.parametrize(
    ("version", "fits"), [("1.38.0", False), ("1.39.0", True), ("1.39.4", True), ("1.40.0", False)]
)
def test_O5_the_doctor_says_which_flower_is_needed(monkeypatch, version, fits):
    monkeypatch.setattr(surroundings_module.metadata, "version", lambda name: version)
    (finding,) = surroundings_module.flower_version()
    assert (finding.code == "") == fits
    assert "1.39" in finding.message


@pytest.mark.parametrize("version", ["1.38.0", "1.40.0"])
def test_O5_neither_side_starts_under_another_line_of_flower(monkeypatch, tmp_path, version):
    """Whatever pip was talked into: nothing of Flower is started, and the reason is named."""
    monkeypatch.setattr(surroundings_module.metadata, "version", lambda name: version)
    kit = provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("north",))).kits["north"]
    started = []
    monkeypatch.setattr(ProcessGroup, "start", lambda *given, **named: started.append(given))
    settings = SuperNodeSettings(
        "north", "127.0.0.1:1", kit / "ca.crt", kit / "node.key", tmp_path, "unix:/a", tmp_path / "token"
    )
    for start in (
        lambda: start_supernode(settings, ProcessGroup()),
        lambda: start_superlink(SuperLinkSettings(tmp_path / "server", "127.0.0.1:0", 1), ProcessGroup()),
    ):
        with pytest.raises(DeploymentError, match=f"{version} is installed, 1.39") as caught:
            start()
        assert caught.value.code == "VERSION_MISMATCH"
    assert started == []


def test_O5_flowers_own_check_tells_other_lines_apart():
    """Its Fleet API asks but neither warns nor refuses (1.39); its Control and Runtime APIs do."""
    from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

    def peer(version):
        return RuntimeVersionMetadata("flwr", version, "SuperNode")

    ours = peer(metadata.version("flwr"))
    assert ours.check_compatibility(peer("1.39.9")) is None
    for other in ("1.38.0", "1.40.0", "2.0.0"):
        assert "mismatch" in ours.check_compatibility(peer(other))


def test_R7_only_the_newest_unpacked_bundles_stay(tmp_path):
    import os

    for number in range(500):
        (tmp_path / "apps" / f"dpfpl.bundle.{number:04d}").mkdir(parents=True)
        os.utime(tmp_path / "apps" / f"dpfpl.bundle.{number:04d}", (number, number))
    (tmp_path / "apps" / "a-file").touch()
    assert prune_apps(tmp_path) == 497
    assert sorted(p.name for p in (tmp_path / "apps").iterdir()) == [
        "a-file",
        *(f"dpfpl.bundle.{number:04d}" for number in (497, 498, 499)),
    ]
    assert prune_apps(tmp_path) == prune_apps(tmp_path / "nowhere") == 0


_ = RefusedError
