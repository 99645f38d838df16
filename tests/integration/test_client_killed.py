"""F16, F17: kill -9 of a SuperNode or a ClientApp while the agent computes; the release is kept and served later.

One site answers from our warm process, the other from Flower's own command. Agents are the product's, but for a wait at
the moment when the noise of a round is drawn, so that what is killed is killed in the middle.
"""

import dataclasses
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killed_federation import SITES, Federation, command_line, experiment

from dpfpl_client.agent.ledger.anchor import Registry
from dpfpl_client.agent.ledger.book import SCORES, Charge, Ledger
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.node.supernode import wait_until_connected
from dpfpl_client.site.settings import load_site
from dpfpl_common.ops.guard import descendants
from dpfpl_common.ops.processes import ManagedProcess, wait_until
from dpfpl_server.runs.supervise import run_experiment

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.privacy]

ORPHAN_S = 30.0
HELD_AGENT = """
import sys, time
from pathlib import Path
from dpfpl_client.learning.step import SeededRandomness

kit, real = Path(sys.argv[-1]).parent, SeededRandomness.for_round

def for_round(self, site, number):
    if (kit / "hold").exists():
        (kit / "computing").touch()
        while (kit / "hold").exists():
            time.sleep(0.05)
    return real(self, site, number)

SeededRandomness.for_round = for_round
from dpfpl_client.cli.main import main
main()
"""


class HeldFederation(Federation):
    """Agents that wait where a file ``hold`` tells them to, and SuperNodes whose processes can be found."""

    agent_program = HELD_AGENT

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.mark = uuid.uuid4().hex

    def start_node(self, site: str, *, warm: bool | None = None, **more: Any) -> ManagedProcess:
        """The first site's is warm, the second one Flower's own command."""
        (load_site(self.kit(site)).state_folder / "logs" / "supernode.log").unlink(missing_ok=True)
        marked = {"DPFPL_TEST_MARK": f"{self.mark}-{site}"}
        return super().start_node(site, warm=site == SITES[0] if warm is None else warm, extra_environment=marked)

    def start_again(self, site: str) -> None:
        """A killed SuperNode's place is taken by ours: Flower's own command gives up, for a minute, because the server
        still counts the connection before."""
        assert self.nodes[site].wait(10) is not None
        self.group.processes.remove(self.nodes[site])
        wait_until_connected(self.start_node(site, warm=True), timeout_s=120)

    def clientapps(self, site: str) -> list[int]:
        """Processes that answer one message: the warm node's forks of its executor, or Flower's own command."""
        if self.nodes[site].poll() is not None:
            return []
        below = descendants(self.nodes[site].pid)
        if b"warm_node" in command_line(below[0]):
            return below[2:]
        return [pid for pid in below if b"flwr-clientapp" in command_line(pid)]

    def alive(self, site: str) -> list[str]:
        """Everything that a site's SuperNode ever started and that still runs, orphans too."""
        mark, found = f"DPFPL_TEST_MARK={self.mark}-{site}".encode(), []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                marked = mark in (entry / "environ").read_bytes().split(b"\0")
                if marked and b") Z " not in (entry / "stat").read_bytes():
                    found.append(command_line(int(entry.name)).replace(b"\0", b" ").decode()[:150])
            except OSError:
                continue
        return found

    def hold(self) -> None:
        for kit in self.kits:
            (kit.parent / "computing").unlink(missing_ok=True)
            (kit.parent / "hold").touch()

    def wait_until_held(self) -> None:
        wait_until(
            lambda: all((kit.parent / "computing").exists() for kit in self.kits),
            timeout_s=60,
            what="both agents to compute",
            processes=self.group.processes,
        )

    def let_go(self) -> None:
        for kit in self.kits:
            (kit.parent / "hold").unlink()

    def site_charges(self, kit: Path, name: str) -> list[Charge]:
        settings = load_site(kit)
        ledger = Ledger(settings.state_folder / "ledger.sqlite", Registry(settings.registry_folder), observe=True)
        try:
            return [charge for charge in ledger.charges() if charge.experiment == name]
        finally:
            ledger.close()

    def releases(self, name: str) -> list[str]:
        """The digest of each site's one release, once both are committed; they are what the stores hold."""
        wait_until(
            lambda: all(
                [c.round for c in self.site_charges(kit, name) if c.release_digest] == [1] for kit in self.kits
            ),
            timeout_s=60,
            what="both agents to finish for nobody",
        )
        digests = []
        for kit in self.kits:
            (charge,) = self.site_charges(kit, name)
            record = DiskStore(load_site(kit).state_folder).read(name, 1)
            assert record is not None
            assert record.digest() == charge.release_digest
            digests.append(charge.release_digest)
        return digests

    def run_aside(self, name: str, deadline: float) -> "Run":
        of = experiment(name)
        rounds = dataclasses.replace(of.rounds, number=2, deadline=deadline)
        run = Run(self, dataclasses.replace(of, rounds=rounds))
        run.start()
        return run


class Run(threading.Thread):
    """An experiment that runs beside the test."""

    def __init__(self, federation: HeldFederation, of: Any) -> None:
        super().__init__(daemon=True)
        self.federation, self.of = federation, of
        self.result: dict[str, Any] = {}

    def run(self) -> None:
        folder = self.federation.folder(self.of.name).path
        self.result = run_experiment(self.of, self.federation.server, folder)

    def abandoned(self) -> list[dict[str, str]]:
        """Why sites were missing in the attempts that came to nothing."""
        events = self.federation.folder(self.of.name).events()
        return [event["dropped"] for event in events if event["phase"] == "ROUND_ABANDONED"]

    def ended_well(self, kept: list[str]) -> None:
        """Both rounds hold both sites, the first with the releases computed for nobody; nothing is paid twice."""
        self.join(240)
        assert [entry["sites"] for entry in self.result.get("rounds", [])] == [list(SITES)] * 2
        for kit, digest in zip(self.federation.kits, kept, strict=True):
            charges = self.federation.site_charges(kit, self.of.name)
            assert [charge.round for charge in charges] == [1, 2, SCORES]
            assert charges[0].release_digest == digest
            assert charges[1].release_digest
            assert charges[2].release_digest


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeldFederation]:
    federation = HeldFederation(tmp_path_factory.mktemp("client-killed"))
    with federation.group:
        federation.start()
        yield federation
    assert [federation.alive(site) for site in SITES] == [[], []]


@pytest.mark.parametrize(
    ("supernode", "clientapp"), [("north", "south"), pytest.param("south", "north", marks=pytest.mark.long)]
)
def test_F16_F17_a_killed_supernode_and_a_killed_clientapp_leave_no_orphan_and_what_was_computed_is_kept(
    federation: HeldFederation, supernode: str, clientapp: str
) -> None:
    """One of each in one round: the second question, or the next attempt, is answered from what the agents kept."""
    federation.hold()
    run = federation.run_aside(f"without-{supernode}", deadline=90.0)
    federation.wait_until_held()
    survivor = descendants(federation.nodes[clientapp].pid)[0]
    (victim,) = federation.clientapps(clientapp)
    assert len(federation.clientapps(supernode)) == 1
    os.kill(descendants(federation.nodes[supernode].pid)[0], signal.SIGKILL)
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    while federation.alive(supernode):
        assert time.monotonic() - began < ORPHAN_S, federation.alive(supernode)
        time.sleep(0.1)
    federation.let_go()
    kept = federation.releases(run.of.name)
    federation.start_again(supernode)
    run.ended_well(kept)
    # Flower tells of a killed ClientApp after about a minute; the server asks a silent site again before, at half of
    # the deadline. The other site is lost to the round if Flower gave up its node before that, and answers otherwise.
    assert [list(missing) for missing in run.abandoned()] in ([], [[supernode]])
    assert descendants(federation.nodes[clientapp].pid)[0] == survivor
    wait_until(
        lambda: not any(federation.clientapps(site) for site in SITES), timeout_s=ORPHAN_S, what="the last ClientApps"
    )
