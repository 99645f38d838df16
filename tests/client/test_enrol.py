"""A site makes its keys itself: what travels is public, and no key of the operator's making takes their place."""

import json
import stat
import tarfile

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from dpfpl_client.agent.build import build_agent
from dpfpl_client.agent.keys import aggregation_keys, load_signing_key
from dpfpl_client.site.kit import enroll, unpack_kit
from dpfpl_client.site.settings import load_site
from dpfpl_common.config import to_table
from dpfpl_common.errors import ConfigError, DeploymentError
from dpfpl_common.secure.enrolment import Enrolment, fingerprint, public_line, read_enrolment
from dpfpl_server.cli import main as server_cli
from dpfpl_server.sites.admin import add_sites, revoke_site, rotate_site
from dpfpl_server.sites.kits import KIT_FILES
from dpfpl_server.sites.provision import ProvisionRequest, provision
from dpfpl_server.sites.register import load_sites

pytestmark = pytest.mark.privacy

KEYS = ("node.key", "agent.key", "aggregation.key")


@pytest.fixture
def server(tmp_path):
    provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("old",), address="fl.example.org"))
    return tmp_path / "server"


def operator(*arguments):
    result = CliRunner().invoke(server_cli.app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stdout


def enrolled(folder, name="north"):
    return enroll(folder / "site.toml", name)


def secrets(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.key")}


def refused(code, act, kind=ConfigError):
    with pytest.raises(kind) as caught:
        act()
    assert caught.value.code == code


def test_from_enroll_to_an_agent_no_private_key_leaves_the_site(tmp_path, server, image_folder, command):
    site = tmp_path / "site"
    code, said, _ = command("enroll", "--name", "north", "--site", site / "site.toml")
    assert code == 0
    before = secrets(site)
    assert sorted(before) == sorted(KEYS)
    assert {stat.S_IMODE((site / name).stat().st_mode) for name in KEYS} == {0o600}

    public = site / "north.public.json"
    heard = operator("sites", "add", "north", "--public-key", public, "--server", server, "--out", tmp_path / "k",
                     "--archive", "tar.gz")  # fmt: skip
    own = fingerprint(load_signing_key(site / "aggregation.key").public_key())
    assert own in said
    assert own in heard
    assert own in operator("sites", "list", "--server", server)
    archive = tmp_path / "k" / "north.tar.gz"
    with tarfile.open(archive) as tar:
        assert {member.name for member in tar if member.isreg()} == {f"north/{name}" for name in KIT_FILES}

    code, said, _ = command("init", "--kit", archive, "--into", site, "--data", image_folder)
    assert code == 0
    assert 'trust: ["distributed", "local", "secure"]' in said, "the kit's policy is looser, so it needs a word"
    assert secrets(site) == before
    built = build_agent(load_site(site / "site.toml"))
    built.lock.release()
    assert load_site(site / "site.toml").server.address == "fl.example.org:9092"
    known = load_sites(server)["north"]
    assert known.agent_key == public_line(load_signing_key(site / "agent.key").public_key())
    assert known.aggregation_key == public_line(load_signing_key(site / "aggregation.key").public_key())
    travelled = [public, *(path for top in (server, tmp_path / "k") for path in top.rglob("*") if path.is_file())]
    for path in travelled:
        content = path.read_bytes()
        assert not any(secret in content or secret.splitlines()[1] in content for secret in before.values())


def test_a_site_toml_that_was_there_first_gets_the_address_and_keeps_the_rest(tmp_path, server, image_folder, command):
    site = tmp_path / "site"
    command("init", "--data", image_folder, "--name", "north", "--site", site / "site.toml")
    mine = (site / "site.toml").read_text()
    command("enroll", "--site", site / "site.toml")
    result, _ = add_sites(server, ("north",), tmp_path / "k", archive="tar.gz",
                          enrolment=read_enrolment(site / "north.public.json"))  # fmt: skip
    unpack_kit(result.kits["north"], site)
    assert (site / "site.toml").read_text().startswith(mine.rstrip())
    settings = load_site(site / "site.toml")
    assert (settings.server.address, settings.data.path) == ("fl.example.org:9092", str(image_folder))
    unpack_kit(result.kits["north"], site)
    assert (site / "site.toml").read_text().count("[server]") == 1


@pytest.mark.parametrize("key", ["site", "node_key", "agent_key", "aggregation_key", "signature"])
def test_a_public_file_that_was_changed_on_its_way_is_refused(tmp_path, key):
    _, public = enrolled(tmp_path / "site")
    other, _ = enrolled(tmp_path / "other", "south")
    public.write_text(json.dumps(json.loads(public.read_text()) | {key: to_table(other)[key]}))
    refused("IMPOSSIBLE_VALUE", lambda: read_enrolment(public))


@pytest.mark.parametrize("name", KEYS)
def test_a_private_key_is_not_taken_for_the_public_file(tmp_path, name):
    enrolled(tmp_path / "site")
    refused("BAD_ENROLMENT", lambda: read_enrolment(tmp_path / "site" / name))


def test_keys_of_other_kinds_or_with_more_on_the_line_are_refused(tmp_path):
    own, _ = enrolled(tmp_path / "site")
    key = Ed25519PrivateKey.generate()
    for node, agent in (
        (own.agent_key, own.agent_key),
        (own.node_key, own.node_key),
        (own.node_key, f"{own.agent_key} comment"),
        (own.node_key, f"{own.agent_key}\n"),
        (own.node_key, public_line(key.public_key())),
    ):
        refused("IMPOSSIBLE_VALUE", lambda n=node, a=agent: Enrolment.sign("north", n, a, key))


def test_enroll_again_keeps_the_keys_and_force_makes_new_ones(tmp_path):
    first, public = enrolled(tmp_path / "site")
    before, text = secrets(tmp_path / "site"), public.read_text()
    assert enrolled(tmp_path / "site") == (first, public)
    assert (secrets(tmp_path / "site"), public.read_text()) == (before, text)
    enroll(tmp_path / "site" / "site.toml", "north", force=True)
    assert not set(secrets(tmp_path / "site").values()) & set(before.values())


def test_keys_that_the_operator_made_are_not_enrolled_as_the_sites_own(tmp_path, server):
    kit = tmp_path / "kits" / "old"
    before = secrets(kit)
    refused("KEYS_EXIST", lambda: enroll(kit / "site.toml"))
    assert secrets(kit) == before
    own, _ = enroll(kit / "site.toml", force=True)
    rotate_site(server, "old", tmp_path / "k", enrolment=own)
    assert load_sites(server)["old"].aggregation_key == own.aggregation_key


def test_no_kit_with_keys_replaces_the_sites_own_and_none_without_goes_elsewhere(tmp_path, server):
    own, _ = enrolled(tmp_path / "site")
    before = secrets(tmp_path / "site")
    other = provision(ProvisionRequest(tmp_path / "s2", tmp_path / "k2", ("north",), archive="tar.gz")).kits["north"]
    refused("KIT_OTHER_KEYS", lambda: unpack_kit(other, tmp_path / "site"))
    kit = add_sites(server, ("north",), tmp_path / "k", archive="tar.gz", enrolment=own)[0].kits["north"]
    refused("KIT_OTHER_KEYS", lambda: unpack_kit(kit, tmp_path / "empty"))
    enrolled(tmp_path / "other")
    refused("KIT_OTHER_KEYS", lambda: unpack_kit(kit, tmp_path / "other"))
    assert not (tmp_path / "empty").exists()
    assert secrets(tmp_path / "site") == before


def test_the_server_puts_no_key_of_its_own_in_an_enrolled_sites_place(tmp_path, server):
    own, _ = enrolled(tmp_path / "site")
    add_sites(server, ("north",), tmp_path / "k", enrolment=own)
    register = (server / "sites.json").read_bytes()
    refused("SITE_ENROLLED", lambda: rotate_site(server, "north", tmp_path / "k2"))
    again = ProvisionRequest(server, tmp_path / "k3", ("north",), force=True)
    refused("SITE_ENROLLED", lambda: provision(again))
    refused("SAME_KEYS", lambda: rotate_site(server, "north", tmp_path / "k4", enrolment=own))
    refused("OTHER_SITE", lambda: add_sites(server, ("south",), tmp_path / "k5", enrolment=own))
    copy = Enrolment.sign("south", own.node_key, own.agent_key, load_signing_key(tmp_path / "site" / "aggregation.key"))
    refused("KEY_TAKEN", lambda: add_sites(server, ("south",), tmp_path / "k6", enrolment=copy))
    assert (server / "sites.json").read_bytes() == register
    revoke_site(server, "north")
    refused("KEY_WITHDRAWN", lambda: add_sites(server, ("north",), tmp_path / "k7", enrolment=own))


def test_a_kit_without_keys_is_not_written_over_keys(tmp_path, server):
    """--out may be the folder in which the sites' own folders lie, on a machine where both roles try it."""
    own, _ = enrolled(tmp_path / "north")
    before = secrets(tmp_path / "north")
    refused("KIT_EXISTS", lambda: add_sites(server, ("north",), tmp_path, enrolment=own, force=True), DeploymentError)
    assert secrets(tmp_path / "north") == before
    assert "north" not in load_sites(server)


def test_peers_are_shown_as_sent_and_pinned_as_told(fresh_site, command):
    keys, sent = aggregation_keys(load_site(fresh_site)), fingerprint(Ed25519PrivateKey.generate().public_key())
    told = fingerprint(Ed25519PrivateKey.generate().public_key())
    (fresh_site.parent / "state").mkdir()
    keys.sent.write_text(json.dumps({"south": sent, "west": ""}))

    def rows():
        code, out, _ = command("peers", "show", "--site", fresh_site, "--json")
        return code, {row["site"]: row["state"] for row in json.loads(out)["peers"]}

    assert "Nothing is pinned" in command("peers", "show", "--site", fresh_site)[1]
    assert rows() == (0, {"south": "not pinned", "west": "not pinned"})
    assert command("peers", "pin", "south", told, "--yes", "--site", fresh_site)[0] == 0
    assert rows() == (1, {"south": "DIFFERS", "west": "not pinned"})
    assert command("peers", "pin", "south", "--yes", "--site", fresh_site)[0] == 0, "the one that was sent"
    assert (keys.pinned(), rows()[0]) == ({"south": sent}, 0)
    code, _, error = command("peers", "pin", "west", "--yes", "--site", fresh_site)
    assert (code, "NO_FINGERPRINT" in error) == (2, True)
    command("peers", "pin", "south", "--remove", "--yes", "--site", fresh_site)
    assert keys.pinned() == {}
    assert "peer_pinned" in (fresh_site.parent / "state" / "audit.jsonl").read_text()


@pytest.mark.parametrize(
    ("text", "mode", "code"),
    [
        ('south = "SHA256:short"', 0o640, "BAD_PINS"),
        ("south = 1", 0o640, "BAD_PINS"),
        ("", 0o660, "POLICY_NOT_PROTECTED"),
        ("south", 0o640, "BAD_TOML"),
    ],
)
def test_pins_that_cannot_be_trusted_stop_the_agent(fresh_site, text, mode, code):
    path = fresh_site.parent / "peers.toml"
    path.write_text(text)
    path.chmod(mode)
    refused(code, lambda: build_agent(load_site(fresh_site)))
