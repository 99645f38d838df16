"""A site's health is red for real reasons, its doctor says them in plain words, and its metrics need the token."""

import http.client
import json
import subprocess
import sys
import time
from datetime import UTC, datetime

import numpy as np
import pytest

from dpfpl_client import doctor as doctor_module
from dpfpl_client.agent.build import build_agent
from dpfpl_client.agent.endpoint import read_token
from dpfpl_client.agent.ledger.view import summarise
from dpfpl_client.agent.metrics import MeteredAgent, site_families, start_monitor
from dpfpl_client.agent.service import AgentServer
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.doctor import examine_site, site_troubles
from dpfpl_client.node.link import LinkState, link_file, write_link
from dpfpl_client.site.init import name_users
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import DeploymentError, RefusedError
from dpfpl_common.ops.diagnostics import durable_folder, insecure_processes, telemetry
from dpfpl_common.wire.payloads import TrainRequest


@pytest.fixture
def served(trained_site, tmp_path_factory):
    """A trained site whose agent answers on its socket; a server is named, but nobody asks it."""
    place = tmp_path_factory.mktemp("s")  # a socket's path must be short
    more = f'\n[server]\naddress = "127.0.0.1:9"\n[agent]\naddress = "unix:{place}/a.sock"\n'
    trained_site.write_text(trained_site.read_text() + more)
    settings = load_site(trained_site)
    server = AgentServer(object(), settings.agent_address, settings.token_file)
    server.start()
    link_file(settings.node_folder).parent.mkdir()
    write_link(link_file(settings.node_folder), LinkState(time.time() - 100, time.time()))
    yield trained_site, server
    server.stop(0.1)


def codes(settings, *parts):
    return [trouble.code for trouble in (site_troubles(settings, parts) if parts else site_troubles(settings))]


def test_L11_health_turns_red_when_the_agent_stops(served):
    site_file, server = served
    settings = load_site(site_file)
    assert codes(settings) == []
    server.stop(0.1)
    assert codes(settings) == ["AGENT_DOWN"]


def test_L11_health_turns_red_when_the_budget_is_full(served):
    site_file, _ = served
    settings = load_site(site_file)
    spent = summarise(settings)["spent_epsilon"]
    policy = settings.path("policy.toml")
    policy.write_text(policy.read_text().replace("max_epsilon_lifetime = 100.0", f"max_epsilon_lifetime = {spent / 2}"))
    assert codes(settings) == ["BUDGET_EXHAUSTED"]
    policy.unlink()
    assert codes(settings) == ["NO_POLICY"]
    assert codes(settings, "agent", "link") == []


@pytest.mark.parametrize(
    ("silent", "answered", "code"),
    [(59, True, None), (61, True, "SERVER_LOST"), (5, False, "SERVER_NOT_REACHED"), (None, None, "NODE_DOWN")],
)
def test_L11_health_turns_red_after_two_heartbeats_without_the_server(served, silent, answered, code):
    site_file, _ = served
    settings = load_site(site_file)
    file = link_file(settings.node_folder)
    file.unlink()
    now = time.time()
    if silent is not None:
        write_link(file, LinkState(now - 500, now - silent if answered else 0.0, now, "UNREACHABLE: no way"))
    assert codes(settings) == ([] if code is None else [code])


def test_where_two_users_are_separated_the_link_is_looked_for_in_the_supernodes_folder(trained_site):
    """And by root's commands alone: the agent's own monitor, which may not enter that folder, does not judge it."""
    server = '\n[server]\naddress = "127.0.0.1:9"\n'
    trained_site.write_text(trained_site.read_text() + server)
    name_users(trained_site, "dpfpl-a", "dpfpl-n")
    settings = load_site(trained_site)
    old = link_file(settings.state_folder)
    old.parent.mkdir()
    write_link(old, LinkState(time.time() - 100, time.time()))  # of the time when both were one user
    assert codes(settings, "link") == ["NODE_DOWN"]
    assert [f.code for f in examine_site(settings, connect=False) if f.check == "connection"] == ["NODE_DOWN"]
    new = link_file(settings.node_folder)
    assert new == trained_site.parent / "node/flower/link.json"
    new.parent.mkdir(parents=True)
    write_link(new, LinkState(time.time() - 100, time.time()))
    assert codes(settings, "link") == []
    assert [f.code for f in examine_site(settings, connect=False) if f.check == "connection"] == [""]
    families = site_families(settings, MeteredAgent(object()), None)
    (parts,) = [family.samples for family in families if family.name == "dpfpl_site_part_healthy"]
    assert [labels["part"] for labels, _ in parts] == ["agent", "budget"]


def test_the_health_command_is_a_probe(served, command):
    site_file, server = served
    assert command("health", "--site", site_file)[0] == 0
    server.stop(0.1)
    code, out, _ = command("health", "--site", site_file, "--json")
    assert (code, [r["code"] for r in json.loads(out)["reasons"]]) == (1, ["AGENT_DOWN"])
    assert command("health", "--site", site_file, "--part", "link")[0] == 0
    code, _, err = command("health", "--site", site_file, "--part", "x")
    assert (code, "UNKNOWN_PART" in err) == (2, True)


def ask(address, path, token=None):
    host, port = address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_metrics_are_for_whoever_holds_the_sites_token(served):
    site_file, server = served
    site_file.write_text(site_file.read_text() + '\n[monitoring]\naddress = "127.0.0.1:0"\n')
    settings = load_site(site_file)
    monitor = start_monitor(settings, MeteredAgent(object()))
    try:
        token_file = settings.state_folder / "metrics.token"
        assert token_file.stat().st_mode & 0o777 == 0o600
        assert ask(monitor.address, "/metrics")[0] == 401
        status, text = ask(monitor.address, "/metrics", read_token(token_file))
        assert status == 200
        assert "dpfpl_site_healthy 1\n" in text
        assert 'dpfpl_site_part_healthy{part="link"} 1' in text
        assert 'dpfpl_site_epsilon_spent{adversary="operator"}' in text
        assert "dpfpl_site_server_silent_seconds" in text
        for secret in ("bright", "dark", ".png", str(site_file.parent)):
            assert secret not in text
        assert ask(monitor.address, "/health")[0] == 200
        server.stop(0.1)
        assert ask(monitor.address, "/health") == (
            503,
            '{"status": "unhealthy", "reasons": [{"part": "agent", "code": "AGENT_DOWN"}]}',
        )
    finally:
        monitor.stop()
    assert monitor.address.rsplit(":", 1)[1] not in settings.agent_address, "not the data plane's socket"


def test_without_the_setting_nothing_listens(trained_site):
    assert start_monitor(load_site(trained_site), MeteredAgent(object())) is None


@pytest.mark.privacy
def test_O8_a_forgotten_experiment_leaves_no_prompt_and_a_whole_ledger(trained_site, command):
    settings = load_site(trained_site)
    before = summarise(settings)
    experiment = DiskStore(settings.state_folder).experiment("pilot")
    code, out, _ = command("forget", "pilot", "--site", trained_site, "--yes")
    assert (code, "ledger keeps" in out) == (0, True)
    assert list(settings.state_folder.glob("experiments/pilot*")) == []
    assert not [p for p in settings.state_folder.rglob("*.safetensors") if "cache" not in p.parts]
    after = summarise(settings)
    assert after["spent_epsilon"] == before["spent_epsilon"] > 0
    built = build_agent(settings)
    with pytest.raises(RefusedError) as caught:  # even the round that was served before
        built.agent.train(TrainRequest(experiment, 1, np.zeros(experiment.context_shape, "<f4"), evaluate=False))
    assert caught.value.code == "FORGOTTEN"
    built.lock.release()
    assert summarise(settings)["experiments"][0]["charges"] == before["experiments"][0]["charges"]
    assert command("forget", "../x", "--site", trained_site, "--yes")[0] == 2


def test_O8_it_works_while_the_agent_runs(trained_site):
    settings = load_site(trained_site)
    experiment = DiskStore(settings.state_folder).experiment("pilot")
    built = build_agent(settings)
    start = np.zeros(experiment.context_shape, "<f4")
    built.agent.train(TrainRequest(experiment, 1, start, evaluate=False))  # the stored release, for nothing
    DiskStore(settings.state_folder).forget("pilot")
    with pytest.raises(RefusedError, match="left this experiment"):
        built.agent.train(TrainRequest(experiment, 1, start, evaluate=False))
    with pytest.raises(RefusedError):  # a computation that was at work meanwhile
        DiskStore(settings.state_folder).write_final("pilot", start)
    built.lock.release()


def by_code(findings):
    return {finding.code for finding in findings if finding.code}


def test_O9_the_doctor_of_a_fresh_site_and_of_a_busy_one(fresh_site, served, monkeypatch):
    monkeypatch.setattr(doctor_module, "durable_folder", lambda check, folder: [])
    fresh = by_code(examine_site(load_site(fresh_site)))
    assert fresh == {"NO_STATE", "AGENT_DOWN", "NO_SERVER"}
    site_file, _ = served
    busy = by_code(examine_site(load_site(site_file), connect=False))
    assert "AGENT_DOWN" not in busy
    assert "NODE_DOWN" not in busy


def test_O9_the_doctor_finds_a_broken_state(served, monkeypatch):
    site_file, server = served
    settings = load_site(site_file)
    server.stop(0.1)
    for file in settings.state_folder.glob("ledger.sqlite*"):  # the last pages may lie in the log beside it
        file.write_bytes(b"broken" * 100)
    found = by_code(examine_site(settings, connect=False))
    assert {"AGENT_DOWN", "KIT_INCOMPLETE"} <= found
    assert any("LEDGER" in code for code in found)
    settings.path("policy.toml").unlink()
    assert "NO_POLICY" in by_code(examine_site(settings, connect=False))


def test_O9_the_doctor_asks_the_server_for_key_and_clock_only_where_tls_is_in_order(served, monkeypatch):
    site_file, _ = served
    settings = load_site(site_file)
    asked = []

    def fails(address, authority):
        raise DeploymentError(code="CERTIFICATE_NAME", message="m", advice="a")

    monkeypatch.setattr(doctor_module, "authority_end", lambda path: datetime.max.replace(tzinfo=UTC))
    monkeypatch.setattr(doctor_module, "probe_server", fails)
    monkeypatch.setattr(doctor_module, "probe_fleet", lambda *a: asked.append(a))
    assert "CERTIFICATE_NAME" in by_code(examine_site(settings))
    assert asked == []


def test_O9_telemetry_insecure_flags_and_lossy_disks_are_found(tmp_path):
    assert by_code(telemetry({"FLWR_TELEMETRY_ENABLED": "1", "HOME": "/"})) == {"TELEMETRY_ON"}
    assert by_code(telemetry({"FLWR_TELEMETRY_ENABLED": "0", "HOME": "/"})) == set()
    process = tmp_path / "proc" / "123"
    process.mkdir(parents=True)
    (process / "cmdline").write_bytes(b"python\0/usr/bin/flower-supernode\0--insecure\0")
    (finding,) = insecure_processes(tmp_path / "proc")
    assert (finding.code, "123" in finding.message) == ("INSECURE_FLAG", True)
    (process / "cmdline").write_bytes(b"curl\0--insecure\0")
    assert by_code(insecure_processes(tmp_path / "proc")) == set()
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    (finding,) = durable_folder("state", tmp_path, mounts)
    assert (finding.code, "NFS" in finding.message) == ("STATE_NOT_DURABLE", True)
    mounts.write_text("/dev/sda / ext4 rw 0 0\n")
    assert by_code(durable_folder("state", tmp_path, mounts)) == set()
    assert by_code(durable_folder("state", tmp_path / "gone", mounts)) == {"FOLDER_NOT_WRITABLE"}
    assert list(tmp_path.glob(".doctor")) == []


def test_doctor_and_health_need_no_torch():
    """They must work where the agent is not installed, and at once where the machine is busy."""
    code = "import sys; import dpfpl_client.doctor, dpfpl_client.cli.main;sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
