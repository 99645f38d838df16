"""An agent that dies at each step of the release protocol, or anywhere: charged >= released, one output a round."""

import random
import threading
import time

import numpy as np
import pytest
from agent_driver import CRASH_POINTS, DROPPED
from killable import make_experiment, train_request

from dpfpl_common.errors import RefusedError

pytestmark = [pytest.mark.processes, pytest.mark.privacy]

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
