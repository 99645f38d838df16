"""A kit is unpacked safely: checked whole before anything is written, and never over what the site decided."""

import hashlib
import io
import stat
import tarfile

import pytest

from dpfpl_client.site.kit import unpack_kit
from dpfpl_common.errors import ConfigError
from dpfpl_server.sites.provision import ProvisionRequest, provision

GOOD = {
    "a/ca.crt": b"ca",
    "a/node.key": b"key",
    "a/agent.key": b"key",
    "a/site.toml": b'name = "a"\n[data]\nsource = "digits"\npath = ""\n',
    "a/policy.toml": b"",
}


@pytest.fixture
def kit(tmp_path):
    made = provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("a",), archive="tar.gz"))
    return made.kits["a"]


def tarred(path, members, change=None):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if change and change[0] == name:
                for key, value in change[1].items():
                    setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return path


def modes(folder):
    return {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}


def test_it_unpacks_with_modes_of_its_own(kit, tmp_path):
    folder, written = unpack_kit(kit, tmp_path / "site")
    assert modes(folder)["node.key"] == modes(folder)["agent.key"] == 0o600
    assert modes(folder)["policy.toml"] == 0o640
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {"ca.crt", "node.key", "site.toml", "policy.toml"} <= {p.name for p in written}


def test_by_default_into_a_folder_with_the_sites_name(kit):
    assert unpack_kit(kit)[0] == kit.parent / "a"


def test_one_changed_byte_is_found_by_the_checksum_beside_it(kit, tmp_path):
    content = bytearray(kit.read_bytes())
    content[len(content) // 2] ^= 1
    kit.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        unpack_kit(kit, tmp_path / "site")
    assert caught.value.code == "KIT_CHECKSUM"
    assert not (tmp_path / "site").exists()


def test_a_told_checksum_counts_more_than_the_one_beside_it(kit, tmp_path):
    with pytest.raises(ConfigError, match="SHA-256"):
        unpack_kit(kit, tmp_path / "site", "0" * 64)
    unpack_kit(kit, tmp_path / "site", hashlib.sha256(kit.read_bytes()).hexdigest().upper())


def test_O7_a_new_kit_renews_keys_and_keeps_what_the_site_wrote(kit, tmp_path):
    folder, _ = unpack_kit(kit, tmp_path / "site")
    old = [(folder / name).read_bytes() for name in ("node.key", "agent.key")]
    (folder / "policy.toml").write_text("strict")
    (folder / "state").mkdir()
    (folder / "state" / "ledger.sqlite").write_text("precious")
    request = ProvisionRequest(tmp_path / "server", tmp_path / "new", ("a",), archive="tar.gz", force=True)
    _, written = unpack_kit(provision(request).kits["a"], folder)
    new = [(folder / name).read_bytes() for name in ("node.key", "agent.key")]
    assert not set(new) & set(old)
    assert (folder / "policy.toml").read_text() == "strict"
    assert (folder / "state" / "ledger.sqlite").read_text() == "precious"
    assert not {"site.toml", "policy.toml"} & {p.name for p in written}


def test_the_kit_of_another_site_is_refused(kit, tmp_path):
    folder, _ = unpack_kit(kit, tmp_path / "site")
    key = (folder / "node.key").read_bytes()
    other = provision(ProvisionRequest(tmp_path / "server", tmp_path / "new", ("b",), archive="tar.gz")).kits["b"]
    with pytest.raises(ConfigError) as caught:
        unpack_kit(other, folder)
    assert caught.value.code == "OTHER_SITE"
    assert (folder / "node.key").read_bytes() == key


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../evil",
        "/etc/evil",
        "a/b/evil",
        "a/.hidden",
        "a/",
        "b/other",
        "a/x\n",
        "a\\evil",
        "plain",
        "a/-x",
    ],
)
def test_a_name_that_no_kit_has_writes_nothing(tmp_path, name):
    archive = tarred(tmp_path / "kit.tar.gz", GOOD | {name: b"x"})
    with pytest.raises(ConfigError) as caught:
        unpack_kit(archive, tmp_path / "site")
    assert caught.value.code == "BAD_KIT"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kit.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    change = ("a/node.key", {"type": kind, "linkname": "/etc/shadow", "size": 0})
    with pytest.raises(ConfigError, match="no plain file"):
        unpack_kit(tarred(tmp_path / "kit.tar.gz", GOOD, change), tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_bomb_is_refused_without_being_unfolded(tmp_path):
    big = b"\0" * (100 << 20)
    with pytest.raises(ConfigError, match="too large"):
        unpack_kit(tarred(tmp_path / "kit.tar.gz", {"a/ca.crt": big}), tmp_path / "site")


@pytest.mark.parametrize("without", ["a/ca.crt", "a/node.key", "a/agent.key", "a/site.toml", "a/policy.toml"])
def test_half_a_kit_is_named(tmp_path, without):
    members = {name: content for name, content in GOOD.items() if name != without}
    with pytest.raises(ConfigError, match=without.removeprefix("a/")):
        unpack_kit(tarred(tmp_path / "kit.tar.gz", members), tmp_path / "site")


@pytest.mark.parametrize("content", [b"", b"PK\3\4 broken", b"\x1f\x8b broken", b"hello"])
def test_what_is_no_archive_is_said_to_be_none(tmp_path, content):
    (tmp_path / "kit").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        unpack_kit(tmp_path / "kit", tmp_path / "site")
    assert caught.value.code == "BAD_KIT"


def test_the_command_unpacks_and_points_at_the_images(kit, tmp_path, image_folder, command):
    code, out, _ = command("init", "--kit", kit, "--into", tmp_path / "site", "--data", image_folder)
    assert code == 0
    assert str(image_folder) in (tmp_path / "site" / "site.toml").read_text()
    assert "check --site" in out
    code, _, err = command("init")
    assert (code, "--kit" in err) == (2, True)
