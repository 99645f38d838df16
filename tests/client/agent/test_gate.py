"""What an operator may ask how often, what it is told, and what is recorded: A4, A10, R6."""

import dataclasses
import json
import time

import numpy as np
import pytest
from failures import CrashError, crash, refused

from dpfpl_client.agent import core
from dpfpl_client.agent.audit import KEPT, AuditLog
from dpfpl_client.agent.budget import Quotas
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.learning.learner import PromptLearner, SiteFeatures
from dpfpl_client.learning.step import SystemRandomness
from dpfpl_common.errors import RefusedError, StateError
from dpfpl_common.policy import Policy
from dpfpl_common.wire.payloads import EvaluateRequest, TrainRequest

pytestmark = pytest.mark.privacy


def rules(**changes):
    return Policy(
        **{"experiments": ("*",), "max_epsilon_per_experiment": 50.0, "max_epsilon_lifetime": 100.0, **changes}
    )


@pytest.fixture
def clock():
    """Seconds and the time of day, moved by hand."""

    class Clock:
        seconds, day = 0.0, "12:00"

    return Clock()


@pytest.fixture
def agent(site, clock):
    def make(policy, audit=None):
        site.start(policy)
        quotas = Quotas(lambda: clock.seconds, lambda: time.strptime(clock.day, "%H:%M"))
        return SiteAgent(
            "north",
            site.backbone,
            site.features,
            policy,
            site.ledger,
            site.store,
            SystemRandomness(),
            public=True,
            audit=audit,
            quotas=quotas,
        )

    return make


@pytest.fixture
def evaluation(experiment):
    def make(value=0.0, of=experiment, number=1):
        return EvaluateRequest(of, number, np.full(of.context_shape, value, "<f4"))

    return make


# A4: draining the budget, and the machine


def test_A4_started_and_aborted_rounds_end_at_the_quota(site, agent, request_for):
    served = agent(rules(max_repeats=3))
    site.store.write = crash
    for _ in range(4):
        with pytest.raises(CrashError):
            served.train(request_for(1))
    assert "max_repeats" in refused("TOO_MANY_REPEATS", served.train, request_for(1)).message
    assert len(site.charges) == 4


def test_A4_rounds_are_limited_by_the_hour_and_stored_answers_are_not(agent, request_for, clock, site):
    served = agent(rules(max_rounds_per_hour=2))
    first = served.train(request_for(1))
    clock.seconds = 1000.0
    served.train(request_for(2))
    refused("RATE_LIMITED", served.train, request_for(3))
    assert served.train(request_for(1)).update.tobytes() == first.update.tobytes()
    clock.seconds = 3599.0
    refused("RATE_LIMITED", served.train, request_for(3))
    assert len(site.charges) == 2
    clock.seconds = 3600.0
    served.train(request_for(3))


def test_A4_experiments_are_limited_by_the_day_over_restarts(agent, request_for, experiment, changed, site):
    policy = rules(max_experiments_per_day=2)
    for name in ("one", "two"):
        agent(policy).train(request_for(1, changed(experiment, name=name)))
    third = request_for(1, changed(experiment, name="three"))
    refused("TOO_MANY_EXPERIMENTS", agent(policy).train, third)
    agent(policy).train(request_for(2, changed(experiment, name="two")))
    assert "three" not in site.store.experiments()


def test_A4_a_refused_experiment_leaves_nothing_behind(agent, request_for, experiment, changed, site):
    served = agent(rules(max_epsilon_lifetime=0.01))
    before = site.ledger.records
    for number in range(5):
        refused("BUDGET_EXHAUSTED", served.train, request_for(1, changed(experiment, name=f"drain-{number}")))
    assert (site.ledger.records, site.store.experiments()) == (before, [])


def test_A4_the_administrator_sees_who_asked(agent, request_for, experiment, changed, tmp_path):
    audit = AuditLog(tmp_path / "audit.jsonl")
    served = agent(rules(max_experiments_per_day=1), audit)
    served.train(request_for(1))
    refused("TOO_MANY_EXPERIMENTS", served.train, request_for(1, changed(experiment, name="drain")))
    released, denied = audit.lines()
    assert (released["event"], released["experiment"], released["round"]) == ("released", "pilot", 1)
    assert (denied["event"], denied["experiment"], denied["rule"]) == ("refused", "drain", "max_experiments_per_day")


def test_nothing_is_computed_in_quiet_hours(agent, request_for, clock, evaluation, site):
    served = agent(rules(quiet_hours=("22:00-06:00",)))
    first = served.train(request_for(1))
    clock.day = "23:00"
    refused("QUIET_HOURS", served.train, request_for(2))
    refused("QUIET_HOURS", served.evaluate, evaluation())
    assert served.train(request_for(1)).update.tobytes() == first.update.tobytes()
    assert len(site.charges) == 1


# A10: what evaluations tell


def test_A10_any_number_of_equal_evaluations_is_one(agent, request_for, evaluation, computed, site):
    policy = rules(metrics="coarse")
    served = agent(policy)
    served.train(request_for(1))
    before = computed.count("evaluate")
    replies = [served.evaluate(evaluation()) for _ in range(200)]
    assert len({json.dumps(reply.metrics) for reply in replies}) == 1
    assert computed.count("evaluate") == before + 1
    assert agent(policy).evaluate(evaluation()).metrics == replies[0].metrics


def test_A10_different_evaluations_end_at_the_quota_over_restarts(agent, evaluation, computed, site, caplog):
    policy = rules(max_evaluations=3, metrics="coarse")
    served = agent(policy)
    told = [bool(served.evaluate(evaluation(value)).metrics) for value in (0.0, 1.0, 2.0, 3.0, 4.0)]
    assert told == [True, True, True, False, False]
    assert computed.count("evaluate") == 3
    assert [record.getMessage() for record in caplog.records] == 2 * [
        "pilot: answered without accuracies, as max_evaluations of policy.toml says"
    ]
    served = agent(policy)
    assert (served.evaluate(evaluation(5.0)).metrics, bool(served.evaluate(evaluation(1.0)).metrics)) == ({}, True)
    np.testing.assert_array_equal(site.store.read_final("pilot"), evaluation(1.0).global_context)


def test_A10_without_metrics_nothing_is_even_computed(agent, evaluation, request_for, computed):
    served = agent(rules(metrics="none"))
    assert served.evaluate(evaluation()).metrics == served.train(request_for(evaluate=True)).metrics == {}
    assert computed == ["train_round"]


def test_A10_a_stored_answer_obeys_a_stricter_policy(agent, evaluation):
    exact = agent(rules(metrics="exact")).evaluate(evaluation()).metrics
    coarse = agent(rules(metrics="coarse")).evaluate(evaluation()).metrics
    assert coarse == rules(metrics="coarse").released_metrics(exact)
    assert agent(rules(metrics="none")).evaluate(evaluation()).metrics == {}


class Clock:
    """Time that passes only when something says so."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        for module in ("core", "pace"):
            monkeypatch.setattr(f"dpfpl_client.agent.{module}.time", self)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        assert seconds >= 0
        self.now += seconds


@pytest.mark.parametrize("rehearsed", [0.3, 0.4, 0.5])
def test_NI5_every_answer_of_an_experiment_takes_the_rehearsed_time(
    agent, request_for, evaluation, monkeypatch, rehearsed
):
    """However long an answer is computed, fresh or stored: what is seen is one time, a function of the plan; and it is
    rounded so that what else the machine did while it rehearsed does not show either."""
    clock, slow = Clock(monkeypatch), [rehearsed]

    def slowed(real):
        def call(*args, **more):
            clock.now += slow[0]
            return real(*args, **more)

        return call

    for name in ("train_round", "evaluate"):
        monkeypatch.setattr(PromptLearner, name, slowed(getattr(PromptLearner, name)))
    served = agent(rules(reply_slot=0.2, metrics="coarse"))
    began = clock.now
    served.train(request_for(1))  # rehearses twice first, training and evaluation on made-up examples
    assert clock.now - began == pytest.approx(4 * rehearsed + 2.0)
    for seconds, act in (
        (0.01, lambda: served.train(request_for(2))),
        (1.9, lambda: served.train(request_for(3))),
        (0.0, lambda: served.train(request_for(1))),  # stored
        (0.7, lambda: served.evaluate(evaluation())),
        (0.0, lambda: served.evaluate(evaluation())),
    ):
        slow[0], began = seconds, clock.now
        act()
        assert clock.now - began == pytest.approx(2.0)


def test_NI5_a_refusal_takes_the_slot(agent, request_for, experiment, monkeypatch):
    """Also one that is found only after work which may depend on the examples, and it stretches nothing."""
    clock, real = Clock(monkeypatch), SiteFeatures.relabelled

    def slowed(*args):
        clock.now += 0.05
        return real(*args)

    monkeypatch.setattr(SiteFeatures, "relabelled", slowed)
    served = agent(rules(reply_slot=0.2))
    foreign = dataclasses.replace(experiment, sites=("elsewhere", "nowhere"))
    unknown = dataclasses.replace(experiment, name="other", model=dataclasses.replace(experiment.model, width=4))
    for asked in (foreign, unknown):
        began = clock.now
        with pytest.raises(RefusedError):
            served.train(TrainRequest(asked, 1, np.zeros(asked.context_shape, "<f4")))
        assert clock.now - began == pytest.approx(0.2)


@pytest.mark.parametrize("error", [RefusedError(code="SLOW", message=""), RuntimeError()])
def test_NI5_a_late_refusal_takes_the_slot_twice_as_often_as_is_enough(agent, request_for, monkeypatch, error):
    clock = Clock(monkeypatch)

    def slow(*_):
        clock.now += 0.5
        raise error

    monkeypatch.setattr(core, "permit", slow)
    served, began = agent(rules(reply_slot=0.2)), clock.now
    with pytest.raises(type(error)):
        served.train(request_for(1))
    assert clock.now - began == pytest.approx(0.8)


def test_NI5_a_run_that_cannot_keep_its_time_is_stretched_for_good_and_does_not_say_by_how_much(
    agent, request_for, monkeypatch, site, tmp_path
):
    clock, slow = Clock(monkeypatch), [0.01]
    real = PromptLearner.train_round

    def slowed(*args, **more):
        clock.now += slow[0]
        return real(*args, **more)

    monkeypatch.setattr(PromptLearner, "train_round", slowed)
    served = agent(rules(reply_slot=0.2), AuditLog(tmp_path / "audit.jsonl"))
    times = []
    for number, seconds in ((1, 0.01), (2, 0.41), (3, 0.01)):
        slow[0], began = seconds, clock.now
        served.train(request_for(number))
        times.append(clock.now - began)
    assert times == pytest.approx([0.02 + 0.2, 0.8, 0.8])  # the first rehearses
    stretched = [line for line in AuditLog(tmp_path / "audit.jsonl").lines() if line["event"] == "reply_time_stretched"]
    assert [set(line) for line in stretched] == [{"event", "at", "experiment"}]
    slow[0], began = 0.0, clock.now
    agent(rules(reply_slot=0.2)).train(request_for(1))
    assert clock.now - began == pytest.approx(0.8), "over a restart too"


# The audit log


def test_the_audit_log_says_what_was_decided_and_what_it_cost(agent, request_for, experiment, changed, tmp_path, site):
    path = tmp_path / "audit.jsonl"
    served = agent(rules(), AuditLog(path))
    reply = served.train(request_for(1, evaluate=True))
    served.train(request_for(1, evaluate=True))
    refused("TOO_LITTLE_NOISE", served.train, request_for(1, changed(experiment, privacy={"noise_multiplier": 0.1})))
    released, repeated, denied = AuditLog(path).lines()
    assert released["left"] == site.store.read("pilot", 1).digest()
    assert released["charged"][0] == ["prompt_recipient", "per_step", 4.0, 0.5, "training", 1]
    assert released["metrics"] == sorted(reply.metrics)
    assert (repeated["event"], repeated["asked"]) == ("repeated", released["asked"])
    assert (denied["code"], denied["rule"]) == ("TOO_LITTLE_NOISE", "min_noise_multiplier")
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_recorded_does_not_leave(agent, request_for, tmp_path, site):
    path = tmp_path / "audit.jsonl"
    served = agent(rules(), AuditLog(path))
    path.mkdir()
    with pytest.raises(StateError, match="AUDIT_UNWRITABLE"):
        served.train(request_for(1))
    path.rmdir()
    assert served.train(request_for(1)).update.tobytes() == site.store.read("pilot", 1).reply.update.tobytes()
    assert len(site.charges) == 1


def test_an_error_of_the_site_is_told_by_its_code_alone(agent, request_for, tmp_path, monkeypatch):
    from dpfpl_common.errors import DataError

    def fail(*_, **_more):
        raise DataError(
            code="IMAGE_CHANGED", message="The image 'patient_123.png' changed (rule patient_123).", advice=""
        )

    monkeypatch.setattr("dpfpl_client.agent.core.PromptLearner.train_round", fail)
    path = tmp_path / "audit.jsonl"
    with pytest.raises(DataError):
        agent(rules(), AuditLog(path)).train(request_for(1))
    assert "IMAGE_CHANGED" in path.read_text()
    assert "patient" not in path.read_text()


def test_R6_the_audit_log_stays_small_and_keeps_the_latest(tmp_path):
    audit = AuditLog(tmp_path / "audit.jsonl", max_bytes=2000)
    for number in range(2000):
        audit.write("refused", durable=False, number=number)
    files = list(tmp_path.iterdir())
    assert len(files) == KEPT + 1
    assert all(file.stat().st_size <= 2000 for file in files)
    numbers = [line["number"] for line in audit.lines()]
    assert numbers == list(range(numbers[0], 2000))


def test_a_line_cut_off_by_a_crash_spoils_no_other(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path)
    audit.write("one")
    path.write_bytes(path.read_bytes() + b'{"at": "20')
    AuditLog(path).write("two")
    assert [line["event"] for line in audit.lines()] == ["one", "two"]
