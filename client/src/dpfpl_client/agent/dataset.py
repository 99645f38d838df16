"""One ledger for one data set: images are registered once; changed or shared ones are noticed at every start."""

from pathlib import Path

from dpfpl_client.agent.audit import AuditLog
from dpfpl_client.agent.ledger import LEDGER_FILE, Ledger
from dpfpl_client.agent.manifest import Changes, Manifest, compare, load_manifest, manifest_of
from dpfpl_client.agent.registry import Registry
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.data import DataProblem, SiteData
from dpfpl_common.errors import DataError, StateError

__all__ = [
    "LEDGER_FILE",
    "changes_since_registration",
    "new_ledger",
    "open_ledger",
    "register_dataset",
    "registered_manifest",
]

MANIFEST_FILE = "dataset.json"


def open_ledger(state: Path, registry: Registry, data: SiteData, audit: AuditLog) -> tuple[Ledger, list[DataProblem]]:
    """The ledger that these images are charged to; begun, and the images registered, where neither exists.

    Args:
        state: the state folder, locked by the caller.
        registry: what this machine remembers of ledgers.
        data: the images as just read.
        audit: where a registration is recorded.

    Returns:
        The ledger, and warnings for the administrator.

    Raises:
        StateError: LEDGER_MISSING, DATASET_HAS_LEDGER, MANIFEST_DAMAGED or what ``Ledger`` raises.
        DataError: DATASET_CHANGED or IMAGE_UNREADABLE.
    """
    path, now = state / LEDGER_FILE, manifest_of(data)
    with registry.exclusive():
        ledger = Ledger(path, registry) if path.exists() else new_ledger(state, registry, now)
        try:
            if not ledger.datasets:
                register_dataset(state, registry, ledger, now, audit)
                return ledger, []
            return ledger, _warnings(registered_manifest(state, ledger), now)
        except BaseException:
            ledger.close()
            raise


def new_ledger(state: Path, registry: Registry, manifest: Manifest) -> Ledger:
    """Begin a ledger for images that no other one is charged for.

    Raises:
        StateError: LEDGER_MISSING or DATASET_HAS_LEDGER.
    """
    _refuse_known_images(state, registry, manifest, "")
    return Ledger(state / LEDGER_FILE, registry)


def register_dataset(state: Path, registry: Registry, ledger: Ledger, manifest: Manifest, audit: AuditLog) -> None:
    """Make this the registered version of the ledger's data set; all versions are charged to the same ledger.

    Raises:
        StateError: DATASET_HAS_LEDGER, some of the images are charged to another ledger.
    """
    _refuse_known_images(state, registry, manifest, ledger.identity)
    manifest.write(state / MANIFEST_FILE)
    registry.remember_images(ledger.identity, state, manifest.training_digests)
    ledger.register(manifest.record())
    audit.write("dataset_registered", version=len(ledger.datasets), **manifest.record())


def registered_manifest(state: Path, ledger: Ledger) -> Manifest:
    """The version of the data set that the ledger was last told of."""
    return load_manifest(state / MANIFEST_FILE, str(ledger.datasets[-1]["manifest"]))


def changes_since_registration(state: Path, ledger: Ledger, data: SiteData) -> Changes:
    """How the images differ from the registered ones."""
    return compare(registered_manifest(state, ledger), manifest_of(data))


def _warnings(known: Manifest, now: Manifest) -> list[DataProblem]:
    """What the administrator should know; an error where the images may not be used."""
    changes = compare(known, now)
    if changes.other_images:
        raise DataError(
            code="DATASET_CHANGED",
            message=f"The images are not those that were registered: {changes.words()}.",
            advice="Put them back, or register them as a new version under the same ledger: dpfpl-client register.",
        )
    if changes.unreadable and known.rule == "refuse":
        raise DataError(
            code="IMAGE_UNREADABLE",
            message=f"Registered images can no longer be read: {changes.words()}.",
            advice="Restore them; at the registration it was decided to refuse then.",
        )
    if not changes.unreadable:
        return []
    text = f"Registered images can no longer be read and are skipped, as was decided then: {changes.words()}."
    return [DataProblem("IMAGE_UNREADABLE", "warning", text)]


def _refuse_known_images(state: Path, registry: Registry, manifest: Manifest, own: str) -> None:
    """Refuse images that another ledger is charged for, and releases whose ledger is gone."""
    store = DiskStore(state)
    if not own and any(store.rounds(name) for name in store.experiments()):
        raise StateError(
            code="LEDGER_MISSING",
            message=f"{state} holds releases, but not the privacy ledger that charged them.",
            advice=f"Restore {LEDGER_FILE} from a backup, or: dpfpl-client ledger accept-rollback.",
        )
    for other, shared, where in registry.owners(manifest.training_digests):
        if other != own:
            raise StateError(
                code="DATASET_HAS_LEDGER",
                message=f"{shared} of the training images are charged to another privacy ledger, that of {where}.",
                advice="One data set has one ledger: use that state folder. If it is lost: dpfpl-client ledger "
                "accept-rollback. Images that are meant to be others must not be among them.",
            )
