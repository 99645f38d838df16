"""What a machine remembers about its sites' ledgers outside their state folders: one file for each ledger.

It holds how far the ledger had come (:mod:`dpfpl_client.agent.anchor`) and which images it charges, so that an old
copy of a state folder, a clone of it, and a second state folder for the same images are all noticed. It notices nothing
that happens on another machine, or under a user who has a registry of their own.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpfpl_client.agent.anchor import FileAnchor
from dpfpl_client.agent.locks import Lock
from dpfpl_common.durable import make_folder_durably, write_durably
from dpfpl_common.errors import StateError

__all__ = ["Registry"]


class Registry:
    """The folder ``folder``; made, for this user alone, when something is first written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def anchor(self, ledger: str) -> FileAnchor:
        """How far the ledger with this identity had come."""
        return FileAnchor(self.folder / f"{ledger}.anchor.json")

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

    def remember_images(self, ledger: str, state: Path, digests: frozenset[str]) -> None:
        """Note that these images, too, are charged to the ledger; durable on return."""
        path = self.folder / f"{ledger}.images.json"
        _, known = _images(path) if path.exists() else ("", frozenset[str]())
        content = {"state": str(state), "images": sorted(known | digests)}
        write_durably(path, json.dumps(content).encode())

    def owners(self, digests: frozenset[str]) -> list[tuple[str, int, str]]:
        """The ledgers that are charged for any of these images: identity, how many of them, and its state folder."""
        found = []
        for path in sorted(self.folder.glob("*.images.json")) if digests else []:
            where, known = _images(path)
            shared = len(known & digests)
            if shared:
                found.append((path.name.removesuffix(".images.json"), shared, where))
        return found


def _images(path: Path) -> tuple[str, frozenset[str]]:
    try:
        table = json.loads(path.read_bytes())
        return str(table["state"]), frozenset(map(str, table["images"]))
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise StateError(
            code="REGISTRY_UNREADABLE",
            message=f"{path} cannot be read ({error}).",
            advice="Restore the registry folder from a backup.",
        ) from None
