"""The operator's register of sites: ``sites.json`` in the server's folder."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpfpl_common.errors import DeploymentError
from dpfpl_server.sites.kits import write_public

__all__ = ["Site", "enrolled_sites", "load_sites", "node_ids", "register_lock", "save_sites"]

_FILE = "sites.json"


@dataclass(frozen=True)
class Site:
    """One provisioned site.

    Args:
        name: its name.
        public_key: its node key, one OpenSSH line.
        provisioned_at: when, ISO 8601, UTC.
        node_id: Flower's identity for it, once a SuperLink has registered it.
        agent_key: public key of its agent's signatures, one OpenSSH line; empty if it was provisioned before there were
            signatures.
        aggregation_key: public key of its part in secure sums, one OpenSSH line; empty if it did not make its keys
            itself.
    """

    name: str
    public_key: str
    provisioned_at: str
    node_id: int | None = None
    agent_key: str = ""
    aggregation_key: str = ""


def load_sites(folder: Path) -> dict[str, Site]:
    """Read the register; a folder without one has no sites.

    Raises:
        DeploymentError: the file is damaged.
    """
    path = folder / _FILE
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {name: Site(name=name, **entry) for name, entry in entries.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DeploymentError(
            code="SITES_DAMAGED",
            message=f"{path} cannot be read: {error}.",
            advice="Restore it from a backup; sites whose entry is lost must be provisioned again.",
        ) from error


def save_sites(folder: Path, sites: dict[str, Site]) -> None:
    """Replace the register."""
    entries = {name: {k: v for k, v in asdict(site).items() if k != "name"} for name, site in sorted(sites.items())}
    write_public(folder / _FILE, (json.dumps(entries, indent=2) + "\n").encode())


def withdrawn_sites(folder: Path, sites: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Which of a run's sites the register does not know any more as when it began, with a code and what happened.

    Args:
        folder: of the server.
        sites: node id of each of the run's sites, as ``{"node": id}``.
    """
    try:
        known = load_sites(folder)
    except DeploymentError:
        return {}  # half written or unreadable: then nothing is known, and nobody is taken for gone
    found = {}
    for name, site in sites.items():
        if name not in known:
            found[name] = ("REVOKED", f"{name} was revoked by the operator")
        elif known[name].node_id not in (None, site["node"]):
            found[name] = ("KEY_REPLACED", f"{name} was given a new key; dpfpl-server resume takes it in")
    return found


def node_ids(folder: Path) -> dict[str, int]:
    """Return Flower's node id of every site that is registered with the SuperLink."""
    return {name: site.node_id for name, site in load_sites(folder).items() if site.node_id is not None}


def enrolled_sites(folder: Path) -> set[str]:
    """The sites that made their keys themselves, and so can take part in secure sums that the operator cannot read."""
    return {name for name, site in load_sites(folder).items() if site.aggregation_key}


@contextmanager
def register_lock(folder: Path) -> Iterator[None]:
    """Held while the register is changed; two commands at once would lose the sites of one. Not to be nested."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
