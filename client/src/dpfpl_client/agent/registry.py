"""What a machine remembers about its sites' ledgers outside their state folders: one file for each ledger.

It holds how far the ledger had come (:mod:`dpfpl_client.agent.anchor`) and which images it charges, so that an old
copy of a state folder, a clone of it, and a second state folder for the same images are all noticed. It notices nothing
that happens on another machine, or under a user who has a registry of their own.
"""

from pathlib import Path

from dpfpl_client.agent.anchor import FileAnchor
from dpfpl_client.agent.locks import Lock
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
