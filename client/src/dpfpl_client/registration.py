"""``dpfpl-client register``: a site's images become the registered version of its data set."""

import dataclasses
from typing import Any

from dpfpl_client.agent.audit import AUDIT_FILE, AuditLog
from dpfpl_client.agent.dataset import LEDGER_FILE, new_ledger, register_dataset, registered_manifest
from dpfpl_client.agent.ledger import Ledger
from dpfpl_client.agent.locks import StateLock
from dpfpl_client.agent.manifest import UNREADABLE_RULES, compare, manifest_of
from dpfpl_client.agent.registry import Registry
from dpfpl_client.data import list_classes, load_site_data
from dpfpl_client.site_settings import SiteSettings
from dpfpl_common.errors import ConfigError, StateError

__all__ = ["lost_ledger", "register_site"]


def register_site(settings: SiteSettings, unreadable: str = "skip") -> dict[str, Any]:
    """Register what the data folder holds now, as a new version under the site's ledger.

    Args:
        settings: the site.
        unreadable: ``skip`` or ``refuse``, for registered images that cannot be read later.

    Returns:
        The version, its counts, and in words how it differs from the one before.

    Raises:
        StateError: an agent is running; the images are charged to another ledger.
    """
    if unreadable not in UNREADABLE_RULES:
        raise ConfigError(
            code="IMPOSSIBLE_VALUE",
            message=f"--unreadable is {unreadable!r}.",
            advice=f"Expected one of: {', '.join(UNREADABLE_RULES)}.",
        )
    state, registry = settings.state_folder, Registry(settings.registry_folder)
    lock = StateLock(state)
    try:
        data = load_site_data(settings.data, list_classes(settings.data), state / "cache" / "images.json")
        manifest = manifest_of(data, unreadable)
        path = state / LEDGER_FILE
        with registry.exclusive():
            ledger = Ledger(path, registry) if path.exists() else new_ledger(state, registry, manifest)
            try:
                changes = _changes(settings, ledger, manifest)
                register_dataset(state, registry, ledger, manifest, AuditLog(state / AUDIT_FILE))
                return {**manifest.record(), "version": len(ledger.datasets), "changes": changes}
            finally:
                ledger.close()
    finally:
        lock.release()


def lost_ledger(settings: SiteSettings) -> str:
    """The identity of the ledger that this site's images are charged to, for a site whose ledger's file is gone.

    Raises:
        StateError: the registry knows none, or several.
    """
    data = load_site_data(settings.data, list_classes(settings.data))
    owners = Registry(settings.registry_folder).owners(manifest_of(data).training_digests)
    if len(owners) != 1:
        raise StateError(
            code="NO_LEDGER" if not owners else "DATASET_HAS_LEDGER",
            message=f"The images of this site are charged to {len(owners)} ledgers.",
            advice="There is nothing to accept: start the agent."
            if not owners
            else "Restore the state folder from a backup.",
        )
    return owners[0][0]


def _changes(settings: SiteSettings, ledger: Ledger, manifest: Any) -> str:
    if not ledger.datasets:
        return ""
    try:
        known = registered_manifest(settings.state_folder, ledger)
    except StateError:
        return "unknown, the earlier list of images is gone"
    return compare(known, dataclasses.replace(manifest, rule=known.rule)).words()
