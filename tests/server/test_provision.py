"""Provisioning: what a kit holds, who can read it, and that no key is ever replaced by accident."""

import errno
import ipaddress
import json
import os
import stat
import tempfile
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dpfpl_client.agent.keys import load_signing_key
from dpfpl_common.errors import ConfigError, DeploymentError
from dpfpl_server.sites.certificates import certificate_covers, new_authority, new_server_certificate
from dpfpl_server.sites.kits import KIT_FILES
from dpfpl_server.sites.provision import ProvisionRequest, ProvisionResult, provision, validate_site_name
from dpfpl_server.sites.register import load_sites, node_ids


def run(tmp_path: Path, *sites: str, **options: object) -> ProvisionResult:
    return provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", sites, **options))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a federation of one site with a name of its own; for tests that only read."""
    folder = tmp_path_factory.mktemp("made")
    run(folder, "hospital-a", address="fl.example.org", port=9443, more_addresses=("10.0.0.5", "2001:db8::1"))
    return folder


def test_a_kit_has_all_a_site_needs_and_nothing_more(made: Path) -> None:
    kit = made / "kits" / "hospital-a"
    assert sorted(p.name for p in kit.iterdir()) == sorted((*KIT_FILES, "node.key", "agent.key"))
    assert (kit / "ca.crt").read_bytes() == (made / "server" / "ca.crt").read_bytes()
    assert len((kit / "README.txt").read_text().splitlines()) <= 7
    assert "fl.example.org:9443" in (kit / "README.txt").read_text()
    assert tomllib.loads((kit / "site.toml").read_text()) == {
        "name": "hospital-a",
        "model": "embedded",
        "state": "state",
        "data": {"source": "folder", "path": "/path/to/images"},
        "server": {"address": "fl.example.org:9443", "ca_certificate": "ca.crt", "node_key": "node.key"},
        "agent": {"address": "unix:state/agent.sock", "key": "agent.key"},
    }


def test_an_ipv6_address_is_bracketed(tmp_path: Path) -> None:
    kit = run(tmp_path, "a", address="2001:db8::1").kits["a"]
    assert tomllib.loads((kit / "site.toml").read_text())["server"]["address"] == "[2001:db8::1]:9092"


def test_the_starting_policy_is_strict_where_it_matters(made: Path) -> None:
    assert tomllib.loads((made / "kits" / "hospital-a" / "policy.toml").read_text()) == {
        "experiments": ["*"],
        "max_epsilon_per_experiment": 10.0,
        "max_epsilon_lifetime": 20.0,
        "delta": 1e-5,
        "trust": ["distributed", "local"],
        "units": ["example"],
        "mechanisms": ["per_step", "one_shot"],
        "min_noise_multiplier": 0.3,
        "max_clipping_norm": 10.0,
        "max_rounds": 500,
        "max_epsilon_operator": 20.0,
        "max_epsilon_operator_lifetime": 40.0,
        "metrics": "noised",
    }


def test_private_keys_are_readable_by_their_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        kit = run(tmp_path, "a").kits["a"]
    finally:
        os.umask(before)
    server = tmp_path / "server"
    assert [mode(p) for p in (kit / "node.key", kit / "agent.key", server / "ca.key", server / "server.key")] == [
        0o600
    ] * 4
    assert [mode(p) for p in (kit, server)] == [0o700] * 2


def test_the_server_keeps_public_halves_alone(made: Path) -> None:
    server, kit = made / "server", made / "kits" / "hospital-a"
    for secret in ((kit / "node.key").read_bytes().splitlines()[2], (kit / "agent.key").read_bytes().splitlines()[1]):
        assert not any(secret in content for content in contents(server).values())
    assert b"PRIVATE" not in (server / "sites.json").read_bytes()
    known = load_sites(server)["hospital-a"]
    signing = load_signing_key(kit / "agent.key")
    assert signing.public_key() == serialization.load_ssh_public_key(known.agent_key.encode())
    node = serialization.load_ssh_private_key((kit / "node.key").read_bytes(), None)
    assert isinstance(node, ec.EllipticCurvePrivateKey)
    assert isinstance(node.curve, ec.SECP384R1), "as Flower takes it"
    assert node.public_key() == serialization.load_ssh_public_key((kit / "node.pub").read_bytes())
    assert known.public_key == (kit / "node.pub").read_text().strip()


def test_a_register_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    (tmp_path / "sites.json").write_text('{"a": {"public_key": "x", "provisioned_at": "y", "node_id": 3}}')
    assert load_sites(tmp_path)["a"].agent_key == ""


def test_the_authority_lasts_ten_years_and_signs_only_leaves(made: Path) -> None:
    ca = x509.load_pem_x509_certificate((made / "server" / "ca.crt").read_bytes())
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert timedelta(days=3640) < ca.not_valid_after_utc - datetime.now(UTC) < timedelta(days=3660)


def test_the_server_certificate_names_every_address_and_loopback(made: Path) -> None:
    server = made / "server"
    certificate = x509.load_pem_x509_certificate((server / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"fl.example.org", "localhost"}
    assert set(names.get_values_for_type(x509.IPAddress)) == {
        ipaddress.ip_address(a) for a in ("10.0.0.5", "2001:db8::1", "127.0.0.1", "::1")
    }
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((server / "ca.crt").read_bytes()))


def test_provisioning_again_adds_sites_and_changes_nothing_else(tmp_path: Path) -> None:
    run(tmp_path, "a", "b")
    (tmp_path / "kits" / "a" / "site.toml").write_text("edited")
    server, kits = contents(tmp_path / "server"), contents(tmp_path / "kits")
    again = run(tmp_path, "a", "c", "b")
    assert (sorted(again.kits), again.unchanged) == (["c"], ("a", "b"))
    assert contents(tmp_path / "kits").items() >= kits.items()
    assert {k: v for k, v in contents(tmp_path / "server").items() if k != "sites.json"} == {
        k: v for k, v in server.items() if k != "sites.json"
    }
    assert sorted(load_sites(tmp_path / "server")) == ["a", "b", "c"]


def test_a_new_address_renews_the_certificate_under_the_same_authority(tmp_path: Path) -> None:
    ended = []
    for site, address in (("a", "127.0.0.1"), ("b", "fl.example.org"), ("c", "127.0.0.1")):
        run(tmp_path, site, address=address)
        ended.append([(tmp_path / "server" / name).read_bytes() for name in ("ca.crt", "server.crt", "server.key")])
    first, wider, again = ended
    assert wider[0] == first[0]
    assert wider[1] != first[1]
    assert again == wider  # loopback is covered by the wider one


def test_force_replaces_the_key_but_not_what_the_site_wrote(tmp_path: Path) -> None:
    kit = run(tmp_path, "a", "b").kits["a"]
    (kit / "policy.toml").write_text("strict")
    key, before = (kit / "node.key").read_bytes(), load_sites(tmp_path / "server")
    run(tmp_path, "a", force=True)
    assert (kit / "node.key").read_bytes() != key
    assert (kit / "policy.toml").read_text() == "strict"
    sites = load_sites(tmp_path / "server")
    assert sites["a"].public_key == (kit / "node.pub").read_text().strip()
    assert sites["a"].agent_key != before["a"].agent_key
    assert sites["b"] == before["b"]
    assert node_ids(tmp_path / "server") == {}  # the old identity is not carried over


def test_kits_go_into_folders_that_are_there_although_the_one_around_them_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the containers have it: every kit is a volume of its own, mounted into a read-only folder."""
    closed, trial = tmp_path / "kits", tempfile.NamedTemporaryFile

    def on_a_read_only_disk(*arguments: Any, **options: Any) -> Any:
        if Path(options["dir"]) == closed:
            raise OSError(errno.EROFS, "Read-only file system", str(closed))
        return trial(*arguments, **options)

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", on_a_read_only_disk)
    (closed / "a").mkdir(parents=True)
    run(tmp_path, "a")
    assert (closed / "a" / "node.key").is_file()

    with pytest.raises(OSError, match="Read-only"):
        run(tmp_path, "b")
    assert list(load_sites(tmp_path / "server")) == ["a"]


def test_a_foreign_key_in_the_way_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    kit = tmp_path / "kits" / "a"
    kit.mkdir(parents=True)
    (kit / "node.key").write_text("precious")
    with pytest.raises(DeploymentError) as caught:
        run(tmp_path, "b", "a")
    assert caught.value.code == "KIT_EXISTS"
    assert (kit / "node.key").read_text() == "precious"
    assert contents(tmp_path / "server") == {}


def test_half_an_authority_is_never_completed_with_a_new_one(tmp_path: Path) -> None:
    run(tmp_path, "a")
    (tmp_path / "server" / "ca.crt").unlink()
    before = contents(tmp_path / "server")
    with pytest.raises(DeploymentError) as caught:
        run(tmp_path, "b")
    assert caught.value.code == "AUTHORITY_INCOMPLETE"
    assert contents(tmp_path / "server") == before


@pytest.mark.parametrize("name", ["a", "0", "hospital-a", "x" * 63])
def test_good_site_names(name: str) -> None:
    assert validate_site_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a.b", "../a", "a/b", "a b", "a\n", "x" * 64, "é", '"'])
def test_bad_site_names_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="site name"):
        run(tmp_path, name)
    assert not (tmp_path / "server").exists()


@pytest.mark.parametrize("address", ["", "a b", "https://x", "x:9092", 'x"', "-x", "x\n"])
def test_bad_addresses_are_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="neither a host name"):
        run(tmp_path, "a", address=address)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_bad_ports_are_refused(tmp_path: Path, port: int) -> None:
    with pytest.raises(ConfigError, match="not a port"):
        run(tmp_path, "a", port=port)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 3}', '{"a": {"public_key": "k"}}', '{"a": {"unknown": 1}}'])
def test_a_damaged_register_is_an_error_and_stays_as_it_is(tmp_path: Path, text: str) -> None:
    run(tmp_path, "a")
    (tmp_path / "server" / "sites.json").write_text(text)
    with pytest.raises(DeploymentError) as caught:
        run(tmp_path, "b")
    assert caught.value.code == "SITES_DAMAGED"
    assert (tmp_path / "server" / "sites.json").read_text() == text


def test_the_register_is_plain_json(tmp_path: Path) -> None:
    run(tmp_path, "b", "a")
    entries = json.loads((tmp_path / "server" / "sites.json").read_text())
    assert list(entries) == ["a", "b"]
    assert set(entries["a"]) == {"public_key", "provisioned_at", "node_id", "agent_key", "aggregation_key"}


def test_a_certificate_covers_only_what_it_names() -> None:
    issued = new_server_certificate(new_authority(), ["fl.example.org"])
    assert certificate_covers(issued.public, ["fl.example.org", "127.0.0.1"])
    assert not certificate_covers(issued.public, ["other.example.org"])
