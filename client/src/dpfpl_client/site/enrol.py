"""``dpfpl-client enroll``: a site makes its keys itself; the private halves never leave it."""

import json
from pathlib import Path

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

__all__ = ["enroll", "node_public_line"]


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
    enrolment = Enrolment.sign(name, node_public_line(node), public_line(replies.public_key()), signer)
    public = folder / f"{name}.public.json"
    write_durably(public, (json.dumps(to_table(enrolment), indent=1) + "\n").encode(), 0o644)
    return enrolment, public


def node_public_line(path: Path) -> str:
    """The public half of a node key."""
    key = load_ssh_private_key(path.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return public_line(key.public_key())


def _private(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey, form: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())
