"""A site whose state folder, or its records without the ledger, is put back later."""

import shutil

import pytest

from dpfpl_client.agent.ledger.anchor import Registry
from dpfpl_client.agent.ledger.book import LEDGER_FILE, Ledger
from dpfpl_common.errors import StateError

PARTS = ("whole folder", "records alone")


class PutBack:
    """``made`` gives the site around a ledger and its state folder; ``site`` is what it gave last."""

    def __init__(self, folder, made):
        self.state, self.backup, self.registry = folder / "north", folder / "backup", Registry(folder / "registry")
        self.state.mkdir()
        self.made = made
        self.start()

    def start(self):
        self.ledger = Ledger(self.state / LEDGER_FILE, self.registry)
        self.site = self.made(self.ledger, self.state)
        return self.site

    def keep(self):
        shutil.copytree(self.state, self.backup)

    def put_back(self, part):
        self.ledger.close()
        for file in self.backup.iterdir() if part == "whole folder" else [self.backup / "experiments"]:
            if file.is_dir():
                shutil.rmtree(self.state / file.name)
            file.rename(self.state / file.name)
        if part == "whole folder":
            with pytest.raises(StateError, match="LEDGER_ROLLED_BACK"):
                self.start()
            Ledger.accept_rollback(self.state / LEDGER_FILE, self.registry)
        return self.start()
