"""F22, DR2: a process that crashed is started again, with pauses, so many times, and the administrator is told."""

import pytest

from dpfpl_common.errors import DeploymentError
from dpfpl_common.ops.processes import LONGEST_PAUSE_S, QUIET_S, Keeper

MOST = 5


class Process:
    def __init__(self, group):
        self.name, self.log_file, self.status = "agent of north", "agent.log", None
        group.processes.append(self)

    def poll(self):
        return self.status

    def log_tail(self):
        return "the end of its log"


class Site:
    def __init__(self, most=MOST, final=lambda process, status: None):
        self.processes, self.said, self.now = [], [], 0.0
        self.agent = Process(self)
        clock = lambda: self.now  # noqa: E731
        self.keeper = Keeper(self.agent, self.start, self, self.said.append, most=most, final=final, clock=clock)

    def start(self):
        self.agent = Process(self)
        return self.agent

    def crash(self, status=137):
        """Let it end, and give the keeper the time that it says it needs; gives the pause."""
        dead, before = self.agent, self.now
        dead.status = status
        self.keeper.look()
        assert dead not in self.processes
        while self.agent is dead:
            self.now += 0.5
            self.keeper.look()
            assert self.now - before < 100
        return self.now - before


@pytest.fixture
def site():
    return Site()


def test_F22_a_crashed_agent_is_started_again_with_growing_pauses_and_told(site):
    assert [site.crash() for _ in range(MOST)] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert len(site.said) == MOST
    assert "status 137; starting it again in 1 s (restart 1)" in site.said[0]
    site.agent.status = 1
    with pytest.raises(DeploymentError, match="after 5 restarts") as caught:
        site.keeper.look()
    assert "the end of its log" in caught.value.message


def test_F22_after_a_quiet_time_the_count_starts_again(site):
    for _ in range(MOST - 1):
        site.crash()
    site.now += QUIET_S + 1
    assert site.crash() == 1.0


def test_F22_an_agent_that_refuses_to_serve_is_not_started_again(site):
    site.agent.status = 2
    with pytest.raises(DeploymentError, match="status 2"):
        site.keeper.look()
    assert site.said == []


def test_a_living_agent_is_left_alone(site):
    agent = site.agent
    for _ in range(10):
        site.now += 100
        site.keeper.look()
    assert site.agent is agent


def test_DR2_without_a_limit_it_is_started_for_ever():
    site = Site(most=None)
    assert [site.crash() for _ in range(20)][-3:] == [LONGEST_PAUSE_S] * 3


def test_DR12_an_end_that_is_final_is_said_in_its_own_words():
    why = DeploymentError(code="KEY_WITHDRAWN", message="The operator has revoked the key.")
    site = Site(final=lambda process, status: why if status == 1 else None)
    assert site.crash(137) == 1.0
    site.agent.status = 1
    with pytest.raises(DeploymentError, match="revoked"):
        site.keeper.look()
