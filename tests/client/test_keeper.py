"""F22: an agent that crashed is started again, with pauses, so many times, and the administrator is told."""

import pytest

from dpfpl_client.node.launch import MOST, QUIET_S, Keeper
from dpfpl_common.errors import DeploymentError


class Process:
    def __init__(self, group):
        self.name, self.log_file, self.status = "agent of north", "agent.log", None
        group.processes.append(self)

    def poll(self):
        return self.status

    def log_tail(self):
        return "the end of its log"


class Site:
    def __init__(self):
        self.processes, self.said, self.now = [], [], 0.0
        self.agent = Process(self)
        self.keeper = Keeper(self.agent, self.start, self, self.said.append, lambda: self.now)

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
    assert "status 137; starting it again in 1 s (1 of 5)" in site.said[0]
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
