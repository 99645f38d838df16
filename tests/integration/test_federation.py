"""Two deployed sites learn exactly what the simulation learns, also where any of the programs is killed (L1, L2, F16,
F17).

Sites are seeded and their data public, so an experiment that was disturbed must end bit for bit as the one that was
not: the same prompts, and each site charged once for each round and once for its scores.
"""

import dataclasses
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from federations import ROUNDS, SEED, SITES, Federation, Kill, all_happened
from running import alive, command_line

from dpfpl_bench.simulation.in_process import Simulation, SimulationOutcome, prepare_sites
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.agent.ledger.book import SCORES
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.data import DataSettings, load_pool, partition_sites
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.node.supernode import wait_until_connected
from dpfpl_client.use.prompt import load_prompt
from dpfpl_common.errors import RoundError
from dpfpl_common.experiment import Experiment, PrivacySettings
from dpfpl_common.ops.guard import descendants
from dpfpl_common.ops.processes import wait_until
from dpfpl_server.runs.supervise import Limits

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.privacy]

ORPHAN_S = 30.0
CHARGED = (*range(1, ROUNDS + 1), SCORES)
SERVERAPP = [("before checkpoint", 2), ("after checkpoint", 2)]
SERVERAPP_LONG = [
    ("TRAINING", 1),
    ("ROUND_DONE", 1),
    ("before checkpoint", ROUNDS),
    ("after checkpoint", ROUNDS),
    ("EVALUATING", ROUNDS),
    ("FINISHED", ROUNDS),
]
SUPERLINK_LONG = [("TRAINING", 1), ("before checkpoint", 2), ("after checkpoint", 3), ("EVALUATING", ROUNDS)]
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
    """Agents that wait where a file ``hold`` tells them to, at the moment when the noise of a round is drawn."""

    agent_program = HELD_AGENT

    def hold(self) -> None:
        for file in self.files.values():
            (file.parent / "hold").touch()

    def computing(self) -> bool:
        return all((file.parent / "computing").exists() for file in self.files.values())

    def let_go(self) -> None:
        for file in self.files.values():
            (file.parent / "hold").unlink()
            (file.parent / "computing").unlink()

    def clientapps(self, site: str) -> list[int]:
        """Processes that answer one message: the warm node's forks of its executor, or Flower's own command."""
        if self.nodes[site].poll() is not None:
            return []
        below = descendants(self.nodes[site].pid)
        if b"warm_node" in command_line(below[0]):
            return below[2:]
        return [pid for pid in below if b"flwr-clientapp" in command_line(pid)]

    def releases(self, name: str) -> list[str]:
        """The digest of each site's first release, once both are committed; they are what the stores hold."""
        wait_until(
            lambda: all([c.round for c in self.charges(site, name) if c.release_digest] == [1] for site in SITES),
            timeout_s=60,
            what="both agents to finish for nobody",
        )
        digests = [self.charges(site, name)[0].release_digest for site in SITES]
        records = [DiskStore(self.state(site)).read(name, 1) for site in SITES]
        assert [record and record.digest() for record in records] == digests
        return digests


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeldFederation]:
    federation = HeldFederation(tmp_path_factory.mktemp("federation"))
    with federation.group:
        federation.start()
        federation.run("whole")
        yield federation
    assert [alive(federation.marks[site]) for site in SITES] == [{}, {}]


def test_deployed_over_grpc_and_simulated_give_the_same_prompts_and_class_vectors(federation: Federation) -> None:
    outcome = simulate(federation.experiment("whole"))
    simulated = outcome.checkpoint.global_context
    np.testing.assert_allclose(federation.context("whole"), simulated, rtol=0, atol=2e-5)
    assert np.abs(simulated).max() > 1e-2, "the comparison would mean nothing if nothing had been learned"
    for site in SITES:
        np.testing.assert_allclose(personal(federation, site, "whole"), outcome.personal[site], rtol=0, atol=2e-5)
    result = federation.folder("whole").read_json("result.json")
    assert result["transport"] == "grpc+tls"
    assert result["node_authentication"] is True
    assert [entry["sites"] for entry in result["rounds"]] == [sorted(SITES)] * ROUNDS
    assert len(result["privacy"]["epsilons"]) == 3
    assert (federation.folder("whole").path / "report.html").exists()
    federation.charged_once("whole", CHARGED)

    privacy = PrivacySettings(mechanism="one_shot", trust="local", noise_multiplier=0.5, nominal_site_size=600)
    vectors = dataclasses.replace(federation.experiment("vectors"), privacy=privacy)
    federation.run(vectors)
    assert_same_class_vectors(federation, vectors)


def personal(federation: Federation, site: str, name: str) -> np.ndarray:
    record = DiskStore(federation.state(site)).read(name, ROUNDS)
    assert record is not None
    return record.state.context


def assert_same_class_vectors(federation: Federation, experiment: Experiment) -> None:
    backbone, simulated = load_backbone("embedded"), simulate(experiment).checkpoint
    deployed = federation.folder(experiment.name).load_checkpoint()
    assert deployed is not None
    assert deployed.evidence.chosen(experiment) == simulated.evidence.chosen(experiment) == "evidence"
    for site in SITES:
        np.testing.assert_allclose(deployed.evidence.rows[site], simulated.evidence.rows[site], rtol=0, atol=1e-3)
        prompt = load_prompt(federation.files[site].parent, experiment.name)
        assert prompt.choice is not None
        choice = dataclasses.replace(prompt.choice, pool=simulated.evidence.packed(experiment, site))
        expected = dataclasses.replace(prompt, global_context=simulated.global_context, choice=choice)
        found, wanted = prompt.head(backbone), expected.head(backbone)
        assert found is not None
        assert wanted is not None
        np.testing.assert_allclose(found.vectors, wanted.vectors, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.bias, wanted.bias, rtol=0, atol=1e-2)


def simulate(experiment: Experiment) -> SimulationOutcome:
    """The same experiment in process."""
    torch.set_num_threads(1)
    backbone = load_backbone("embedded")
    pool = load_pool(DataSettings(source="digits"), experiment.classes)
    data = partition_sites(pool, experiment.classes, "pathological", len(SITES), 0)
    sites = prepare_sites(data, experiment.classes, FeatureCache(None, backbone), SITES)
    return Simulation(backbone, sites, SEED).run(experiment)


def as_if_nothing_had_happened(federation: Federation, name: str) -> None:
    np.testing.assert_array_equal(federation.context(name), federation.context("whole"))
    for site in SITES:
        np.testing.assert_array_equal(personal(federation, site, name), personal(federation, site, "whole"))
    federation.charged_once(name, CHARGED)
    result, whole = (federation.folder(of).read_json("result.json") for of in (name, "whole"))
    assert [entry["round"] for entry in result["rounds"]] == list(range(1, ROUNDS + 1))
    assert [entry["sites"] for entry in result["rounds"]] == [list(SITES)] * ROUNDS
    assert result["accuracy"] == whole["accuracy"]
    assert result["privacy"] == whole["privacy"]


def outcomes(federation: Federation, name: str) -> list[str]:
    """How its Flower runs ended."""
    return [attempt.outcome for attempt in federation.folder(name).store.attempts()]


def long(moments: list[tuple[str, int]]) -> list[object]:
    return [pytest.param([moment], marks=pytest.mark.long) for moment in moments]


def named(moments: list[tuple[str, int]]) -> str:
    return "-".join(f"{moment} {number}" for moment, number in moments).lower().replace(" ", "-").replace("_", "-")


@pytest.mark.parametrize("moments", [SERVERAPP, *long(SERVERAPP_LONG)], ids=named)
def test_L2_the_serverapp_is_killed_and_the_run_resumed(federation: Federation, moments: list[tuple[str, int]]) -> None:
    name = f"app-{named(moments)}"
    federation.kill_at(name, *(Kill(*moment) for moment in moments))
    federation.run(name)
    assert all_happened(federation.folder(name).path)
    *earlier, last = outcomes(federation, name)
    assert last == "completed"
    assert earlier in (["crashed"] * len(moments), [])  # killed after the last word: nothing is left to do
    as_if_nothing_had_happened(federation, name)


@pytest.mark.parametrize("moments", [[("TRAINING", 2)], *long(SUPERLINK_LONG)], ids=named)
def test_L1_the_superlink_is_killed_restarted_and_the_run_goes_on(
    federation: Federation, moments: list[tuple[str, int]]
) -> None:
    name = f"link-{named(moments)}"
    federation.kill_at(name, *(Kill(*moment, federation.superlink_pids()) for moment in moments))
    restarter = federation.restart_superlink_when_dead()
    federation.run(name)
    restarter.join()
    assert outcomes(federation, name)[-1] == "completed"  # the ServerApp bears a SuperLink that is away for a while
    as_if_nothing_had_happened(federation, name)


def test_L1_resumed_by_hand(federation: Federation) -> None:
    """Without supervision the run ends failed; ``resume`` continues from the last committed round."""
    name = "by-hand"
    federation.kill_at(name, Kill("TRAINING", 3))
    with pytest.raises(RoundError) as caught:
        federation.run(name, Limits(restarts=0))
    assert caught.value.code == "RUN_FAILED"
    checkpoint = federation.folder(name).load_checkpoint()
    assert checkpoint is not None
    assert checkpoint.round == 2
    federation.run(name)
    as_if_nothing_had_happened(federation, name)


def test_an_agent_is_killed_between_two_rounds(federation: Federation) -> None:
    victim = federation.agents["north"]
    federation.kill_at("agent", Kill("after checkpoint", 1, (descendants(victim.pid)[0],)))
    federation.run_kept("agent")
    assert victim.poll() == 128 + signal.SIGKILL
    as_if_nothing_had_happened(federation, "agent")


@pytest.mark.parametrize(
    ("supernode", "clientapp"), [("north", "south"), pytest.param("south", "north", marks=pytest.mark.long)]
)
def test_F16_F17_a_killed_supernode_and_a_killed_clientapp_leave_no_orphan_and_what_was_computed_is_kept(
    federation: HeldFederation, supernode: str, clientapp: str
) -> None:
    """One of each in one round: the second question, or the next attempt, is answered from what the agents kept.

    Runs last: it exchanges the second site's SuperNode for Flower's own command.
    """
    name = f"without-{supernode}"
    federation.nodes["south"].stop()
    federation.group.processes.remove(federation.nodes["south"])
    wait_until_connected(federation.start_node_again("south", warm=False))
    of = federation.experiment(name)
    of = dataclasses.replace(of, rounds=dataclasses.replace(of.rounds, number=2, deadline=90.0))
    federation.hold()
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(federation.run, of)
        wait_until(
            federation.computing, timeout_s=60, what="both agents to compute", processes=federation.group.processes
        )
        survivor = descendants(federation.nodes[clientapp].pid)[0]
        (victim,) = federation.clientapps(clientapp)
        assert len(federation.clientapps(supernode)) == 1
        os.kill(descendants(federation.nodes[supernode].pid)[0], signal.SIGKILL)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not alive(federation.marks[supernode]), timeout_s=ORPHAN_S, what="no orphan")
        federation.let_go()
        kept = federation.releases(name)
        assert federation.nodes[supernode].wait(10) is not None
        federation.group.processes.remove(federation.nodes[supernode])
        wait_until_connected(federation.start_node_again(supernode), timeout_s=120)
        result = run.result(240)
    # Flower tells of a killed ClientApp after about a minute; the server asks a silent site again before, at half of
    # the deadline. The other site is lost to the round if Flower gave up its node before that, and answers otherwise.
    events = federation.folder(name).events()
    abandoned = [list(event["dropped"]) for event in events if event["phase"] == "ROUND_ABANDONED"]
    assert abandoned in ([], [[supernode]])
    assert [entry["sites"] for entry in result["rounds"]] == [list(SITES)] * 2
    federation.charged_once(name, (1, 2, SCORES))  # nothing is paid twice
    assert [federation.charges(site, name)[0].release_digest for site in SITES] == kept
    assert descendants(federation.nodes[clientapp].pid)[0] == survivor
    wait_until(
        lambda: not any(federation.clientapps(site) for site in SITES), timeout_s=ORPHAN_S, what="the last ClientApps"
    )
