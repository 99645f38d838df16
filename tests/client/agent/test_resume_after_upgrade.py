"""O6: an experiment that is resumed after both ends were upgraded ends as one that nothing happened to."""

import numpy as np
import pytest

import dpfpl_common
from dpfpl_bench.simulation.in_process import InProcessGrid
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.ledger.book import SCORES, Ledger
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_common import PROTOCOL_VERSION
from dpfpl_common.wire import codec as wire
from dpfpl_server.federation.rounds import DPFPLStrategy
from dpfpl_server.runs.folder import RunFolder


class Federation:
    """Two sites and a server of which nothing lives but their folders."""

    def __init__(self, place, backbone, features, experiment):
        self.place, self.backbone, self.features, self.experiment = place, backbone, features, experiment

    def run(self, on_checkpoint):
        """Start everything from the disk, run to the end or to what ``on_checkpoint`` raises, and stop everything."""
        ledgers = {site: self.ledger(site) for site in self.experiment.sites}
        agents = {site: self.agent(site, ledger) for site, ledger in ledgers.items()}
        folder = RunFolder(self.place / "run")
        folder.begin(self.experiment)
        grid = InProcessGrid(agents)
        strategy = DPFPLStrategy(
            folder.experiment(),
            grid.nodes,
            keys=None,
            checkpoint=folder.load_checkpoint(),
            on_checkpoint=lambda checkpoint: on_checkpoint(folder, checkpoint),
        )
        try:
            return strategy.run(grid).global_context
        finally:
            for ledger in ledgers.values():
                ledger.close()

    def ledger(self, site):
        (self.place / site).mkdir(parents=True, exist_ok=True)
        return Ledger(self.place / site / "ledger.sqlite")

    def agent(self, site, ledger):
        store = DiskStore(self.place / site)
        return SiteAgent(site, self.backbone, self.features, None, ledger, store, SeededRandomness(7))

    def charges(self):
        found = {}
        for site in self.experiment.sites:
            ledger = self.ledger(site)
            found[site] = [(charge.round, bool(charge.release_digest)) for charge in ledger.charges()]
            ledger.close()
        return found


class StoppedError(Exception):
    pass


def keep(folder, checkpoint):
    folder.save_checkpoint(checkpoint)


@pytest.mark.privacy
@pytest.mark.parametrize("kept", [True, False])
def test_O6_a_run_resumed_after_both_ends_were_upgraded_ends_as_if_they_were_not(
    tmp_path, backbone, features, experiment, monkeypatch, kept
):
    """StoppedError in round 2, once with its checkpoint and once before it, when the sites had released already."""
    whole = Federation(tmp_path / "whole", backbone, features, experiment)
    expected = whole.run(keep)
    assert np.abs(expected).max() > 0

    def stop(folder, checkpoint):
        if checkpoint.round < 2 or kept:
            keep(folder, checkpoint)
        if checkpoint.round == 2:
            raise StoppedError

    upgraded = Federation(tmp_path / "upgraded", backbone, features, experiment)
    with pytest.raises(StoppedError):
        upgraded.run(stop)
    monkeypatch.setattr(wire, "PROTOCOL_VERSION", PROTOCOL_VERSION + 1)
    monkeypatch.setattr(dpfpl_common, "__version__", "9.0.0")
    np.testing.assert_array_equal(upgraded.run(keep), expected)
    paid = [(1, True), (2, True), (3, True), (SCORES, True)]
    assert upgraded.charges() == whole.charges() == dict.fromkeys(experiment.sites, paid)
