"""Add, revoke and rotate sites while the server runs, and list them with what the server sees of them."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dpfpl_common.errors import ConfigError, DeploymentError
from dpfpl_common.secure.enrolment import Enrolment, fingerprint
from dpfpl_server.sites.kits import write_public
from dpfpl_server.sites.provision import ProvisionRequest, ProvisionResult, load_place, provision
from dpfpl_server.sites.register import load_sites, register_lock, save_sites
from dpfpl_server.sites.superlink import open_control, register_sites

__all__ = ["SiteRow", "add_sites", "list_sites", "revoke_site", "revoked_sites", "rotate_site", "sync"]

_REVOKED = "revoked.json"
_NOT_RUNNING = ("NOT_STARTED", "CONTROL_UNREACHABLE")


@dataclass(frozen=True)
class SiteRow:
    """A site for people: ``status`` is online, offline, registered (never connected), pending or unknown.

    ``pending`` means that the running server has not been told of this key yet, ``unknown`` that no server runs.
    ``aggregation_key`` is the fingerprint of a site that made its keys itself, as its people should say it.
    """

    name: str
    status: str
    key: str
    provisioned_at: str
    node_id: int | None
    aggregation_key: str


def add_sites(
    server_folder: Path,
    names: tuple[str, ...],
    kits_folder: Path,
    *,
    archive: str = "",
    ca_key: Path | None = None,
    force: bool = False,
    enrolment: Enrolment | None = None,
) -> tuple[ProvisionResult, bool]:
    """Make kits for further sites of a provisioned federation, and tell a running server.

    With ``enrolment``, of the one site that is named, the kit holds no keys.

    Returns:
        What was made, and whether a running server accepts the sites from now on; else it will once it is started.

    Raises:
        DpfplError: as :func:`dpfpl_server.sites.provision.provision`.
    """
    address, port = load_place(server_folder)
    if enrolment is not None and _short(enrolment.node_key) in {row["key"] for row in revoked_sites(server_folder)}:
        raise ConfigError(
            code="KEY_WITHDRAWN",
            message=f"The node key of {enrolment.site!r} was withdrawn, and a withdrawn key never comes back.",
            advice="The site must make new ones: dpfpl-client enroll --force.",
        )
    request = ProvisionRequest(
        server_folder=server_folder,
        kits_folder=kits_folder,
        sites=names,
        address=address,
        port=port,
        archive=archive,
        ca_key=ca_key,
        force=force,
        enrolments={} if enrolment is None else dict.fromkeys(names, enrolment),
    )
    result = provision(request)
    return result, sync(server_folder)


def rotate_site(
    server_folder: Path, name: str, kits_folder: Path, *, archive: str = "", enrolment: Enrolment | None = None
) -> tuple[ProvisionResult, bool]:
    """Give a site new keys; a running server refuses the old ones from now on.

    The site's ledger and prompts are untouched: they lie at the site and belong to its data, not to its key.

    Returns:
        As :func:`add_sites`.

    Raises:
        ConfigError: there is no such site.
    """
    old = _known(server_folder, name)
    if enrolment is not None and enrolment.node_key == old:
        raise ConfigError(
            code="SAME_KEYS",
            message=f"{name!r} has these keys already.",
            advice="The site must make new ones first: dpfpl-client enroll --force.",
        )
    result = add_sites(server_folder, (name,), kits_folder, archive=archive, force=True, enrolment=enrolment)
    _remember(server_folder, name, old, "rotated")
    return result


def revoke_site(server_folder: Path, name: str) -> bool:
    """Take a site out of the register for good; tells whether a running server refuses its key from now on.

    Its key is never accepted again. The site may be added again later, with a new key.

    Raises:
        ConfigError: there is no such site.
    """
    with register_lock(_folder(server_folder)):
        key = _known(server_folder, name)
        sites = load_sites(server_folder)
        del sites[name]
        save_sites(server_folder, sites)
    _remember(server_folder, name, key, "revoked")
    return sync(server_folder)


def list_sites(server_folder: Path) -> list[SiteRow]:
    """Every site of the register, by name, with what a running server says of it."""
    seen = _seen(server_folder)
    return [
        SiteRow(
            name=site.name,
            status="unknown" if seen is None else seen.get(site.public_key, "pending"),
            key=_short(site.public_key),
            provisioned_at=site.provisioned_at,
            node_id=site.node_id,
            aggregation_key=fingerprint(site.aggregation_key) if site.aggregation_key else "",
        )
        for site in load_sites(server_folder).values()
    ]


def revoked_sites(server_folder: Path) -> list[dict[str, str]]:
    """Every key that was revoked or rotated away, the oldest first: name, key, at, why."""
    try:
        found = json.loads((server_folder / _REVOKED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError:
        raise DeploymentError(
            code="SITES_DAMAGED",
            message=f"{server_folder / _REVOKED} cannot be read.",
            advice="Restore it from a backup; it is a record only, the register itself is sites.json.",
        ) from None
    return [dict(row) for row in found]


def sync(server_folder: Path) -> bool:
    """Make a running server accept exactly the sites of the register; False if none runs."""
    try:
        register_sites(server_folder)
    except DeploymentError as error:
        if error.code in _NOT_RUNNING:
            return False
        raise
    return True


def _folder(server_folder: Path) -> Path:
    if not server_folder.is_dir():
        raise DeploymentError(
            code="NOT_PROVISIONED", message=f"{server_folder} is no folder.", advice="Run dpfpl-server provision first."
        )
    return server_folder


def _known(server_folder: Path, name: str) -> str:
    """The public key of a site of the register."""
    sites = load_sites(server_folder)
    if name not in sites:
        raise ConfigError(
            code="UNKNOWN_SITE",
            message=f"There is no site {name!r} in the register of {server_folder}.",
            advice=f"Known: {', '.join(sorted(sites)) or 'none'}.",
        )
    return sites[name].public_key


def _seen(server_folder: Path) -> dict[str, str] | None:
    """Status by public key, as the running server has it; None if none runs."""
    try:
        with open_control(server_folder) as control:
            return {node.public_key: node.status for node in control.nodes()}
    except DeploymentError as error:
        if error.code in _NOT_RUNNING:
            return None
        raise


def _remember(server_folder: Path, name: str, key: str, why: str) -> None:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    rows = [*revoked_sites(server_folder), {"name": name, "key": _short(key), "at": at, "why": why}]
    write_public(server_folder / _REVOKED, (json.dumps(rows, indent=2) + "\n").encode())


def _short(public_key: str) -> str:
    """The beginning of a key's SHA-256, enough to tell two keys apart by telephone."""
    return hashlib.sha256(public_key.encode()).hexdigest()[:16]
