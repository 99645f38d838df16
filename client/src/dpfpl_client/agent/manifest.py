"""The data set as it was registered: which images, in which part of the split, and which files could not be read."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpfpl_client.agent.chain import canonical
from dpfpl_client.data import SiteData
from dpfpl_common.durable import make_folder_durably, write_durably
from dpfpl_common.errors import StateError

__all__ = ["UNREADABLE_RULES", "Changes", "Manifest", "compare", "load_manifest", "manifest_of"]

UNREADABLE_RULES = ("skip", "refuse")
PARTS = ("train", "test", "neighbour_test")


@dataclass(frozen=True)
class Manifest:
    """One version of a data set. It holds file names, so it never leaves the site.

    Attributes:
        images: (digest of the pixels, label) by key, for each part of the split.
        unreadable: keys of files that could not be read.
        rule: what to do when a registered image cannot be read later: ``skip`` it, or ``refuse`` to serve.
    """

    images: dict[str, dict[str, tuple[str, str]]]
    unreadable: tuple[str, ...] = ()
    rule: str = "skip"

    @property
    def training_digests(self) -> frozenset[str]:
        """What the ledger charges: the digests of the training images."""
        return frozenset(digest for digest, _ in self.images["train"].values())

    def counts(self) -> dict[str, dict[str, int]]:
        """Images by part and label."""
        return {part: dict(Counter(label for _, label in images.values())) for part, images in self.images.items()}

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
        removed: images that are no longer there, or are now in another part of the split or under another label.
        changed: files with other pixels.
        unreadable: registered images that can no longer be read.
    """

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def other_images(self) -> bool:
        """Whether it is another data set than the registered one."""
        return bool(self.added or self.removed or self.changed)

    def words(self) -> str:
        """For the site's administrator, with the first few names."""
        parts = []
        for name in ("added", "removed", "changed", "unreadable"):
            keys: list[str] = getattr(self, name)
            if keys:
                more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
                parts.append(f"{len(keys)} {name} ({', '.join(map(repr, keys[:3]))}{more})")
        return ", ".join(parts)


def manifest_of(data: SiteData, rule: str = "skip") -> Manifest:
    """The manifest of what was just read."""
    images = {part: {r.key: (r.digest, r.label) for r in getattr(data, part)} for part in PARTS}
    return Manifest(images, tuple(data.unreadable), rule)


def compare(known: Manifest, now: Manifest) -> Changes:
    """What changed since the registration; a renamed file is the same image."""
    changes = Changes()
    before = Counter((part, *entry) for part in PARTS for entry in known.images[part].values())
    after = Counter((part, *entry) for part in PARTS for entry in now.images[part].values())
    gone, new = before - after, after - before
    keys_now = {key for part in PARTS for key in now.images[part]}
    keys_before = {key for part in PARTS for key in known.images[part]}
    for part in PARTS:
        for key, entry in known.images[part].items():
            if (part, *entry) in gone:
                kind = "unreadable" if key in now.unreadable else "changed" if key in keys_now else "removed"
                getattr(changes, kind).append(key)
        for key, entry in now.images[part].items():
            if (part, *entry) in new and key not in keys_before:
                changes.added.append(key)
    return changes


def load_manifest(path: Path, digest: str) -> Manifest:
    """The manifest that the ledger recorded under ``digest``.

    Raises:
        StateError: it is gone, or is another one.
    """
    try:
        table = json.loads(path.read_bytes())
        images = {part: {k: (str(d), str(n)) for k, (d, n) in table["images"][part].items()} for part in PARTS}
        manifest = Manifest(images, tuple(table["unreadable"]), str(table["rule"]))
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        manifest = None
    if manifest is None or manifest.digest() != digest:
        raise StateError(
            code="MANIFEST_DAMAGED",
            message=f"{path} is missing or is not the list of images that the ledger recorded.",
            advice="Restore it from a backup, or look at the images and run: dpfpl-client register.",
        )
    return manifest
