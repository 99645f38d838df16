"""``dpfpl-client register``: a site's images become the registered version of its data set."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpfpl_client.agent.audit import AUDIT_FILE, AuditLog
from dpfpl_client.agent.ledger.anchor import NO_EXAMPLES, Parts, Registry, StateLock
from dpfpl_client.agent.ledger.book import LEDGER_FILE, Ledger
from dpfpl_client.agent.ledger.file import canonical
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.data import DataProblem, ImageRecord, SiteData, list_classes, load_site_data
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.errors import ConfigError, DataError, StateError
from dpfpl_common.ops.files import make_folder_durably, write_durably

__all__ = [
    "Changes",
    "Manifest",
    "compare",
    "lost_ledger",
    "manifest_of",
    "open_ledger",
    "register_dataset",
    "register_site",
    "registered_manifest",
]


# The data set as it was registered: which images, in which part of the split, and which files could not be read.


UNREADABLE_RULES = ("skip", "refuse")
PARTS = ("train", "test", "neighbour_test")


@dataclass(frozen=True)
class Manifest:
    """One version of a data set. It holds file names, so it never leaves the site.

    Attributes:
        images: (digest of the pixels, what is said of them) by key, for each part of the split.
        unreadable: keys of files that could not be read.
        rule: what to do when a registered image cannot be read later: ``skip`` it, or ``refuse`` to serve.
        examples: identities of the examples of the training and of the held-back part, as just read; not kept in the
            file: the registry remembers those of all versions.
    """

    images: dict[str, dict[str, tuple[str, str]]]
    unreadable: tuple[str, ...] = ()
    rule: str = "skip"
    examples: Parts = NO_EXAMPLES

    @property
    def charged_digests(self) -> frozenset[str]:
        """What the ledger charges: the digests of the training images and of the held-back ones."""
        return frozenset(digest for part in ("train", "test") for digest, _ in self.images[part].values())

    def to_json(self) -> str:
        """Canonical JSON."""
        return canonical({"images": self.images, "unreadable": sorted(self.unreadable), "rule": self.rule})

    def digest(self) -> str:
        """sha256 of the canonical JSON; what the ledger records."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """What the ledger says about this version."""
        return {
            "manifest": self.digest(),
            "images": {part: len(images) for part, images in self.images.items()},
            "unreadable": len(self.unreadable),
            "rule": self.rule,
        }

    def write(self, path: Path) -> None:
        """Keep it; durable on return."""
        make_folder_durably(path.parent)
        write_durably(path, self.to_json().encode())


@dataclass(frozen=True)
class Changes:
    """How the images differ from the manifest, by key.

    Attributes:
        added: images that were not there.
        removed: images that are no longer there, or are now in another part of the split.
        changed: files with other pixels.
        relabelled: images under another class, or with another question or answer.
        unreadable: registered images that can no longer be read.
    """

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    relabelled: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def other_images(self) -> bool:
        """Whether it is another data set than the registered one."""
        return bool(self.added or self.removed or self.changed or self.relabelled)

    def sentence(self) -> str:
        """The same as a message."""
        if self.relabelled and not (self.added or self.removed or self.changed):
            return (
                f"The images are those that were registered, but not what is said of them: {self.words()}. A changed "
                "class_map, a renamed folder, an edited question or answer does that."
            )
        return f"The images are not those that were registered: {self.words()}."

    def words(self) -> str:
        """For the site's administrator, with the first few names."""
        parts = []
        for name in ("added", "removed", "changed", "relabelled", "unreadable"):
            keys: list[str] = getattr(self, name)
            if keys:
                more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
                parts.append(f"{len(keys)} {name} ({', '.join(map(repr, keys[:3]))}{more})")
        return ", ".join(parts)


def manifest_of(data: SiteData, rule: str = "skip") -> Manifest:
    """The manifest of what was just read."""
    images = {part: {r.key: (r.digest, _said(r)) for r in getattr(data, part)} for part in PARTS}
    training, held_back = (frozenset(_example(r, data.classes) for r in part) for part in (data.train, data.test))
    return Manifest(images, tuple(data.unreadable), rule, Parts(training, held_back))


def _said(record: ImageRecord) -> str:
    """The class, or question and answer, or the caption."""
    return f"{record.question}: {record.label}" if record.question else record.label


def _example(record: ImageRecord, classes: Sequence[str]) -> str:
    """What makes an example the same one in any version: its picture, and what is said of it where that is no class."""
    if classes:
        return record.digest
    said = record.question or record.label
    return f"{record.digest} {hashlib.sha256(said.encode()).hexdigest()}"


def compare(known: Manifest, now: Manifest) -> Changes:
    """What changed since the registration; a renamed file is the same image."""
    changes = Changes()
    before = Counter((part, *entry) for part in PARTS for entry in known.images[part].values())
    after = Counter((part, *entry) for part in PARTS for entry in now.images[part].values())
    gone, new = before - after, after - before
    keys_now = {key for part in PARTS for key in now.images[part]}
    told: set[str] = set()
    for part in PARTS:
        for key, entry in known.images[part].items():
            if (part, *entry) in gone:
                kind = "unreadable" if key in now.unreadable else "changed" if key in keys_now else "removed"
                if now.images[part].get(key, ("",))[0] == entry[0]:
                    kind = "relabelled"
                getattr(changes, kind).append(key)
                told.add(key)
    for part in PARTS:
        for key, entry in now.images[part].items():
            if (part, *entry) in new and key not in told:
                changes.added.append(key)
    return changes


# One ledger for one data set: images are registered once; changed or shared ones are noticed at every start.


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
    now = manifest_of(data)
    with registry.exclusive():
        ledger = _ledger(state, registry, now)
        try:
            if not ledger.datasets:
                register_dataset(state, registry, ledger, now, audit)
                return ledger, []
            return ledger, _warnings(registered_manifest(state, ledger), now)
        except BaseException:
            ledger.close()
            raise


def _ledger(state: Path, registry: Registry, manifest: Manifest) -> Ledger:
    """The site's ledger; a new one only for images that no other one is charged for."""
    path = state / LEDGER_FILE
    if not path.exists():
        _refuse_known_images(state, registry, manifest, "")
    return Ledger(path, registry)


def register_dataset(state: Path, registry: Registry, ledger: Ledger, manifest: Manifest, audit: AuditLog) -> None:
    """Make this the registered version of the ledger's data set; all versions are charged to the same ledger.

    Raises:
        StateError: DATASET_HAS_LEDGER, some of the images are charged to another ledger.
    """
    _refuse_known_images(state, registry, manifest, ledger.identity)
    moved = _edited_into_the_other_part(state, ledger, manifest)
    manifest.write(state / MANIFEST_FILE)
    moved += registry.remember_images(ledger.identity, state, manifest.charged_digests, manifest.examples)
    ledger.register(manifest.record(), moved)
    audit.write("dataset_registered", version=len(ledger.datasets), moved=moved, **manifest.record())


def _edited_into_the_other_part(state: Path, ledger: Ledger, now: Manifest) -> int:
    """How many names of one part's examples are names of other examples of the other part.

    An edited picture is another example, so its part is drawn again. A name that was used again counts too, which costs
    parallel composition and protects no less.
    """
    try:
        before = registered_manifest(state, ledger) if ledger.datasets else now
    except StateError:  # the list is gone: the registry alone knows what was in which part
        return 0
    return sum(
        len(before.images[part].keys() & now.images[other].keys())
        - sum(now.images[other].get(key) == entry for key, entry in before.images[part].items())
        for part, other in (("train", "test"), ("test", "train"))
    )


def registered_manifest(state: Path, ledger: Ledger) -> Manifest:
    """The version of the data set that the ledger was last told of.

    Raises:
        StateError: it is gone, or is another one.
    """
    path = state / MANIFEST_FILE
    try:
        table = json.loads(path.read_bytes())
        images = {part: {k: (str(d), str(n)) for k, (d, n) in table["images"][part].items()} for part in PARTS}
        manifest = Manifest(images, tuple(table["unreadable"]), str(table["rule"]))
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        manifest = None
    if manifest is None or manifest.digest() != ledger.datasets[-1]["manifest"]:
        raise StateError(
            code="MANIFEST_DAMAGED",
            message=f"{path} is missing or is not the list of images that the ledger recorded.",
            advice="Restore it from a backup, or look at the images and run: dpfpl-client register.",
        )
    return manifest


def _warnings(known: Manifest, now: Manifest) -> list[DataProblem]:
    """What the administrator should know; an error where the images may not be used."""
    changes = compare(known, now)
    if changes.other_images:
        raise DataError(
            code="DATASET_CHANGED",
            message=changes.sentence(),
            advice="Put them back, or register them as a new version under the same ledger: dpfpl-client register.",
        )
    if changes.unreadable and known.rule == "refuse":
        raise DataError(
            code="IMAGE_UNREADABLE",
            message=f"Registered images can no longer be read: {changes.words()}.",
            advice="Restore them; this site's registration says to refuse in this case.",
        )
    if not changes.unreadable:
        return []
    text = f"Registered images can no longer be read and are skipped, as was decided then: {changes.words()}."
    return [DataProblem("IMAGE_UNREADABLE", text)]


def _refuse_known_images(state: Path, registry: Registry, manifest: Manifest, own: str) -> None:
    """Refuse images that another ledger is charged for, and releases whose ledger is gone."""
    store = DiskStore(state)
    if not own and any(store.rounds(name) for name in store.experiments()):
        raise StateError(
            code="LEDGER_MISSING",
            message=f"{state} holds releases, but not the privacy ledger that charged them.",
            advice=f"Restore {LEDGER_FILE} from a backup, or: dpfpl-client ledger accept-rollback.",
        )
    for other, shared, where in registry.owners(manifest.charged_digests):
        if other != own:
            raise StateError(
                code="DATASET_HAS_LEDGER",
                message=f"{shared} of the images are charged to another privacy ledger, that of {where}.",
                advice="One data set has one ledger: use that state folder. If it is lost: dpfpl-client ledger "
                "accept-rollback. If this is meant to be another data set, remove these images from it.",
            )


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
        with registry.exclusive():
            ledger = _ledger(state, registry, manifest)
            try:
                changes = _changes(state, ledger, manifest)
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
    owners = Registry(settings.registry_folder).owners(manifest_of(data).charged_digests)
    if len(owners) != 1:
        raise StateError(
            code="NO_LEDGER" if not owners else "DATASET_HAS_LEDGER",
            message=f"The images of this site are charged to {len(owners)} ledgers.",
            advice="There is nothing to accept: start the agent."
            if not owners
            else "Restore the state folder from a backup.",
        )
    return owners[0][0]


def _changes(state: Path, ledger: Ledger, manifest: Manifest) -> str:
    if not ledger.datasets:
        return ""
    try:
        return compare(registered_manifest(state, ledger), manifest).words()
    except StateError:
        return "unknown, the earlier list of images is gone"
