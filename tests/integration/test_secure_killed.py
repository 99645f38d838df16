"""SE6: kill -9 of an agent, a SuperNode or the ServerApp in every step of the sums of a deployed secure federation.

Sites enrolled and pinned each other, and their noise is seeded: an experiment that was disturbed ends with the very
sums of one that was not, so no sum was made of other integers, with masks left in it, or twice.
"""

import functools
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enrolled_sites import enrol_sites
from killed_federation import KILLING_AGENT, Federation, use_killing_app

from dpfpl_client.agent.audit import AUDIT_FILE, AuditLog
from dpfpl_client.agent.ledger.book import ROWS, SCORES, VOTE
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.data import DataSettings, list_classes
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import RoundError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.ops.guard import descendants
from dpfpl_common.ops.processes import Keeper
from dpfpl_common.secure import STEPS, SUMS
from dpfpl_server.runs.supervise import Limits

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
SERVERAPP = ["rows masked taken", "vote unmask closed"]
AGENT = ["vote masked kept", "rows unmask writes"]
NODE = ["rows shares answers"]


def with_the_others(quick: list[str], names: list[str], whens: list[str]) -> list[object]:
    """Every moment of every step; those that are not quick in the long lane."""
    others = [
        f"{SUMS[(number + len(when)) % len(SUMS)]} {step} {when}" for number, step in enumerate(STEPS) for when in whens
    ]
    rest = [moment for moment in dict.fromkeys([*others, *names]) if moment not in quick]
    return [*quick, *(pytest.param(moment, marks=pytest.mark.long) for moment in rest)]


SERVERAPP_MOMENTS = with_the_others(SERVERAPP, ["rows pending kept", "vote values kept"], ["asked", "taken", "closed"])
AGENT_MOMENTS = with_the_others(AGENT, ["rows masked noised", "scores masked kept"], ["asked", "writes", "answers"])
NODE_MOMENTS = with_the_others(NODE, [], ["asked", "answers"])


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

    def kill_site_at(self, moment: str, pids: list[int] | None = None) -> None:
        """Have the victim's agent kill these processes, or itself, in the first attempt at a sum."""
        wanted = {"moment": moment, "round": 1, "pids": pids or []}
        (self.kit(VICTIM).parent / "kill.json").write_text(json.dumps(wanted))

    def run_kept(self, name: str, limits: Limits | None = None) -> dict[str, Any]:
        """The experiment to its end, while whatever dies at a site starts again, as under ``dpfpl-client start``."""
        keepers = [
            Keeper(running[site], functools.partial(start, site), self.group, print)
            for running, start in ((self.agents, self.start_agent), (self.nodes, self.start_node))
            for site in self.sites
        ]
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(self.run, name, limits)
            while not run.done():
                for keeper in keepers:
                    keeper.look()
                time.sleep(0.1)
            return run.result()

    def unmasked(self, name: str) -> dict[str, set[int]]:
        """By sum, the attempts that any site ever helped to unmask, as their audits say."""
        found: dict[str, set[int]] = {}
        for kit in self.kits:
            for line in AuditLog(load_site(kit).state_folder / AUDIT_FILE).lines():
                if (line["event"], line.get("experiment"), line.get("step")) == ("summed", name, "unmask"):
                    found.setdefault(line["request"], set()).add(line["attempt"])
        return found

    def as_if_nothing_had_happened(self, name: str) -> None:
        """One sum of each kind, the one of the run that was not disturbed; everything charged once."""
        assert self.charges()[name] == {(CHARGED, len(CHARGED))}
        sums, whole = (self.folder(of).store.sum_book() for of in (name, "whole"))
        for kind in SUMS:
            found, expected = sums.summed(kind), whole.summed(kind)
            assert found is not None
            assert expected is not None
            assert found.sites == self.sites
            np.testing.assert_array_equal(found.values, expected.values)
        assert {kind: len(attempts) for kind, attempts in self.unmasked(name).items()} == dict.fromkeys(SUMS, 1)
        np.testing.assert_array_equal(self.context(name), self.context("whole"))
        for kit in self.kits:
            kept = [DiskStore(load_site(kit).state_folder).read_sum(name, kind) for kind in SUMS]
            assert all(one.unmasked and one.values is None and one.answered.secret == b"" for one in kept)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureFederation]:
    federation = SecureFederation(tmp_path_factory.mktemp("secure-killed"))
    with federation.group:
        federation.start()
        federation.run("whole")
        yield federation


@pytest.mark.parametrize("moment", SERVERAPP_MOMENTS)
def test_SE6_the_serverapp_is_killed_in_a_sum(
    federation: SecureFederation, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    use_killing_app(monkeypatch)
    name = f"app-{moment}".replace(" ", "-")
    federation.kill_at(name, moment, 1)
    federation.run(name)
    assert not (federation.folder(name).path / "kill.json").exists(), "it was never killed"
    assert [attempt.outcome for attempt in federation.folder(name).store.attempts()] == ["crashed", "completed"]
    federation.as_if_nothing_had_happened(name)


@pytest.mark.parametrize("moment", AGENT_MOMENTS)
def test_SE6_an_agent_is_killed_in_a_sum(federation: SecureFederation, moment: str) -> None:
    name = f"agent-{moment}".replace(" ", "-")
    before = federation.agents[VICTIM]
    federation.kill_site_at(moment)
    federation.run_kept(name)
    assert before.poll() is not None
    federation.as_if_nothing_had_happened(name)


@pytest.mark.parametrize("moment", NODE_MOMENTS)
def test_SE6_a_node_is_killed_in_a_sum(federation: SecureFederation, moment: str) -> None:
    name = f"node-{moment}".replace(" ", "-")
    before = federation.nodes[VICTIM]
    federation.kill_site_at(moment, [descendants(before.pid)[0]])
    federation.run_kept(name)
    assert before.poll() is not None
    federation.as_if_nothing_had_happened(name)


@pytest.mark.long
def test_SE6_where_an_agent_stays_away_the_run_is_abandoned_and_says_why(federation: SecureFederation) -> None:
    """In the last step no other attempt may follow: the same one is finished when the site is back."""
    name = "agent-away"
    federation.kill_site_at("rows unmask asked")
    with pytest.raises(RoundError) as abandoned:
        federation.run(name)
    assert abandoned.value.code == "TOO_FEW_SITES"
    assert re.search(f"{VICTIM}: (AGENT_UNAVAILABLE|NO_REPLY)", abandoned.value.message)  # whose patience ends first
    assert federation.folder(name).store.sum_book().summed("rows") is None
    federation.group.processes.remove(federation.agents[VICTIM])
    federation.start_agent(VICTIM)
    federation.run(name)
    federation.as_if_nothing_had_happened(name)
