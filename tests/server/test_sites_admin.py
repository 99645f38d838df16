"""Sites come and go while the federation lives: nobody else's key changes, and a withdrawn key never comes back."""

import hashlib
import json
import stat
import tarfile
from datetime import timedelta

import pytest
from server_samples import FakeControl, clock_at
from typer.testing import CliRunner

from dpfpl_common.errors import ConfigError, DeploymentError
from dpfpl_server.cli import main as cli
from dpfpl_server.sites import admin as sites_admin
from dpfpl_server.sites import certificates, superlink
from dpfpl_server.sites.admin import add_sites, list_sites, revoke_site, revoked_sites, rotate_site
from dpfpl_server.sites.certificates import expiries, expiry_warnings, matching, renew_server_certificate
from dpfpl_server.sites.provision import ProvisionRequest, load_place, provision
from dpfpl_server.sites.register import load_sites


@pytest.fixture
def server(tmp_path):
    provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("a", "b"), address="fl.example.org", port=9443))
    return tmp_path / "server"


@pytest.fixture
def running(monkeypatch, server):
    control = FakeControl()
    for module in (sites_admin, superlink):
        monkeypatch.setattr(module, "open_control", lambda folder: control)
    superlink.register_sites(server)
    return control


def test_a_site_added_while_the_server_runs_may_connect_and_nobody_else_changes(server, running, tmp_path):
    before = dict(running.keys)
    result, live = add_sites(server, ("c",), tmp_path / "more")
    assert live
    assert running.keys == before | {"c": load_sites(server)["c"].public_key}
    assert "fl.example.org:9443" in (result.kits["c"] / "site.toml").read_text()
    assert load_sites(server)["c"].node_id == 3


def test_a_revoked_site_is_refused_at_once_and_others_stay(server, running):
    key = load_sites(server)["a"].public_key
    assert revoke_site(server, "a")
    assert (sorted(running.keys), running.withdrawn) == (["b"], [key])
    assert sorted(load_sites(server)) == ["b"]
    assert [(row["name"], row["why"]) for row in revoked_sites(server)] == [("a", "revoked")]
    superlink.register_sites(server)  # a restart of the server
    assert sorted(running.keys) == ["b"]


def test_O7_rotation_withdraws_the_old_key_and_keeps_the_name(server, running, tmp_path):
    old, old_agent = load_sites(server)["a"].public_key, load_sites(server)["a"].agent_key
    result, live = rotate_site(server, "a", tmp_path / "new")
    new = load_sites(server)["a"].public_key
    assert live
    assert new != old
    assert running.withdrawn == [old]
    assert running.keys["a"] == new
    assert (result.kits["a"] / "node.pub").read_text().strip() == new
    assert load_sites(server)["a"].agent_key != old_agent
    assert [row["why"] for row in revoked_sites(server)] == ["rotated"]


def test_without_a_running_server_it_takes_effect_at_the_next_start(server, tmp_path):
    _, live = add_sites(server, ("c",), tmp_path / "more")
    assert (live, revoke_site(server, "a")) == (False, False)
    assert sorted(load_sites(server)) == ["b", "c"]
    assert {row.status for row in list_sites(server)} == {"unknown"}


def test_the_list_says_what_the_server_sees(server, running):
    rows = {row.name: row.status for row in list_sites(server)}
    assert rows == {"a": "online", "b": "online"}
    running.registered.pop(2)
    assert {row.name: row.status for row in list_sites(server)}["b"] == "pending"


@pytest.mark.parametrize("act", [revoke_site, lambda s, n: rotate_site(s, n, s.parent / "x")])
def test_an_unknown_site_is_named_and_nothing_changes(server, act):
    before = (server / "sites.json").read_bytes()
    with pytest.raises(ConfigError, match="'zz'") as caught:
        act(server, "zz")
    assert (caught.value.code, (server / "sites.json").read_bytes()) == ("UNKNOWN_SITE", before)


def test_an_archive_has_the_right_modes_and_its_checksum(tmp_path):
    result = provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("a",), archive="tar.gz"))
    archive = result.kits["a"]
    assert archive == tmp_path / "kits" / "a.tar.gz"
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    digest, name = (tmp_path / "kits" / "a.tar.gz.sha256").read_text().split()
    assert (digest, name) == (hashlib.sha256(archive.read_bytes()).hexdigest(), archive.name)
    with tarfile.open(archive) as file:
        members = [m for m in file if m.isreg()]
        modes = {m.name: m.mode for m in members}
        assert {(m.uid, m.gid, m.uname) for m in members} == {(0, 0, "")}
    assert modes["a/node.key"] == modes["a/agent.key"] == 0o600
    assert modes["a/site.toml"] == 0o644
    assert sorted(p.name for p in (tmp_path / "kits").iterdir()) == [archive.name, f"{archive.name}.sha256"]


def test_an_archive_is_never_replaced_without_force(tmp_path):
    request = ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("a",), archive="tar.gz")
    provision(request)
    (tmp_path / "server" / "sites.json").unlink()
    with pytest.raises(DeploymentError) as caught:
        provision(request)
    assert caught.value.code == "KIT_EXISTS"


def test_sites_can_be_added_while_the_authoritys_key_is_offline(server, tmp_path):
    stick = tmp_path / "stick.key"
    (server / "ca.key").rename(stick)
    add_sites(server, ("c",), tmp_path / "more")
    assert sorted(load_sites(server)) == ["a", "b", "c"]
    request = ProvisionRequest(server, tmp_path / "more", ("d",), address="other.example.org")
    with pytest.raises(DeploymentError) as caught:
        provision(request)
    assert (caught.value.code, "--ca-key" in caught.value.advice) == ("AUTHORITY_OFFLINE", True)
    assert "d" not in load_sites(server)
    with pytest.raises(DeploymentError) as caught:
        renew_server_certificate(server)
    assert caught.value.code == "AUTHORITY_OFFLINE"
    renew_server_certificate(server, stick)
    assert not (server / "ca.key").exists()


def test_renewal_keeps_the_authority_and_every_name(server):
    def names():
        from cryptography import x509

        certificate = x509.load_pem_x509_certificate((server / "server.crt").read_bytes())
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return certificate, sorted(str(name.value) for name in alternatives)

    old, before = names()
    authority = (server / "ca.crt").read_bytes()
    renew_server_certificate(server)
    new, after = names()
    assert before == after == ["127.0.0.1", "::1", "fl.example.org", "localhost"]
    assert new.serial_number != old.serial_number
    assert (server / "ca.crt").read_bytes() == authority
    assert matching((server / "server.key").read_bytes(), (server / "server.crt").read_bytes())


def test_a_key_of_another_authority_is_refused(server, tmp_path):
    provision(ProvisionRequest(tmp_path / "other", tmp_path / "k", ()))
    with pytest.raises(DeploymentError) as caught:
        renew_server_certificate(server, tmp_path / "other" / "ca.key")
    assert caught.value.code == "AUTHORITY_KEY"


@pytest.mark.parametrize(
    ("days", "said"),
    [(-10, ["ends in 10 days"]), (1, ["ended on"]), (-60, []), (-825, []), (-830, ["not valid before"])],
)
def test_expiry_is_said_in_time(server, monkeypatch, days, said):
    end = next(e for e in expiries(server) if e.file == "server.crt").not_after
    at = end + timedelta(days=days) - timedelta(minutes=1)
    assert not expiry_warnings(server)
    monkeypatch.setattr(certificates, "datetime", clock_at(at))
    found = [text for text in expiry_warnings(server) if text.startswith("server.crt")]
    assert len(found) == len(said)
    assert all(part in text for part, text in zip(said, found, strict=True))


def test_where_sites_reach_the_server_is_remembered(server):
    assert load_place(server) == ("fl.example.org", 9443)
    (server / "federation.json").write_text("{")
    with pytest.raises(DeploymentError) as caught:
        load_place(server)
    assert caught.value.code == "NOT_PROVISIONED"


def test_the_commands_speak_json(server, running, tmp_path):
    def call(*arguments):
        result = CliRunner().invoke(cli.app, [*arguments, "--server", str(server), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert call("sites", "add", "c", "--out", str(tmp_path / "m"), "--archive", "tar.gz")["live"] is True
    assert call("sites", "rotate", "c", "--out", str(tmp_path / "n"))["kits"] == {"c": str(tmp_path / "n" / "c")}
    assert call("sites", "revoke", "c") == {"revoked": "c", "live": True}
    listed = call("sites", "list")
    assert [row["name"] for row in listed["sites"]] == ["a", "b"]
    assert [row["why"] for row in listed["withdrawn"]] == ["rotated", "revoked"]
    assert call("renew")["file"] == "server.crt"
