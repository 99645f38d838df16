"""Provision a federation: authority, server certificate and one kit per site; run again to add sites.

The server's folder holds ``ca.key``, ``ca.crt``, ``server.key``, ``server.crt``, ``federation.json`` (where sites
reach it) and ``sites.json``. ``ca.key`` may be kept elsewhere: only new certificates need it. The folder never holds a
site's private keys: the site makes them (``enrolments``), or they are written into its kit and nowhere else.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from dpfpl_common.errors import ConfigError, DeploymentError
from dpfpl_common.experiment import SITE_NAME
from dpfpl_common.secure.enrolment import Enrolment
from dpfpl_server.sites.certificates import (
    Issued,
    certificate_covers,
    load_authority,
    new_agent_key,
    new_authority,
    new_node_key,
    new_server_certificate,
    require_key,
)
from dpfpl_server.sites.kits import Kit, pack_kit, write_kit, write_private, write_public
from dpfpl_server.sites.register import Site, load_sites, register_lock, save_sites

__all__ = ["ProvisionRequest", "ProvisionResult", "load_place", "provision", "save_place", "validate_site_name"]

DEFAULT_FLEET_PORT = 9092
_PLACE = "federation.json"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|[0-9a-fA-F:]+")


@dataclass(frozen=True)
class ProvisionRequest:
    """What to provision.

    Args:
        server_folder: the operator's folder; created or extended.
        kits_folder: where the sites' kits go, one folder per site.
        sites: names of the sites to add.
        address: host name or IP address under which sites reach the server; written into the kits.
        port: port of the Fleet API there.
        more_addresses: further host names or IP addresses for the server's certificate.
        force: give sites that are provisioned already a new key (the old one stops working).
        archive: make each kit one file, ``tar.gz``, instead of a folder.
        ca_key: the authority's private key where it is not kept in the server's folder.
        enrolments: of the sites that made their keys themselves.
    """

    server_folder: Path
    kits_folder: Path
    sites: tuple[str, ...]
    address: str = "127.0.0.1"
    port: int = DEFAULT_FLEET_PORT
    more_addresses: tuple[str, ...] = ()
    force: bool = False
    archive: str = ""
    ca_key: Path | None = None
    enrolments: Mapping[str, Enrolment] = field(default_factory=dict)

    def kit_path(self, site: str) -> Path:
        """Where a site's kit goes."""
        return self.kits_folder / (f"{site}.{self.archive}" if self.archive else site)


@dataclass(frozen=True)
class ProvisionResult:
    """What was provisioned: new kits by site name, and the sites that were left alone."""

    kits: dict[str, Path]
    unchanged: tuple[str, ...]


def validate_site_name(name: str) -> str:
    """Return the name if it is a valid one.

    Raises:
        ConfigError: it is not lower case letters, digits and hyphens, at most 63, starting with a letter or digit.
    """
    if not SITE_NAME.fullmatch(name):
        raise ConfigError(
            code="SITE_NAME",
            message=f"{name!r} is not a site name.",
            advice="Use up to 63 lower case letters, digits and hyphens, starting with a letter or digit: hospital-a.",
        )
    return name


def provision(request: ProvisionRequest) -> ProvisionResult:
    """Create what is missing and never replace a key, except a site's with ``force``.

    Raises:
        ConfigError: a site name, address or port is invalid.
        DeploymentError: the server's folder has half of an authority, or a kit would overwrite a foreign key.
    """
    names = tuple(dict.fromkeys(validate_site_name(name) for name in request.sites))
    hosts = [_validate_host(host) for host in (request.address, *request.more_addresses)]
    if not 0 < request.port < 65536:
        raise ConfigError(
            code="PORT", message=f"{request.port} is not a port.", advice="Use a number from 1 to 65535; usual is 9092."
        )
    if request.archive not in ("", "tar.gz"):
        raise ConfigError(
            code="ARCHIVE_KIND", message=f"{request.archive!r} is not a kind of archive.", advice="Use tar.gz."
        )
    folder = request.server_folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)

    with register_lock(folder):
        return _provision(request, names, hosts)


def _provision(request: ProvisionRequest, names: tuple[str, ...], hosts: list[str]) -> ProvisionResult:
    folder = request.server_folder
    sites = load_sites(folder)
    wanted = [name for name in names if request.force or name not in sites]
    _refuse_foreign_keys(request, wanted)
    _refuse_lost_enrolments(request, wanted, sites)
    for name in wanted:
        _require_writable(request.kit_path(name))
    authority = _authority(folder, request.ca_key)
    _cover_hosts(folder, authority, hosts)
    save_place(folder, request.address, request.port)
    made = {}
    address = f"{_bracketed(request.address)}:{request.port}"
    for name in wanted:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if (own := request.enrolments.get(name)) is not None:
            made[name] = Kit(name, address, authority.public, f"{own.node_key}\n".encode())
            sites[name] = Site(name, own.node_key, now, None, own.agent_key, own.aggregation_key)
            continue
        node, agent = new_node_key(), new_agent_key()
        made[name] = Kit(name, address, authority.public, node.public, node.private, agent.private)
        sites[name] = Site(name, node.public.decode().strip(), now, agent_key=agent.public.decode().strip())
    # The register first: a key that the register does not know is useless, one that has no kit can be forced.
    save_sites(folder, sites)
    kits = {name: request.kit_path(name) for name in wanted}
    for name, kit in made.items():
        _write(kit, kits[name], request.archive)
    return ProvisionResult(kits, tuple(name for name in names if name not in kits))


def save_place(folder: Path, address: str, port: int) -> None:
    """Remember where sites reach the server, for the kits of later sites."""
    write_public(folder / _PLACE, (json.dumps({"address": address, "port": port}, indent=2) + "\n").encode())


def load_place(folder: Path) -> tuple[str, int]:
    """Address and port under which sites reach the server, as last provisioned.

    Raises:
        DeploymentError: nothing was provisioned here, or the file is damaged.
    """
    try:
        place = json.loads((folder / _PLACE).read_text(encoding="utf-8"))
        return str(place["address"]), int(place["port"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DeploymentError(
            code="NOT_PROVISIONED",
            message=f"{folder / _PLACE} does not say where sites reach this server.",
            advice="Run dpfpl-server provision, which writes it; it changes no key that is there.",
        ) from error


def _write(kit: Kit, path: Path, archive: str) -> None:
    """Write a kit's folder, or its archive; then the folder exists only while it is packed."""
    if not archive:
        write_kit(kit, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".kit-", dir=path.parent) as temporary:
        write_kit(kit, Path(temporary) / kit.name)
        pack_kit(Path(temporary) / kit.name, path)


def _require_writable(kit: Path) -> None:
    """Before a site is registered whose kit could not be written; an OSError that names the folder otherwise.

    Where the kit's folder is there, as a mounted volume is, the folder around it may be closed.
    """
    if not kit.is_dir():
        kit.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=kit if kit.is_dir() else kit.parent):
        pass


def _refuse_foreign_keys(request: ProvisionRequest, names: list[str]) -> None:
    """Refuse before anything is written if a kit's place holds a key that is not ours to replace."""
    for name in names:
        key = request.kit_path(name) if request.archive else request.kit_path(name) / "node.key"
        if key.exists() and (not request.force or (name in request.enrolments and not request.archive)):
            raise DeploymentError(
                code="KIT_EXISTS",
                message=f"{key} exists, and may be a key that is not this command's to replace.",
                advice="Choose another --out folder; --force replaces a key that was made here.",
            )


def _refuse_lost_enrolments(request: ProvisionRequest, names: list[str], sites: Mapping[str, Site]) -> None:
    """No key of ours takes the place of one that a site made itself, and no two sites have the same."""
    for name in names:
        own = request.enrolments.get(name)
        if own is None and name in sites and sites[name].aggregation_key:
            raise ConfigError(
                code="SITE_ENROLLED",
                message=f"The site {name!r} made its keys itself.",
                advice=f"Ask it for new ones (dpfpl-client enroll --force), then: dpfpl-server sites rotate {name} "
                f"--public-key {name}.public.json.",
            )
        if own is not None and own.site != name:
            raise ConfigError(
                code="OTHER_SITE",
                message=f"The public file is of the site {own.site!r}, not of {name!r}.",
                advice="Give the file of the right site, or the name that is in it.",
            )
        others = [site for site in sites.values() if site.name != name]
        taken = {key for site in others for key in (site.public_key, site.agent_key, site.aggregation_key)}
        if own is not None and taken & {own.node_key, own.agent_key, own.aggregation_key}:
            raise ConfigError(
                code="KEY_TAKEN",
                message=f"Another site has a key of {name!r}.",
                advice="Every site makes keys of its own: dpfpl-client enroll --force at the site.",
            )


def _authority(folder: Path, ca_key: Path | None) -> Issued:
    """Load or create the authority."""
    known = load_authority(folder, ca_key)
    if known is not None:
        return known
    authority = new_authority()
    write_private(folder / "ca.key", authority.private)
    write_public(folder / "ca.crt", authority.public)
    return authority


def _cover_hosts(folder: Path, authority: Issued, hosts: list[str]) -> None:
    """Keep the server's certificate if it covers the hosts, else issue one.

    A new certificate covers the new hosts and gets a new key. Sites trust the authority, so they notice nothing.
    """
    key, certificate = folder / "server.key", folder / "server.crt"
    if key.exists() and certificate.exists() and certificate_covers(certificate.read_bytes(), hosts):
        return
    require_key(authority, folder)
    issued = new_server_certificate(authority, hosts)
    write_private(key, issued.private)
    write_public(certificate, issued.public)


def _validate_host(host: str) -> str:
    if not _HOST.fullmatch(host):
        raise ConfigError(
            code="ADDRESS",
            message=f"{host!r} is neither a host name nor an IP address.",
            advice="Give the name or address under which the sites reach the server, without a port: fl.example.org.",
        )
    return host


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
