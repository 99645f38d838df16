"""Three deployed sites that enrolled and pinned each other sum in secret what the simulation sums; and SE6: kill -9 of
an agent, a SuperNode or the ServerApp in every step of a sum.

Their noise is seeded: an experiment that was disturbed ends with the very sums of one that was not, so no sum was made
of other integers, with masks left in it, or twice.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from enrolled_sites import enrol_sites
from federations import SEED, Federation, Kill, all_happened, order

from dpfpl_bench.simulation.in_process import Simulation, SimulationOutcome, prepare_sites
from dpfpl_client.agent.audit import AUDIT_FILE, AuditLog
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.agent.keys import aggregation_keys
from dpfpl_client.agent.ledger.book import ROWS, SCORES, VOTE
from dpfpl_client.agent.ledger.view import summarise, verify
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.data import DataSettings, list_classes, load_pool, partition_sites
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import RoundError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.ops.guard import descendants
from dpfpl_common.secure import STEPS, SUMS

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.privacy]

VICTIM = "north"
CHARGED = (ROWS, VOTE, 1, 2, SCORES)
POLICY = """\
experiments = ["*"]
max_epsilon_per_experiment = 50.0
max_epsilon_lifetime = 500.0
max_epsilon_operator = 50.0
max_epsilon_operator_lifetime = 500.0
trust = ["secure"]
"""
KILLING_AGENT = '''
"""The product's agent, killed at the moment of a sum that kill.json names: ``rows masked asked``, ``writes``,
``written`` or ``answers``; before and after it keeps its integers, ``noised`` and ``kept``."""
import sys
from pathlib import Path
sys.path.append(str(Path(__file__).parent / "path"))
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.store import DiskStore
from killing import kill_if_wanted

kit, now = Path(sys.argv[-1]).parent, []
add_up, write_sum = SiteAgent.add_up, DiskStore.write_sum

def at(when):
    request = now[-1]
    kill_if_wanted(kit, f"{request.sum} {request.step} {when}", request.attempt)

def hooked_add_up(self, request):
    now.append(request)
    at("asked")
    reply = add_up(self, request)
    at("answers")
    return reply

def hooked_write_sum(self, experiment, name, kept):
    integers = now[-1].step == "masked" and len(kept.answered.replies) == 2
    at("noised" if integers else "writes")
    write_sum(self, experiment, name, kept)
    at("kept" if integers else "written")

SiteAgent.add_up, DiskStore.write_sum = hooked_add_up, hooked_write_sum
from dpfpl_client.cli.main import main
main()
'''


def with_the_others(quick: list[str], names: list[str], whens: list[str]) -> list[object]:
    """The quick moments in one run, and every other moment of every step in the long lane."""
    others = [
        f"{SUMS[(number + len(when)) % len(SUMS)]} {step} {when}" for number, step in enumerate(STEPS) for when in whens
    ]
    rest = [moment for moment in dict.fromkeys([*others, *names]) if moment not in quick]
    return [quick, *(pytest.param([moment], marks=pytest.mark.long) for moment in rest)]


SERVERAPP_MOMENTS = with_the_others(
    ["rows masked taken", "vote unmask closed"], ["rows pending kept", "vote values kept"], ["asked", "taken", "closed"]
)
AGENT_MOMENTS = with_the_others(
    ["rows unmask writes", "vote masked kept"],
    ["rows masked noised", "scores masked kept"],
    ["asked", "writes", "answers"],
)
NODE_MOMENTS = with_the_others(["rows shares answers"], [], ["asked", "answers"])


class SecureFederation(Federation):
    sites = ("east", "north", "west")
    policy = POLICY
    partition = "iid"
    agent_program = KILLING_AGENT

    def provisioned(self) -> dict[str, Path]:
        return enrol_sites(self.root, self.sites, self.fleet)

    def experiment(self, name: str) -> Experiment:
        return Experiment(
            name=name,
            classes=list_classes(DataSettings(source="digits")),
            sites=self.sites,
            model=ModelSettings(width=128),
            privacy=PrivacySettings(trust="secure", noise_multiplier=4.0, nominal_site_size=400),
            rounds=RoundSettings(number=2, local_steps=1, deadline=40.0),
        )

    def kill_at_site(self, *kills: Kill) -> None:
        """Have the victim's agent kill these processes, or itself."""
        order(self.files[VICTIM].parent, kills)

    def unmasked(self, name: str) -> dict[str, set[int]]:
        """By sum, the attempts that any site ever helped to unmask, as their audits say."""
        found: dict[str, set[int]] = {}
        for site in self.sites:
            for line in AuditLog(self.state(site) / AUDIT_FILE).lines():
                if (line["event"], line.get("experiment"), line.get("step")) == ("summed", name, "unmask"):
                    found.setdefault(line["request"], set()).add(line["attempt"])
        return found

    def as_if_nothing_had_happened(self, name: str) -> None:
        """One sum of each kind, the one of the run that was not disturbed; everything charged once."""
        self.charged_once(name, CHARGED)
        sums, whole = (self.folder(of).store.sum_book() for of in (name, "whole"))
        for kind in SUMS:
            found, expected = sums.summed(kind), whole.summed(kind)
            assert found is not None
            assert expected is not None
            assert found.sites == self.sites
            np.testing.assert_array_equal(found.values, expected.values)
        assert {kind: len(attempts) for kind, attempts in self.unmasked(name).items()} == dict.fromkeys(SUMS, 1)
        np.testing.assert_array_equal(self.context(name), self.context("whole"))
        for site in self.sites:
            kept = [DiskStore(self.state(site)).read_sum(name, kind) for kind in SUMS]
            assert all(one.unmasked and one.values is None and one.answered.secret == b"" for one in kept)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureFederation]:
    federation = SecureFederation(tmp_path_factory.mktemp("secure"))
    with federation.group:
        federation.start()
        federation.run("whole")
        yield federation


def test_deployed_and_simulated_sum_the_same_in_secret(federation: SecureFederation) -> None:
    federation.as_if_nothing_had_happened("whole")
    simulated = simulate(federation.experiment("whole")).checkpoint
    deployed = federation.folder("whole").load_checkpoint()
    assert deployed is not None
    assert deployed.evidence.rows == {}
    for kind in SUMS:
        found, expected = deployed.evidence.sums[kind], simulated.evidence.sums[kind]
        assert found.sites == expected.sites == federation.sites
        np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=1e-3)
    np.testing.assert_allclose(deployed.global_context, simulated.global_context, rtol=0, atol=2e-5)
    result = federation.folder("whole").read_json("result.json")
    assert len({row["epsilon"] for row in result["privacy"]["epsilons"]}) == 1
    assert result["scores"][0]["sites"] == 3
    for settings in map(load_site, federation.files.values()):
        keys = aggregation_keys(settings)
        assert keys.seen() == keys.pinned(), "what the server sent is what each site had pinned"
        assert [DiskStore(settings.state_folder).read_sum("whole", kind).attempt for kind in SUMS] == [1, 1, 1]
        paid = next(row for row in summarise(settings)["experiments"] if row["experiment"] == "whole")
        assert paid["epsilons"]["operator"] == paid["epsilons"]["other_site"]
        assert verify(settings) == []


def simulate(experiment: Experiment) -> SimulationOutcome:
    """The same experiment in process."""
    torch.set_num_threads(1)
    backbone = load_backbone("embedded")
    pool = load_pool(DataSettings(source="digits"), experiment.classes)
    data = partition_sites(pool, experiment.classes, "iid", len(experiment.sites), 0)
    sites = prepare_sites(data, experiment.classes, FeatureCache(None, backbone), experiment.sites)
    return Simulation(backbone, sites, SEED).run(experiment)


@pytest.mark.parametrize("moments", SERVERAPP_MOMENTS, ids=", ".join)
def test_SE6_the_serverapp_is_killed_in_a_sum(federation: SecureFederation, moments: list[str]) -> None:
    name = f"app-{'-'.join(moments)}".replace(" ", "-")
    federation.kill_at(name, *(Kill(moment, 1) for moment in moments))
    federation.run(name)
    assert all_happened(federation.folder(name).path)
    outcomes = [attempt.outcome for attempt in federation.folder(name).store.attempts()]
    assert outcomes == [*["crashed"] * len(moments), "completed"]
    federation.as_if_nothing_had_happened(name)


@pytest.mark.parametrize("moments", AGENT_MOMENTS, ids=", ".join)
def test_SE6_an_agent_is_killed_in_a_sum(federation: SecureFederation, moments: list[str]) -> None:
    name = f"agent-{'-'.join(moments)}".replace(" ", "-")
    federation.kill_at_site(*(Kill(moment, 1) for moment in moments))
    federation.run_kept(name)
    assert all_happened(federation.files[VICTIM].parent)
    federation.as_if_nothing_had_happened(name)


@pytest.mark.parametrize("moments", NODE_MOMENTS, ids=", ".join)
def test_SE6_a_node_is_killed_in_a_sum(federation: SecureFederation, moments: list[str]) -> None:
    name = f"node-{'-'.join(moments)}".replace(" ", "-")
    before = federation.nodes[VICTIM]
    federation.kill_at_site(*(Kill(moment, 1, (descendants(before.pid)[0],)) for moment in moments))
    federation.run_kept(name)
    assert before.poll() is not None
    federation.as_if_nothing_had_happened(name)


@pytest.mark.long
def test_SE6_where_an_agent_stays_away_the_run_is_abandoned_and_says_why(federation: SecureFederation) -> None:
    """In the last step no other attempt may follow: the same one is finished when the site is back."""
    name = "agent-away"
    federation.kill_at_site(Kill("rows unmask asked", 1))
    with pytest.raises(RoundError) as abandoned:
        federation.run(name)
    assert abandoned.value.code == "TOO_FEW_SITES"
    assert re.search(f"{VICTIM}: (AGENT_UNAVAILABLE|NO_REPLY)", abandoned.value.message)  # whose patience ends first
    assert federation.folder(name).store.sum_book().summed("rows") is None
    federation.group.processes.remove(federation.agents[VICTIM])
    federation.start_agent(VICTIM)
    federation.run(name)
    federation.as_if_nothing_had_happened(name)
