"""Processes that end at bad moments: the agent on SIGTERM, its caller, its device; and clocks that jump."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from agent_driver import open_ledger
from killable import make_experiment, train_request

from dpfpl_client.agent.ledger import book as ledger_module
from dpfpl_common.errors import RefusedError
from dpfpl_common.privacy.accounting import PrivacyEvent

pytestmark = [pytest.mark.processes, pytest.mark.privacy]
SOON_S = 30.0
"""On a busy machine, and still half of what the slowest agent here computes; idle all of it takes two seconds."""

CALLER = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/../shared"]
from pathlib import Path
from killable import Site, train_request
print(Site(None, Path(sys.argv[2])).train(train_request(int(sys.argv[3]))).round, flush=True)
"""


def caller(site, number):
    """A ClientApp's call, from a process of its own."""
    program = [sys.executable, "-c", CALLER, os.path.dirname(__file__), str(site.state.parent), str(number)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("patient", [True, False])
def test_F15_asked_to_stop_while_it_trains_it_ends_within_ten_seconds_and_cleanly(site, patient):
    """With time enough it finishes, without it stops half-way: charged, and no half release."""
    pid = site.driver.start(site.state, slow_s=1.5 if patient else 60.0, grace_s=6.0 if patient else 0.5)
    answers = []

    def ask():
        try:
            answers.append(site.train(train_request(1), wait_s=5.0).round)
        except RefusedError as error:
            answers.append(error.code)

    asking = threading.Thread(target=ask)
    asking.start()
    assert site.driver.line() == "computing"
    began = time.monotonic()
    site.driver.send(pid, signal.SIGTERM)
    assert site.driver.wait() == 0
    assert time.monotonic() - began < SOON_S
    asking.join(30)
    assert answers == [1 if patient else "AGENT_UNAVAILABLE"]
    assert [bool(charge.release_digest) for charge in site.charges] == [patient]
    assert site.store.rounds("pilot") == ([1] if patient else [])
    with site.agent():
        assert site.train(train_request(1)).round == 1
    assert len(site.charges) == (1 if patient else 2)
    site.prompts_are_whole()


def test_F16_F17_a_caller_killed_in_its_call_does_not_hold_up_the_agent_and_the_release_is_kept(site):
    with site.agent(slow_s=1.0):
        asking = caller(site, 1)
        assert site.driver.line() == "computing"
        asking.send_signal(signal.SIGKILL)
        asking.wait(10)
        asking.stdout.close()
        began = time.monotonic()
        reply = site.train(train_request(1))  # what was computed for nobody is there, for one charge
        assert time.monotonic() - began < SOON_S
        assert [charge.release_digest for charge in site.charges] == [site.store.read("pilot", 1).digest()]
        assert reply.update.tobytes() == site.store.read("pilot", 1).reply.update.tobytes()
        assert site.train(train_request(2)).round == 2


def test_F20_a_device_that_fails_in_a_step_costs_a_charge_and_nothing_else(site):
    with site.agent(fail_at="before_noise"):
        with pytest.raises(RefusedError) as caught:
            site.train(train_request(1))
        assert caught.value.code == "INTERNAL"
        assert "CUDA" not in str(caught.value)
        assert "patient" not in str(caught.value)
        assert site.store.rounds("pilot") == []
        assert [bool(charge.release_digest) for charge in site.charges] == [False]
        assert site.train(train_request(1)).round == 1
        assert site.train(train_request(2)).round == 2
    assert [bool(charge.release_digest) for charge in site.charges] == [False, True, True]


def test_F21_the_ledger_is_ordered_by_its_own_numbers_whatever_the_clock_says(tmp_path, monkeypatch):
    times = iter(
        [
            "2026-03-01T12:00:00Z",
            "2026-03-02T12:00:00Z",
            "2026-02-28T12:00:00Z",
            "2026-03-01T11:59:54Z",
            "1970-01-01T00:00:00Z",
        ]
        * 4
    )
    monkeypatch.setattr(ledger_module, "_now", lambda: next(times))
    (tmp_path / "state").mkdir()
    ledger = open_ledger(tmp_path / "state")
    event = (PrivacyEvent("prompt_recipient", "per_step", 4.0, 0.5, 1),)
    for number in range(1, 6):
        ledger.commit(ledger.reserve("pilot", number, f"{number:064d}", event), f"{number:064x}")
    ledger.close()
    again = open_ledger(tmp_path / "state")
    assert [charge.round for charge in again.charges()] == [1, 2, 3, 4, 5]
    assert again.last_round("pilot") == 5
    assert again.find("pilot", 5).release_digest == f"{5:064x}"
    assert again.damage() == []
    again.close()


def test_F22_a_caller_waits_for_an_agent_that_is_not_up_yet_and_for_one_that_is_started_again(site):
    asking = caller(site, 1)
    time.sleep(1.0)
    pid = site.driver.start(site.state, slow_s=0.5)
    assert site.driver.line() == "computing"
    site.driver.kill(pid)
    with site.agent():
        assert asking.stdout.readline() == "1\n"
    asking.wait(10)
    asking.stdout.close()
    assert [bool(charge.release_digest) for charge in site.charges] == [False, True]
    with pytest.raises(RefusedError) as caught:  # and without one it is told so, within the bound
        site.train(train_request(2, make_experiment()), wait_s=0.3)
    assert caught.value.code == "AGENT_UNAVAILABLE"
