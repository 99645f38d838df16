"""The keys that a site makes itself, whose private halves never leave it, and the kit that the operator hands over.

Nothing in a kit writes elsewhere than into the site's folder, and nothing of the site's is lost.
"""

import hashlib
import hmac
import io
import json
import re
import tarfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from dpfpl_client.site.settings import AgentSettings, ServerSettings, load_site
from dpfpl_common.config import to_table
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import SITE_NAME
from dpfpl_common.ops.files import make_folder_durably, write_durably
from dpfpl_common.secure.enrolment import Enrolment, public_line

__all__ = ["enroll", "unpack_kit"]

MAX_ARCHIVE_BYTES = 1 << 20
MAX_FILE_BYTES = 256 << 10
MAX_FILES = 32
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NEEDED = ("ca.crt", "site.toml", "policy.toml")
_PRIVATE = ("node.key", "agent.key")
"""In the kit of a site that did not make its keys itself."""
_KEPT = ("site.toml", "policy.toml")
"""What the site may have edited: a new kit replaces keys and certificates, never these."""
_SERVER = """
[server]
address = {address}
ca_certificate = "ca.crt"
node_key = "node.key"
"""


def enroll(site_file: Path, name: str = "", *, force: bool = False) -> tuple[Enrolment, Path]:
    """Make node, agent and aggregation key, mode 0600, and the public file; keys that were enrolled before are kept.

    Args:
        site_file: the site's site.toml; it may come later, with the operator's kit.
        name: the site's name, where there is no site.toml yet.
        force: make new keys.

    Returns:
        The public halves and the file that holds them: NAME.public.json beside site.toml.

    Raises:
        ConfigError: KEYS_EXIST, there are keys that were not all made here.
    """
    server, agent, folder = ServerSettings(), AgentSettings(), site_file.absolute().parent
    if site_file.exists():
        settings = load_site(site_file)
        name, server, agent = settings.name, settings.server, settings.agent
    if not SITE_NAME.fullmatch(name):
        raise ConfigError(
            code="SITE_NAME",
            message=f"The site's name is {name!r}, and there is no {site_file}.",
            advice="Give the name that you and the operator agreed on: --name hospital-a.",
        )
    node, own, aggregation = paths = [folder / p for p in (server.node_key, agent.key, agent.aggregation_key)]
    there = [path.name for path in paths if path.exists()]
    if there and len(there) < len(paths) and not force:
        raise ConfigError(
            code="KEYS_EXIST",
            message=f"{folder} has {', '.join(there)} already, which the operator may have made.",
            advice="With --force new keys replace them; the server refuses the site until its operator has run: "
            f"dpfpl-server sites rotate {name} --public-key {name}.public.json --out kits.",
        )
    if force or not there:
        make_folder_durably(folder)
        write_durably(node, _private(ec.generate_private_key(ec.SECP384R1()), PrivateFormat.OpenSSH))
        for path in (own, aggregation):
            write_durably(path, _private(Ed25519PrivateKey.generate(), PrivateFormat.PKCS8))
    signer, replies = (load_pem_private_key(path.read_bytes(), password=None) for path in (aggregation, own))
    assert isinstance(signer, Ed25519PrivateKey)
    assert isinstance(replies, Ed25519PrivateKey)
    enrolment = Enrolment.sign(name, _node_public_line(node), public_line(replies.public_key()), signer)
    public = folder / f"{name}.public.json"
    write_durably(public, (json.dumps(to_table(enrolment), indent=1) + "\n").encode(), 0o644)
    return enrolment, public


def _node_public_line(path: Path) -> str:
    """The public half of a node key."""
    key = load_ssh_private_key(path.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return public_line(key.public_key())


def _private(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey, form: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def unpack_kit(archive: Path, into: Path | None = None, sha256: str | None = None) -> tuple[Path, list[Path]]:
    """Unpack a kit, or put the new keys of one into a site's folder that is there already.

    The archive is read whole and checked before anything is written: its checksum (given, or in the file beside it),
    sizes, plain files only, one folder deep, only the names a kit has. Modes are set here, whatever the archive says:
    0600 for keys, 0640 for the policy. ``site.toml`` and ``policy.toml`` that are there already stay as they are, but
    that a site.toml which names no server gets the kit's.

    A kit without private keys is for a site that enrolled: it goes where its keys are, and one with keys never does.

    Args:
        archive: a .tar.gz.
        into: the site's folder; by default one with the site's name beside the archive.
        sha256: the checksum that the operator told over another way.

    Returns:
        The site's folder, and the files that were written.

    Raises:
        ConfigError: it is no kit, is damaged, or the folder belongs to another site.
    """
    content = _read(archive)
    _check_sum(archive, content, sha256)
    files = _members(archive, content)
    needed = (*_NEEDED, "node.pub") if not set(_PRIVATE) & set(files) else (*_NEEDED, *_PRIVATE)
    missing = [name for name in needed if name not in files]
    if missing:
        raise _bad(archive, f"lacks {', '.join(missing)}")
    site = _table(files["site.toml"], archive)["name"]
    folder = into if into is not None else archive.parent / site
    _refuse_other_site(folder, site)
    _refuse_other_keys(folder, files)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    written = []
    for name, data in files.items():
        path = folder / name
        if name in _KEPT and path.exists():
            if name == "site.toml" and "server" not in _table(path.read_bytes(), path):
                address = json.dumps(_table(data, archive)["server"]["address"])
                data = path.read_bytes().rstrip() + b"\n" + _SERVER.format(address=address).encode()
            else:
                continue
        write_durably(path, data, _mode(name))
        path.chmod(_mode(name))  # the umask may have taken bits away
        written.append(path)
    return folder, written


def _read(archive: Path) -> bytes:
    try:
        with archive.open("rb") as file:
            content = file.read(MAX_ARCHIVE_BYTES + 1)
    except OSError as error:
        raise _bad(archive, f"cannot be read ({error.strerror})") from None
    if len(content) > MAX_ARCHIVE_BYTES:
        raise _bad(archive, "is larger than any kit")
    return content


def _check_sum(archive: Path, content: bytes, sha256: str | None) -> None:
    beside = archive.with_name(f"{archive.name}.sha256")
    if sha256 is None and beside.is_file():
        sha256 = next(iter(beside.read_text(encoding="ascii", errors="replace").split()), "")
    if sha256 is None:
        return
    found = hashlib.sha256(content).hexdigest()
    if not hmac.compare_digest(found, sha256.strip().lower()):
        raise ConfigError(
            code="KIT_CHECKSUM",
            message=f"{archive} has the SHA-256 {found}, not the expected one.",
            advice="It was damaged or replaced in transit: do not use it, and ask the operator for another.",
        )


def _members(archive: Path, content: bytes) -> dict[str, bytes]:
    """The kit's files by name; nothing is written."""
    files: dict[str, bytes] = {}
    folders: set[str] = set()
    try:
        for name, data in _tar_members(archive, content):
            folder, _, file = name.partition("/")
            folders.add(folder)
            if not _FILE.fullmatch(folder) or not _FILE.fullmatch(file) or len(folders) > 1:
                raise _bad(archive, f"has the member {name[:80]!r}, which no kit has")
            if file in files or len(files) >= MAX_FILES:
                raise _bad(archive, "has a file twice or too many files")
            files[file] = data
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise _bad(archive, f"is no readable .tar.gz ({type(error).__name__})") from None
    return files


def _tar_members(archive: Path, content: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        for member in tar:
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise _bad(archive, f"has the member {member.name[:80]!r}, which is no plain file")
            file = tar.extractfile(member) if member.size <= MAX_FILE_BYTES else None
            if file is None:
                raise _bad(archive, f"has the member {member.name[:80]!r}, which is too large")
            yield member.name, file.read(MAX_FILE_BYTES)


def _table(site_toml: bytes, path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(site_toml.decode("utf-8"))
    except ValueError:
        table = {}
    if not isinstance(table.get("name"), str) or not _FILE.fullmatch(table["name"]):
        raise _bad(path, "has a site.toml without a usable name")
    return table


def _refuse_other_site(folder: Path, site: str) -> None:
    """Keys of one site must not land in the folder of another: its ledger and prompts belong to its name."""
    there = folder / "site.toml"
    if not there.exists():
        return
    known = _table(there.read_bytes(), there)["name"]
    if known != site:
        raise ConfigError(
            code="OTHER_SITE",
            message=f"{folder} belongs to the site {known!r}, the kit to {site!r}.",
            advice="Give the folder of the right site with --into, or another one.",
        )


def _refuse_other_keys(folder: Path, files: Mapping[str, bytes]) -> None:
    """No key of the operator's making replaces one that the site made, and no kit goes where its keys are not."""
    if "node.key" in files:
        if (folder / "aggregation.key").exists():
            raise ConfigError(
                code="KIT_OTHER_KEYS",
                message=f"The kit brings private keys, and {folder} has keys that were made there.",
                advice="Ask the operator for a kit without keys: dpfpl-server sites rotate NAME --public-key FILE.",
            )
        return
    key = folder / "node.key"
    if not key.exists() or _node_public_line(key) != files["node.pub"].decode(errors="replace").strip():
        raise ConfigError(
            code="KIT_OTHER_KEYS",
            message=f"The kit is for keys that a site made itself, and they are not in {folder}.",
            advice="Give the folder in which you ran dpfpl-client enroll with --into. If you made new keys since, send "
            "their public file to the operator, who makes another kit.",
        )


def _mode(name: str) -> int:
    if name.endswith(".key"):
        return 0o600
    return 0o640 if name == "policy.toml" else 0o644


def _bad(archive: Path, what: str) -> ConfigError:
    return ConfigError(code="BAD_KIT", message=f"{archive} {what}.", advice="Ask the operator for the kit again.")
