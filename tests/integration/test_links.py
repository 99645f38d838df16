"""Bad links between a site and the server: what is waited for, what is not, and that nothing is paid for twice."""

import http.server
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from bad_link import BadLink
from cryptography.hazmat.primitives.asymmetric import ec
from federations import Server, end_session, fill_in
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.client.grpc_rere_client.connection import grpc_request_response
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.retry import make_simple_grpc_retry_invoker
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from dpfpl_client.agent.ledger.view import summarise
from dpfpl_client.data import DataSettings, list_classes
from dpfpl_client.node.fleet_probe import load_node_key, probe_fleet
from dpfpl_client.node.flower_patches import FATAL_EXIT, channel_options, failure_reason
from dpfpl_client.node.launch import start_agent, start_node, wait_for_agent
from dpfpl_client.node.link import LinkState, link_file, read_link
from dpfpl_client.node.supernode import connected_node_id, start_supernode, wait_until_connected
from dpfpl_client.site.init import initialise
from dpfpl_client.site.settings import SiteSettings, load_site
from dpfpl_common.errors import DeploymentError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.ops.processes import ManagedProcess, ProcessGroup, free_ports, wait_until
from dpfpl_common.ops.tls import probe_server
from dpfpl_server.runs.supervise import run_experiment
from dpfpl_server.sites import certificates
from dpfpl_server.sites.admin import revoke_site, rotate_site
from dpfpl_server.sites.certificates import Issued, new_authority, new_server_certificate
from dpfpl_server.sites.control import Node as RegisteredNode
from dpfpl_server.sites.superlink import open_control, run_log, submit_run

pytestmark = [pytest.mark.processes, pytest.mark.slow]

BACKOFF_S = 3.0
KEEPALIVE_S = 4.0


ONE_EXCHANGE = """
import json, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
from dpfpl_server.federation.exchange import exchange
from dpfpl_server.flower_patches import pull_again_soon

app = ServerApp()

@app.main()
def main(grid, context):
    pull_again_soon(6.0)
    nodes = {}
    while len(nodes) < 3:
        nodes = {n.name: n.node_id for n in grid.get_nodes() if n.name in ("half", "whole", "forgetful")}
        time.sleep(0.1)
    message = lambda site: Message(RecordDict(), nodes[site], "query", group_id="1")
    began = time.monotonic()
    outcome = exchange(grid, {site: message(site) for site in nodes}, 6.0, again=message)
    failures = {site: str(why) for site, why in outcome.failures.items()}
    found = {"replies": sorted(outcome.replies), "failures": failures, "again": sorted(outcome.again)}
    found["seconds"] = time.monotonic() - began
    Path(context.run_config["run-dir"]).write_text(json.dumps(found))
"""
BUNDLE = b"""
[project]
name = "one-exchange"
version = "0.1.0"
[tool.flwr.app]
publisher = "test"
[tool.flwr.app.components]
serverapp = "one_exchange:app"
clientapp = "one_exchange:app"
[tool.flwr.app.config]
run-dir = ""
"""


SITES = ("north", "east", "south", "west", "centre", "early", "late", "half", "whole", "forgetful")


class Federation(Server):
    """A server that may start late, and sites that reach it through links of their own."""

    def settings(self, site: str, port: int | None = None) -> SiteSettings:
        file = self.kits[site] / "site.toml"
        if "/path/to/images" in file.read_text():
            initialise(file, "digits", site)
        if port is not None:
            file.write_text(file.read_text().replace(f"127.0.0.1:{self.fleet}", f"127.0.0.1:{port}"))
        return load_site(file)


@pytest.fixture(scope="module", autouse=True)
def quick_links() -> Iterator[None]:
    """The same bounds, scaled: a silent link is noticed after 4 s instead of 20."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPFPL_LINK_KEEPALIVE_S", str(KEEPALIVE_S))
        patch.setenv("DPFPL_LINK_BACKOFF_S", str(BACKOFF_S))
        yield


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("links"), SITES)
    (made.root / "one_exchange.py").write_text(ONE_EXCHANGE)
    with made.group:
        made.start_server({"PYTHONPATH": str(made.root)})
        yield made


def link_of(settings: SiteSettings) -> LinkState:
    state = read_link(link_file(settings.node_folder))
    assert state is not None
    return state


def test_L10_a_site_that_starts_before_its_server_waits_and_says_so(federation: Federation) -> None:
    """Nothing listens where the site looks for the server, until a link to it does."""
    (port,) = free_ports(1)
    settings = federation.settings("early", port)
    node = start_node(settings, federation.group)
    wait_until(
        lambda: (state := read_link(link_file(settings.node_folder))) is not None and state.failed_at > 0,
        timeout_s=30,
        what="a first failure",
        processes=[node],
    )
    time.sleep(3.0)
    assert node.poll() is None, "it keeps trying"
    assert link_of(settings).trouble(time.time()).startswith("SERVER_NOT_REACHED")
    with BadLink(federation.fleet, port):
        wait_until_connected(node, timeout_s=40)
        assert link_of(settings).trouble(time.time()) == ""
        node.stop()


def test_O7_a_rotated_key_is_refused_at_once_and_the_new_one_taken(federation: Federation) -> None:
    settings = federation.settings("west")
    old = start_node(settings, federation.group)
    wait_until_connected(old)
    result, live = rotate_site(federation.folder, "west", federation.root / "new")
    assert live
    assert old.wait(20) is not None, "the SuperNode with the old key ends"
    assert "KEY_WITHDRAWN" in link_of(settings).reason
    address = f"127.0.0.1:{federation.fleet}"
    with pytest.raises(DeploymentError) as caught:
        probe_fleet(address, settings.path("ca.crt"), settings.path("node.key"))
    assert caught.value.code == "SITE_UNKNOWN"
    kit = result.kits["west"]
    (settings.path("node.key")).write_bytes((kit / "node.key").read_bytes())
    new = start_node(settings, federation.group)
    wait_until_connected(new)
    revoke_site(federation.folder, "west")
    assert new.wait(20) is not None, "a revoked site is out at once as well"


def sign_in(federation: Federation, site: str, interval_s: float) -> float:
    """Sign in as the site's SuperNode would, and vanish as one that was killed; the time of it."""
    key = load_node_key(federation.kits[site] / "node.key")
    credentials = grpc.ssl_channel_credentials((federation.folder / "ca.crt").read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{federation.fleet}", credentials) as channel:
        stub = FleetStub(grpc.intercept_channel(channel, NodeAuthClientInterceptor(key, key.public_key())))
        request = ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=interval_s)
        stub.ActivateNode(request, timeout=10)
    return time.monotonic()


@pytest.mark.parametrize("really_waits", [False, pytest.param(True, marks=pytest.mark.long)])
def test_L6_a_supernode_that_was_killed_waits_for_its_old_session_to_end(
    federation: Federation, really_waits: bool
) -> None:
    """Flower keeps a vanished node online for two heartbeats and refuses it meanwhile as if its key were unknown."""
    heartbeat_s = 10.0
    vanished = sign_in(federation, "centre", heartbeat_s)
    node = start_node(federation.settings("centre"), federation.group)
    waiting = "still counts this site's previous connection; waiting"
    wait_until(lambda: waiting in node.log_text(), timeout_s=30, what="it to wait", processes=[node])
    assert connected_node_id(node) is None, "it came in while the old session was alive"
    if not really_waits:
        end_session(federation.folder, "centre")
    wait_until_connected(node, timeout_s=60)
    if really_waits:
        assert heartbeat_s < time.monotonic() - vanished < 2 * heartbeat_s + 15.0
    node.stop()


def test_the_probe_changes_nothing_and_finds_the_clock_to_the_second(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dpfpl_client.node.fleet_probe as module

    address, kit = f"127.0.0.1:{federation.fleet}", federation.kits["south"]
    assert probe_server(address, kit / "ca.crt").tls_version == "TLSv1.3"
    probe_fleet(address, kit / "ca.crt", kit / "node.key")
    real = module.datetime

    for skew, said in ((47.0, "47 s (ahead of"), (-400.0, "400 s (behind"), (-3000.0, "3000 s (behind")):

        class Shifted(real):  # type: ignore[valid-type, misc]
            @classmethod
            def now(cls, tz=None):  # type: ignore[no-untyped-def]
                return real.now(tz) + timedelta(seconds=skew)  # noqa: B023

        monkeypatch.setattr(module, "datetime", Shifted)
        with pytest.raises(DeploymentError) as caught:
            probe_fleet(address, kit / "ca.crt", kit / "node.key")
        assert caught.value.code == "CLOCK_SKEW"
        number, rest = said.split(" s ")
        found = int(caught.value.message.split("about ")[1].split(" ")[0])
        assert abs(found - int(number)) <= 2
        assert rest in caught.value.message
    with BadLink(federation.fleet) as link:
        assert probe_server(f"127.0.0.1:{link.port}", kit / "ca.crt").tls_version == "TLSv1.3"
    status = {node.name: node.status for node in open_control_nodes(federation)}
    assert status["south"] == "registered", "asking did not bring the site online"


def test_U6_keys_that_the_operator_did_not_register_get_nowhere(federation: Federation) -> None:
    """One machine with three made-up keys: it can neither register them itself nor sign in nor ask for messages."""
    known = {node.name for node in open_control_nodes(federation)}
    credentials = grpc.ssl_channel_credentials((federation.folder / "ca.crt").read_bytes())
    said = set()
    with grpc.secure_channel(f"127.0.0.1:{federation.fleet}", credentials) as channel:
        for _ in range(3):
            key = ec.generate_private_key(ec.SECP384R1())
            public = public_key_to_bytes(key.public_key())
            stub = FleetStub(grpc.intercept_channel(channel, NodeAuthClientInterceptor(key, key.public_key())))
            for call, request in (
                (stub.RegisterNode, RegisterNodeFleetRequest(public_key=public)),
                (stub.ActivateNode, ActivateNodeRequest(public_key=public, heartbeat_interval=30.0)),
                (stub.PullMessages, PullMessagesRequest(node=Node(node_id=1))),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    call(request, timeout=10)
                said.add((type(request).__name__, caught.value.code().name))
    assert {node.name for node in open_control_nodes(federation)} == known
    assert said == {
        ("RegisterNodeFleetRequest", "FAILED_PRECONDITION"),
        ("ActivateNodeRequest", "FAILED_PRECONDITION"),
        ("PullMessagesRequest", "UNAUTHENTICATED"),
    }


def open_control_nodes(federation: Federation) -> list[RegisteredNode]:
    with open_control(federation.folder) as control:
        return control.nodes()


@pytest.mark.parametrize("version", ["1.38.0", "1.40.0"])
def test_O5_flowers_server_lets_a_supernode_of_another_version_in_without_a_word(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """Seen with a real SuperNode of 1.38.0, which then took part in a run. That one of 1.40.0 stays outside is because
    it speaks another protocol. So it is our launcher that asks for the version; see test_upgrade.py."""
    kit = federation.kits["south"]
    said = RuntimeVersionMetadata.from_local_component("SuperNode", package_version_value=version)
    monkeypatch.setattr(RuntimeVersionMetadata, "from_local_component", lambda name: said)
    probe_fleet(f"127.0.0.1:{federation.fleet}", kit / "ca.crt", kit / "node.key")


def test_O5_a_server_of_flower_1_40_is_named_and_left(tmp_path: Path) -> None:
    """There the Fleet API is HTTPS on the one port, without ALPN, and nothing listens on the port of the kits.

    Seen with a real SuperLink of 1.40.0: WRONG_SERVICE after 4 s at the one, SERVER_UNREACHABLE at the other.
    """
    federation = Federation(tmp_path, ("north",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(federation.folder / "server.crt", federation.folder / "server.key")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = federation.settings("north", server.server_port)
    with federation.group:
        with pytest.raises(DeploymentError, match=r"Flower 1\.40") as caught:
            start_node(settings, federation.group)
        assert caught.value.code == "WRONG_SERVICE"
        node = node_without_a_look(settings, federation.group)
        with pytest.raises(DeploymentError) as caught:
            wait_until_connected(node, timeout_s=30)
        assert (caught.value.code, node.wait(10)) == ("WRONG_SERVICE", FATAL_EXIT)
    server.shutdown()
    (closed,) = free_ports(1)
    kit = federation.kits["north"]
    with pytest.raises(DeploymentError) as caught:
        probe_fleet(f"127.0.0.1:{closed}", kit / "ca.crt", kit / "node.key")
    assert caught.value.code == "SERVER_UNREACHABLE"


def bad_server(kind: str, authority: Issued, tmp_path: Path) -> tuple[object, int, list[str]]:
    """A gRPC server with something wrong; what reached its handlers is in the list."""
    heard: list[str] = []

    class Ears(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details):  # type: ignore[no-untyped-def]
            heard.append(details.method)

    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Ears()])
    if kind == "WRONG_SERVICE":
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        with pytest.MonkeyPatch.context() as patch:
            hosts = ["127.0.0.1"]
            if kind == "CERTIFICATE_EXPIRED":
                patch.setattr(certificates, "_CLOCK_SKEW", timedelta(days=900))
                patch.setattr(certificates, "SERVER_DAYS", -1)
            if kind == "CERTIFICATE_NOT_YET_VALID":
                patch.setattr(certificates, "_CLOCK_SKEW", timedelta(days=-2))
            if kind == "CERTIFICATE_NAME":
                patch.setattr(certificates, "_LOOPBACK", ())
                hosts = ["fl.example.org"]
            issued = new_server_certificate(new_authority() if kind == "SERVER_NOT_TRUSTED" else authority, hosts)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(issued.private, issued.public)]))
    server.start()
    return server, port, heard


KINDS = (
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_NOT_YET_VALID",
    "CERTIFICATE_NAME",
    "SERVER_NOT_TRUSTED",
    "WRONG_SERVICE",
)


def test_L8_a_server_that_cannot_be_trusted_is_named_and_never_spoken_to(tmp_path: Path) -> None:
    """Before the SuperNode is started and by its first call, which ends it; Flower would try some of them for ever."""
    sites = tuple(kind.lower().replace("_", "-") for kind in KINDS)
    federation = Federation(tmp_path, sites)
    authority = Issued((federation.folder / "ca.key").read_bytes(), (federation.folder / "ca.crt").read_bytes())
    with federation.group:
        for kind, site in zip(KINDS, sites, strict=True):
            _server, port, heard = bad_server(kind, authority, tmp_path)
            settings = federation.settings(site, port)
            with pytest.raises(DeploymentError) as caught:
                start_node(settings, federation.group)
            assert caught.value.code == kind
            assert first_call(settings) == kind
            if kind == "CERTIFICATE_NAME":  # the way of them all through a process; each start takes seconds
                node = node_without_a_look(settings, federation.group)
                with pytest.raises(DeploymentError) as caught:
                    wait_until_connected(node, timeout_s=30)
                assert (caught.value.code, node.wait(10)) == (kind, FATAL_EXIT)
            assert heard == [], "not a word in the clear, and none to a stranger"


def first_call(settings: SiteSettings) -> str:
    """The code by which the SuperNode ends when its first call over our channel fails; empty if it would go on."""
    credentials = grpc.ssl_channel_credentials(settings.path(settings.server.ca_certificate).read_bytes())
    channel = grpc.secure_channel(settings.server.address, credentials, options=channel_options())
    with channel, pytest.raises(grpc.RpcError) as caught:
        FleetStub(channel).ActivateNode(ActivateNodeRequest(), timeout=10)
    reason, fatal = failure_reason(caught.value.details())
    return reason.partition(":")[0] if fatal else ""


def node_without_a_look(settings: SiteSettings, group: ProcessGroup) -> ManagedProcess:
    from dpfpl_client.node.supernode import SuperNodeSettings

    return start_supernode(
        SuperNodeSettings(
            site_name=settings.name,
            server_address=settings.server.address,
            ca_certificate=settings.path(settings.server.ca_certificate),
            node_key=settings.path(settings.server.node_key),
            state_folder=settings.state_folder,
            agent_address=settings.agent_address,
            agent_token_file=settings.token_file,
        ),
        group,
    )


def test_L9_there_is_no_insecure_way_to_start(tmp_path: Path) -> None:
    from dpfpl_client.node.supernode import supernode_command

    federation = Federation(tmp_path, ("north",))
    settings = federation.settings("north")
    (federation.kits["north"] / "ca.crt").unlink()
    with pytest.raises(DeploymentError, match=r"ca\.crt"), ProcessGroup() as group:
        start_node(settings, group)
    (federation.folder / "server.crt").unlink()
    with pytest.raises(DeploymentError, match=r"server\.crt"):
        federation.start_server()
    assert "--insecure" not in Path(supernode_command.__code__.co_filename).read_text()
    code = (
        "from pathlib import Path; from dpfpl_client.node import flower_patches; "
        "import flwr.client.grpc_rere_client.connection as c;"
        f"flower_patches.watch_the_link(Path({str(tmp_path / 'link.json')!r})); c.create_channel('127.0.0.1:1', True)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "TLS" in ended.stderr


def test_L7_a_nat_that_forgets_idle_connections_never_finds_one(federation: Federation) -> None:
    """Scaled: a NAT with 240 s of patience, here 24 s; an idle site polls every second, a busy one has heartbeats."""
    with BadLink(federation.fleet, nat_idle_s=24.0) as link:
        settings = federation.settings("south", link.port)
        node = start_node(settings, federation.group)
        wait_until_connected(node)
        time.sleep(6.0)
        assert link.forgotten == 0
        assert link.longest_silence_s < 2.5, "an idle site is never silent for long"
        # A NAT that forgets all the same: noticed by the pings, mended by a new connection.
        before = link.connections
        for pair in list(link._pairs):
            pair.silent = True
        lost = time.time()
        wait_until(lambda: link.connections > before, timeout_s=40, what="a new connection", processes=[node])
        wait_until(lambda: link_of(settings).answered_at > lost + 0.5, timeout_s=15, what="an answer", processes=[node])
        assert time.time() - lost < 10.0 + KEEPALIVE_S + 4 * BACKOFF_S + 5
        node.stop()


def test_L6_a_run_over_a_bad_link_completes_and_nothing_is_paid_twice(federation: Federation, tmp_path: Path) -> None:
    experiment = Experiment(
        name="bad-link",
        classes=list_classes(DataSettings(source="digits")),
        sites=("east", "north"),
        model=ModelSettings(width=128),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0, sample_rate=0.05, nominal_site_size=600),
        rounds=RoundSettings(number=4, local_steps=2, deadline=40.0),
    )
    files = {site: federation.kits[site] / "site.toml" for site in ("north", "east")}
    with BadLink(federation.fleet, rtt_s=0.3, bytes_per_s=125_000.0) as link:
        federation.settings("north", link.port)
        for index, file in enumerate(files.values()):
            fill_in(file, (index, 2))
        agents = [start_agent(file, load_site(file), federation.group) for file in files.values()]
        for agent, file in zip(agents, files.values(), strict=True):
            wait_for_agent(agent, load_site(file))
        nodes = [start_node(load_site(file), federation.group) for file in files.values()]
        for node in nodes:
            wait_until_connected(node)
        troubles = iter(
            [
                lambda: setattr(link, "reset_share", 0.05),
                lambda: (setattr(link, "reset_share", 0.0), link.reset_all()),
                lambda: setattr(link, "blackhole", True),
                lambda: link.half_open(),
            ]
        )
        back: dict[str, float] = {}

        def on_status(status: dict) -> None:  # type: ignore[type-arg]
            if status["phase"] == "TRAINING" and len(status["waiting_for"]) == 2:
                next(troubles, lambda: None)()
                if link.blackhole:
                    time.sleep(12.0)
                    link.blackhole = False
                    back["at"] = time.time()
                    state = load_site(files["north"])
                    wait_until(
                        lambda: link_of(state).answered_at > back["at"],
                        timeout_s=60,
                        what="the site's return",
                        processes=nodes,
                        interval_s=0.05,
                    )
                    back["after_s"] = time.time() - back["at"]

        result = run_experiment(experiment, federation.folder, tmp_path / "run", on_status)
    assert back["after_s"] <= 40.0, "twice Flower's longest pause between two tries"
    assert [entry["round"] for entry in result["rounds"]] == [1, 2, 3, 4]
    for file in files.values():
        (row,) = summarise(load_site(file))["experiments"]
        assert (row["rounds"], row["scored"]) == (4, True)
        assert (row["charges"], row["released"]) == (5, 5), "every round once, and the scores once"
    took = [(entry["seconds"], entry["asked_again"]) for entry in result["rounds"]]
    print(
        f"L6: back {back['after_s']:.1f} s after the link, {link.connections} connections, {link.resets} resets, {took}"
    )


def play(federation: Federation, site: str, stop: threading.Event) -> None:
    """Be the site's SuperNode, and answer as the site's name says."""
    key = load_node_key(federation.kits[site] / "node.key")
    authority = (federation.folder / "ca.crt").read_bytes()
    address = f"127.0.0.1:{federation.fleet}"
    told = 0
    with grpc_request_response(
        address, False, make_simple_grpc_retry_invoker(), -1, authority, (key, key.public_key())
    ) as (_node, receive, send, _run, _bundle, _pull, push_object, _confirm):
        while not stop.wait(0.1):
            found = receive()
            if found is None:
                continue
            told += 1
            if site == "forgetful" and told == 1:
                continue  # as if the server's answer was lost on its way
            reply = Message(RecordDict({"c": ConfigRecord({"by": f"{site} {told}"})}), reply_to=found[0])
            reply.metadata.__dict__["_message_id"] = reply.object_id
            with no_object_id_recompute():
                parts, tree = get_all_nested_objects(reply), get_object_tree(reply)
            if site == "whole":
                stop.wait(0.5)  # so that the server is at the half reply already
            missing, session = send(reply, tree, 0.1)
            for part in sorted(missing)[: 1 if site == "half" else None]:
                push_object(reply.metadata.run_id, session, part, parts[part].deflate())


def test_L6_half_a_reply_holds_nobody_up_and_a_lost_question_is_asked_again(federation: Federation) -> None:
    """Flower alone would wait three minutes for the rest of the one, with all other replies behind it."""
    stop, answer = threading.Event(), federation.root / "exchange.json"
    players = [threading.Thread(target=play, args=(federation, s, stop)) for s in ("half", "whole", "forgetful")]
    for player in players:
        player.start()
    run = submit_run(federation.folder, {"run-dir": str(answer)}, bundle={"pyproject.toml": BUNDLE})
    try:
        wait_until(answer.exists, timeout_s=60, what="the exchange")
    finally:
        stop.set()
        for player in players:
            player.join()
    found = json.loads(answer.read_text())
    assert found["replies"] == ["forgetful", "whole"], (found, run_log(federation.folder, run))
    assert found["failures"] == {"half": "NODE_ERROR: its answer broke off"}
    assert {"forgetful", "half"} <= set(found["again"])
    assert found["seconds"] < 6.0 + 3 * 1.5 + 1.0


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_L6_a_long_blackhole_with_the_bounds_of_production(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``DPFPL_TEST_BLACKHOLE_S`` sets its length; five minutes unless given, the row asks for thirty."""
    monkeypatch.delenv("DPFPL_LINK_KEEPALIVE_S")
    monkeypatch.delenv("DPFPL_LINK_BACKOFF_S")
    with BadLink(federation.fleet, rtt_s=0.3) as link:
        settings = federation.settings("late", link.port)
        node = start_node(settings, federation.group)
        wait_until_connected(node)
        link.blackhole = True
        time.sleep(float(os.environ.get("DPFPL_TEST_BLACKHOLE_S", "300")))
        assert node.poll() is None
        assert link_of(settings).trouble(time.time()).startswith("SERVER_LOST")
        link.blackhole = False
        back = time.time()
        wait_until(lambda: link_of(settings).answered_at > back, timeout_s=90, what="the return", processes=[node])
        after = time.time() - back
        print(f"L6 long: heard again {after:.1f} s after the link's return, {link.connections} connections")
        assert after <= 40.0, "twice the longest pause between two tries"
        assert link_of(settings).trouble(time.time()) == ""
        node.stop()
