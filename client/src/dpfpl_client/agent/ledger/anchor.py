"""What a machine remembers about its sites' ledgers outside their state folders: one file for each ledger.

It holds how far the ledger had come and which images it charges, so that an old
copy of a state folder, a clone of it, and a second state folder for the same images are all noticed. It notices nothing
that happens on another machine, or under a user who has a registry of their own.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpfpl_common.errors import StateError
from dpfpl_common.ops.files import is_full, make_folder_durably, write_durably
from dpfpl_common.privacy.accounting import PrivacyEvent

__all__ = [
    "NO_EXAMPLES",
    "Anchor",
    "ExperimentTotal",
    "Kind",
    "Lock",
    "Locks",
    "Parts",
    "Registry",
    "Snapshot",
    "StateLock",
    "event_of",
    "events_from_json",
    "events_to_json",
    "kind_of",
    "missing_from",
]


# One agent for one state folder and one ledger: flocks, so that a killed holder leaves nothing to clean up.


class Lock:
    """An flock on a file."""

    def __init__(self, path: Path, error: StateError) -> None:
        """Take the lock at once, or raise ``error``."""
        make_folder_durably(path.parent)  # or a loss of power might take the whole ledger, folder and all
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise error from None

    def release(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)


class StateLock(Lock):
    """One agent per state folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder / "agent.lock",
            StateError(
                code="STATE_LOCKED",
                message=f"Another agent is already using {folder}.",
                advice="Stop it first, or give this site a state folder of its own.",
            ),
        )


class Locks:
    """All locks of one agent."""

    def __init__(self, *locks: Lock) -> None:
        self._locks = list(locks)

    def add(self, lock: Lock) -> None:
        """One more."""
        self._locks.append(lock)

    def release(self) -> None:
        """Let another agent take over."""
        while self._locks:
            self._locks.pop().release()


# Remembers outside the state folder how far a ledger had come, so that an old copy put back is noticed.
#
# The anchor is written after the ledger and before anything is released: it is never ahead of a ledger that was left
# alone.


@dataclass(frozen=True)
class ExperimentTotal:
    """What one experiment was charged by then: its last round, and all its events."""

    last_round: int = 0
    events: tuple[PrivacyEvent, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """How far a ledger had come.

    Attributes:
        sequence: its last record.
        head: that record's hash.
        experiments: what each experiment was charged; enough to charge it again if the ledger forgets.
    """

    sequence: int
    head: str
    experiments: Mapping[str, ExperimentTotal] = field(default_factory=dict)


class Anchor:
    """The last snapshot, in a file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Snapshot | None:
        """The last snapshot, or None if there never was one.

        Raises:
            StateError: it is there and cannot be read.
        """
        try:
            table = json.loads(self._path.read_bytes())
            experiments = {
                name: ExperimentTotal(int(entry["last_round"]), events_from_json(entry["events"]))
                for name, entry in table["experiments"].items()
            }
            return Snapshot(int(table["sequence"]), str(table["head"]), experiments)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise StateError(
                code="ANCHOR_UNREADABLE",
                message=f"{self._path}, which remembers how far the privacy ledger had come, cannot be read ({error}).",
                advice="Restore it, or remove it and run: dpfpl-client ledger accept-rollback.",
            ) from None

    def advance(self, snapshot: Snapshot) -> None:
        """Remember a later snapshot; durable on return.

        Raises:
            StateError: it cannot be written; then nothing may be released.
        """
        table = {
            "sequence": snapshot.sequence,
            "head": snapshot.head,
            "experiments": {
                name: {"last_round": total.last_round, "events": events_to_json(total.events)}
                for name, total in snapshot.experiments.items()
            },
        }
        try:
            make_folder_durably(self._path.parent)
            write_durably(self._path, json.dumps(table).encode())
        except OSError as error:
            if is_full(error):
                raise StateError(
                    code="STORAGE_FULL",
                    message=f"The disk of {self._path} is full.",
                    advice="Free disk space at the site; nothing was released.",
                ) from None
            raise StateError(
                code="ANCHOR_UNWRITABLE",
                message=f"{self._path} cannot be written ({error.strerror}).",
                advice="Free disk space, correct the folder's permissions, or name another: registry in site.toml. "
                "Until then nothing may be released.",
            ) from None


def missing_from(ledger: Snapshot, anchor: Snapshot, *, forked: bool) -> dict[str, ExperimentTotal]:
    """What the anchor knows as spent and the ledger does not, by experiment; the most that it can be.

    Args:
        ledger: how far the ledger says it is.
        anchor: how far it had come.
        forked: the ledger was used further after the two had parted. Then nothing in the ledger is sure to be part of
            what the anchor knows, so all that the anchor knows counts as missing.
    """
    missing: dict[str, ExperimentTotal] = {}
    for name, total in anchor.experiments.items():
        known = ledger.experiments.get(name, ExperimentTotal())
        have = {} if forked else {kind_of(event): event.steps for event in known.events}
        lost = tuple(
            event_of(kind_of(event), event.steps - have.get(kind_of(event), 0))
            for event in total.events
            if event.steps > have.get(kind_of(event), 0)
        )
        if lost or total.last_round > known.last_round:
            missing[name] = ExperimentTotal(total.last_round, lost)
    return missing


def events_to_json(events: tuple[PrivacyEvent, ...]) -> list[list[Any]]:
    """Events as lists of adversary, mechanism, noise multiplier, sample rate, part, steps."""
    return [[*kind_of(event), event.steps] for event in events]


def events_from_json(rows: list[list[Any]]) -> tuple[PrivacyEvent, ...]:
    """The inverse of ``events_to_json``."""
    return tuple(event_of((str(a), str(m), float(z), float(q), str(p)), int(steps)) for a, m, z, q, p, steps in rows)


Kind = tuple[str, str, float, float, str]
"""What makes two events of one kind, so that their steps add up."""


def kind_of(event: PrivacyEvent) -> Kind:
    """Adversary, mechanism, noise multiplier, sample rate and part."""
    return (event.adversary, event.mechanism, event.noise_multiplier, event.sample_rate, event.part)


def event_of(kind: Kind, steps: int) -> PrivacyEvent:
    """That many steps of this kind."""
    adversary, mechanism, noise_multiplier, sample_rate, part = kind
    return PrivacyEvent(adversary, mechanism, noise_multiplier, sample_rate, steps, part)


class Registry:
    """The folder ``folder``; made, for this user alone, when something is first written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def anchor(self, ledger: str) -> Anchor:
        """How far the ledger with this identity had come."""
        return Anchor(self.folder / f"{ledger}.anchor.json")

    def hold(self, ledger: str) -> Lock:
        """Keep other agents from this ledger, also those on a copy of its state folder.

        Raises:
            StateError: LEDGER_IN_USE.
        """
        return Lock(
            self.folder / f"{ledger}.lock",
            StateError(
                code="LEDGER_IN_USE",
                message="Another agent is using this privacy ledger, or a copy of it.",
                advice="Run one agent for one data set; stop the other one.",
            ),
        )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep all others from registering images meanwhile; waits for its turn.

        Raises:
            StateError: ANCHOR_UNWRITABLE, the folder cannot be made or written.
        """
        try:
            make_folder_durably(self.folder)
            descriptor = os.open(self.folder / "registry.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(
                code="ANCHOR_UNWRITABLE",
                message=f"The registry {self.folder} cannot be written ({error.strerror}).",
                advice="Name a folder outside the state folder that this user may write: registry in site.toml, or "
                "DPFPL_REGISTRY.",
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def remember_images(self, ledger: str, state: Path, digests: frozenset[str], examples: "Parts") -> int:
        """Note that these images, too, are charged to the ledger; durable on return.

        Returns:
            How many examples are in the other part of the division than in an earlier version.
        """
        path = self.folder / f"{ledger}.images.json"
        _, known, before = _images(path) if path.exists() else ("", frozenset[str](), NO_EXAMPLES)
        training, held_back = before.training | examples.training, before.held_back | examples.held_back
        content = {
            "state": str(state),
            "images": sorted(known | digests),
            "training": sorted(training),
            "held_back": sorted(held_back),
        }
        write_durably(path, json.dumps(content).encode())
        return len((training & held_back) - (before.training & before.held_back))

    def owners(self, digests: frozenset[str]) -> list[tuple[str, int, str]]:
        """The ledgers that are charged for any of these images: identity, how many of them, and its state folder."""
        found = []
        for path in sorted(self.folder.glob("*.images.json")) if digests else []:
            where, known, _ = _images(path)
            shared = len(known & digests)
            if shared:
                found.append((path.name.removesuffix(".images.json"), shared, where))
        return found


@dataclass(frozen=True)
class Parts:
    """Identities of the examples that are, or ever were, in the training part and in the held-back part."""

    training: frozenset[str] = frozenset()
    held_back: frozenset[str] = frozenset()


NO_EXAMPLES = Parts()


def _images(path: Path) -> tuple[str, frozenset[str], Parts]:
    try:
        table = json.loads(path.read_bytes())
        images, training, held_back = (frozenset(map(str, table[key])) for key in ("images", "training", "held_back"))
        return str(table["state"]), images, Parts(training, held_back)
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise StateError(
            code="REGISTRY_UNREADABLE",
            message=f"{path} cannot be read ({error}).",
            advice="Restore the registry folder from a backup.",
        ) from None
