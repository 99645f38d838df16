"""An agent, its caller or its device that ends at a bad moment, and clocks that jump: charged >= released, one output a
round, nobody is held up."""

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from agent_driver import CRASH_POINTS, DROPPED, open_ledger
from killable import make_experiment, train_request

from dpfpl_client.agent.ledger import book as ledger_module
from dpfpl_common.errors import RefusedError
from dpfpl_common.privacy.accounting import PrivacyEvent
from dpfpl_common.wire.codec import encode_request

pytestmark = [pytest.mark.processes, pytest.mark.privacy]

SOON_S = 30.0
"""On a busy machine, and still half of what the slowest agent here computes; idle all of it takes two seconds."""
CALLER = """
import sys
from pathlib import Path
from dpfpl_client.agent.channel import AgentChannel
with AgentChannel(sys.argv[1], Path(sys.argv[2]), 60.0) as agent:
    print(len(agent.forward("Train", bytes.fromhex(sys.argv[3]))), flush=True)
"""
BEFORE_THE_RECORD = ("after_reserve", "before_noise", "after_noise", "within_record")
AFTER_THE_RECORD = ("record_renamed", "after_record", "after_commit", "before_reply")


def crash(site, point, request):
    with site.agent(crash_at=point) as pid:
        site.train_until_death(request, pid)


def one_round(site):
    """A first round, so that there is a prompt to lose."""
    with site.agent():
        site.train(train_request(1))
    return site.store.read("pilot", 1)


def test_every_kill_point_kills(site):
    """None of the others could fail if a point were never reached."""
    for number, point in enumerate(CRASH_POINTS, 1):
        pid = site.driver.start(site.state, crash_at=point)
        site.train_until_death(train_request(1, make_experiment(f"pilot-{number}")), pid)
        assert site.driver.wait() == 137
    assert {*CRASH_POINTS} == {"before_reserve", *BEFORE_THE_RECORD, *AFTER_THE_RECORD}


def test_F1_killed_before_the_reservation_nothing_is_charged_and_nothing_released(site):
    before = one_round(site)
    crash(site, "before_reserve", train_request(2))
    assert [charge.round for charge in site.charges] == [1]
    assert site.store.rounds("pilot") == [1]
    assert site.store.read("pilot", 1).digest() == before.digest()
    with site.agent():
        assert site.train(train_request(2)).round == 2
    assert [charge.round for charge in site.charges] == [1, 2]


@pytest.mark.parametrize("point", BEFORE_THE_RECORD)
def test_F2_F3_killed_after_the_reservation_it_stays_charged_and_old_noise_is_never_used(site, point):
    before = one_round(site)
    for deaths in (1, 2):
        crash(site, point, train_request(2))
        charges = site.charges
        assert [(c.round, bool(c.release_digest)) for c in charges] == [(1, True), *[(2, False)] * deaths]
        assert site.store.rounds("pilot") == [1]
        assert site.store.read("pilot", 1).digest() == before.digest()  # the prompt of the round before, whole
    with site.agent():
        reply = site.train(train_request(2))
        assert site.train(train_request(2)).update.tobytes() == reply.update.tobytes()
    assert [(c.round, bool(c.release_digest)) for c in site.charges] == [(1, True), (2, False), (2, False), (2, True)]
    site.prompts_are_whole()
    if point == "after_noise":  # what was noised and lost never comes out, and not by chance: all of it differs
        lost = np.frombuffer((site.state / DROPPED).read_bytes(), "<f4").reshape(reply.update.shape)
        assert np.mean(lost == reply.update) < 0.01


@pytest.mark.parametrize("point", AFTER_THE_RECORD)
def test_F4_F5_killed_after_the_record_the_very_bytes_are_served_and_charged_once(site, point):
    one_round(site)
    crash(site, point, train_request(2))
    stored = site.store.read("pilot", 2)
    assert len(site.charges) == 2
    replies = []
    for _ in range(2):
        with site.agent():
            replies += [site.train(train_request(2)).update.tobytes() for _ in range(3)]
    assert set(replies) == {stored.reply.update.tobytes()}
    assert [(c.round, c.release_digest) for c in site.charges][1:] == [(2, stored.digest())]
    site.prompts_are_whole()


def test_another_request_after_a_kill_gets_nothing(site):
    """Neither before nor after the record a crash opens the round to other content."""
    for number, point in enumerate(("after_noise", "after_record"), 1):
        of = make_experiment(f"pilot-{number}")
        crash(site, point, train_request(1, of))
        with site.agent(), pytest.raises(RefusedError) as caught:
            site.train(train_request(1, of, value=1e-3))
        assert caught.value.code == "KEY_REUSED_OTHER_DIGEST"


def soak(site, kills, seed):
    """Rounds without end while the agent is killed at random moments; an honest client repeats what got no answer.

    Returns:
        (kills, distinct releases that left the socket, charges, answers).
    """
    chance = random.Random(seed)
    seen, answers, done = {}, 0, 0
    name, number = 1, 1
    while done < kills:
        pid = site.driver.start(site.state)
        killer = threading.Timer(chance.expovariate(1 / 0.12), site.driver.send, [pid])
        killer.start()
        while True:
            of = make_experiment(f"soak-{name}", rounds=40)
            try:
                reply = site.train(train_request(number, of), wait_s=0.3)
            except RefusedError as error:
                if error.code != "AGENT_UNAVAILABLE":
                    raise
                break
            answers += 1
            update = reply.update.tobytes()
            assert seen.setdefault((of.name, number), update) == update, "two outputs for one round"
            # Sometimes the answer is "lost" and asked for again.
            if chance.random() < 0.8:
                name, number = (name + 1, 1) if number == 40 else (name, number + 1)
        killer.join()
        assert site.driver.wait() == -9
        done += 1
        check(site, seen, done)
    return done, len(seen), len(site.charges), answers


def check(site, seen, kills):
    charges = site.charges
    assert {(c.experiment, c.round) for c in charges} >= seen.keys(), "released, but not charged"
    assert len(charges) - len(seen) <= kills
    site.prompts_are_whole()
    for (name, number), update in list(seen.items())[-5:]:
        assert site.store.read(name, number).reply.update.tobytes() == update


def test_F6_killed_at_random(site):
    kills, released, charged, _ = soak(site, 10, seed=1)
    assert (kills, charged >= released) == (10, True)


@pytest.mark.long
def test_F6_killed_at_random_two_hundred_times(site, capsys):
    began = time.monotonic()
    kills, released, charged, answers = soak(site, 220, seed=2)
    with capsys.disabled():
        print(
            f"\n{kills} kills in {time.monotonic() - began:.0f} s: {answers} answers, {released} releases left the "
            f"socket, {charged} charges, {charged - released} paid for nothing, every record whole"
        )


@contextlib.contextmanager
def caller(site, request):
    """A ClientApp's call, from a process of its own, that is gone when the block ends."""
    message = encode_request(request).SerializeToString(deterministic=True).hex()
    program = [sys.executable, "-c", CALLER, f"unix:{site.state}/agent.sock", str(site.state / "agent.token"), message]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as asking:
        try:
            yield asking
        finally:
            asking.kill()


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
        with caller(site, train_request(1)):
            assert site.driver.line() == "computing"
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
    with caller(site, train_request(1)) as asking:
        time.sleep(1.0)
        pid = site.driver.start(site.state, slow_s=0.5)
        assert site.driver.line() == "computing"
        site.driver.kill(pid)
        with site.agent():
            assert int(asking.stdout.readline()) > 1000
    assert [bool(charge.release_digest) for charge in site.charges] == [False, True]
    with pytest.raises(RefusedError) as caught:  # and without one it is told so, within the bound
        site.train(train_request(2, make_experiment()), wait_s=0.3)
    assert caught.value.code == "AGENT_UNAVAILABLE"
