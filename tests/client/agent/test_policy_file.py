"""policy.toml while the agent runs: O1, O2; approvals by name and configuration."""

import json
import time

import numpy as np
import pytest
from failures import refused

from dpfpl_client.agent.audit import AuditLog
from dpfpl_client.agent.policy_file import MOST_PENDING, Approvals, PolicyFile, load_policy
from dpfpl_common.policy import Policy, loosened, stricter
from dpfpl_common.wire.payloads import EvaluateRequest

pytestmark = pytest.mark.privacy

BASE = {"experiments": ["*"], "max_epsilon_per_experiment": 50.0, "max_epsilon_lifetime": 100.0}


def write(path, **rules):
    lines = [f"{key} = {json.dumps(value)}" for key, value in {**BASE, **rules}.items()]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o640)


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.toml"
    write(path)
    return path


@pytest.fixture
def audit(tmp_path):
    return AuditLog(tmp_path / "audit.jsonl")


@pytest.fixture
def rules(policy, tmp_path, audit):
    return PolicyFile(policy, tmp_path, audit)


@pytest.fixture
def events(audit):
    return lambda: [line["event"] for line in audit.lines()]


# O1: protection of the file


@pytest.mark.parametrize("mode", [0o660, 0o646, 0o666, 0o777])
def test_O1_a_policy_that_others_may_write_is_refused(policy, mode):
    policy.chmod(mode)
    refused("POLICY_NOT_PROTECTED", load_policy, policy)


def test_O1_a_policy_in_a_folder_that_others_may_write_is_refused(policy):
    policy.parent.chmod(0o777)
    refused("POLICY_NOT_PROTECTED", load_policy, policy)
    policy.parent.chmod(0o1777)  # as /tmp: others cannot put another file in its place
    load_policy(policy)


@pytest.mark.parametrize(
    "change",
    [
        {"experiments": ["Pilot"]},
        {"experiments": ["pilot@12"]},
        {"experiments": [""]},
        {"quiet_hours": ["22-6"]},
        {"quiet_hours": ["24:00-06:00"]},
        {"reply_slot": 0.0},
        {"reply_slot": 3600.0},
        {"max_repeats": -1},
        {"max_rounds_per_hour": 0},
        {"max_experiments_per_day": 0},
        {"max_evaluations": -1},
        {"max_epsilon_operator_lifetime": 0.0},
    ],
)
def test_P11_impossible_rules_are_refused(policy, change):
    write(policy, **change)
    refused("IMPOSSIBLE_VALUE", load_policy, policy)


# O2: tightening and loosening


def test_O2_a_tightened_rule_holds_at_the_next_message(site, request_for, policy, tmp_path, audit):
    rules = PolicyFile(policy, tmp_path, audit)
    site.start(rules)
    site.agent.train(request_for(1))
    write(policy, min_noise_multiplier=4.5)
    refused("TOO_LITTLE_NOISE", site.agent.train, request_for(2))
    refused("TOO_LITTLE_NOISE", site.agent.train, request_for(1))  # not even what is stored
    assert len(site.charges) == 1


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda path: path.write_text("experiments = [\n"), "BAD_TOML"),
        (lambda path: path.write_text('experiments = ["*"]\n'), "MISSING_KEY"),
        (lambda path: path.unlink(), "NO_POLICY"),
        (lambda path: path.chmod(0o666), "POLICY_NOT_PROTECTED"),
    ],
)
def test_O2_while_the_policy_is_unreadable_nothing_is_answered(
    site, request_for, experiment, policy, tmp_path, audit, spoil, code
):
    site.start(PolicyFile(policy, tmp_path, audit))
    site.agent.train(request_for(1))
    spoil(policy)
    refused(code, site.agent.train, request_for(1))
    refused(code, site.agent.train, request_for(2))
    refused(code, site.agent.evaluate, EvaluateRequest(experiment, 1, np.zeros(experiment.context_shape, "<f4")))
    write(policy)
    assert site.agent.train(request_for(2)).round == 2


def test_O2_a_loosened_rule_holds_only_when_accepted_and_the_audit_log_says_who_did(rules, policy, events, audit):
    write(policy, max_rounds=10)
    assert rules.current().max_rounds == 10
    write(policy, max_rounds=1000, min_noise_multiplier=1.0)
    assert (rules.current().max_rounds, rules.current().min_noise_multiplier) == (10, 1.0)
    assert rules.pending() == ["max_rounds"]
    assert "policy_looser_not_accepted" in events()
    assert rules.accept() == ["max_rounds"]
    assert rules.current().max_rounds == 1000
    (accepted,) = [line for line in audit.lines() if line["event"] == "policy_accepted"]
    assert accepted["looser"] == ["max_rounds"]
    assert len({accepted["old"], accepted["new"]}) == 2


def test_O2_a_restart_accepts_nothing(rules, policy, tmp_path, audit):
    rules.current()
    write(policy, max_rounds=1000)
    assert PolicyFile(policy, tmp_path, audit).current().max_rounds == 500


def test_O2_tightened_and_loosened_back_is_loosened(rules, policy):
    rules.current()
    write(policy, metrics="none")
    assert rules.current().metrics == "none"
    write(policy)
    assert rules.current().metrics == "none"
    rules.accept()
    assert rules.current().metrics == "noised"


def test_O2_loosening_gives_back_nothing_that_was_charged(
    site, request_for, experiment, changed, policy, tmp_path, audit
):
    rules = PolicyFile(policy, tmp_path, audit)
    site.start(rules)
    site.agent.train(request_for(1))
    before = site.ledger.events()
    write(policy, max_epsilon_lifetime=1000.0)
    rules.accept()
    site.agent.train(request_for(1, changed(experiment, name="second")))
    assert site.ledger.events("pilot") == before


def test_O2_what_was_accepted_cannot_be_lost_silently(rules, policy, tmp_path, audit):
    rules.current()
    (tmp_path / "policy.accepted.json").write_text("{")
    refused("POLICY_STATE_DAMAGED", PolicyFile(policy, tmp_path, audit).current)
    rules.accept()
    assert rules.current().max_rounds == 500


RULES = {
    "experiments": (["pilot"], ["*"]),
    "max_epsilon_per_experiment": (1.0, 2.0),
    "max_epsilon_lifetime": (1.0, 2.0),
    "max_epsilon_operator": (1.0, 2.0),
    "max_epsilon_operator_lifetime": (1.0, 2.0),
    "delta": (1e-6, 1e-5),
    "trust": (["local"], ["local", "central"]),
    "units": (["example"], ["example", "site"]),
    "mechanisms": (["one_shot"], ["one_shot", "per_step"]),
    "methods": (["dpfpl"], ["dpfpl", "promptfl"]),
    "min_noise_multiplier": (2.0, 1.0),
    "max_clipping_norm": (1.0, 2.0),
    "max_rounds": (1, 2),
    "max_repeats": (1, 2),
    "max_rounds_per_hour": (1, 2),
    "max_experiments_per_day": (1, 2),
    "max_evaluations": (1, 2),
    "max_evaluations_lifetime": (1, 2),
    "metrics": ("none", "coarse"),
    "publish": (["north/one"], ["north/one", "north/two"]),
    "quiet_hours": (["22:00-06:00"], []),
    "reply_slot": (0.2, 0.1),
}


def test_every_rule_knows_which_of_two_values_is_the_stricter():
    assert set(RULES) == set(Policy.__dataclass_fields__)
    for name, (strict, loose) in RULES.items():
        values = [tuple(v) if isinstance(v, list) else v for v in (strict, loose)]
        one, other = (
            Policy(**{**{k: tuple(v) if isinstance(v, list) else v for k, v in BASE.items()}, name: value})
            for value in values
        )
        assert getattr(stricter(one, other), name) == getattr(stricter(other, one), name) == values[0], name
        assert loosened(one, other) == [name]
        assert loosened(other, one) == loosened(one, one) == []


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (["*"], ["pilot", "other"], {"pilot", "other"}),
        (["pilot"], ["other"], set()),
        (["pilot"], ["pilot@0123456789ab"], {"pilot@0123456789ab"}),
        (["pilot@0123456789ab"], ["pilot@0123456789abcd"], {"pilot@0123456789abcd"}),
        (["pilot@0123456789ab"], ["pilot@0123456789ac"], set()),
        (["pilo"], ["pilot"], set()),
    ],
)
def test_approved_by_both(one, other, both):
    for first, second in ((one, other), (other, one)):
        policies = [Policy(tuple(names), 1.0, 1.0) for names in (first, second)]
        assert set(stricter(*policies).experiments) == both


# Approval by name and configuration


def test_an_approval_is_of_one_configuration(site, request_for, experiment, changed, policy, tmp_path, audit):
    write(policy, experiments=[])
    site.start(PolicyFile(policy, tmp_path, audit))
    refused("EXPERIMENT_NOT_APPROVED", site.agent.train, request_for(1))
    approvals = Approvals(tmp_path)
    (waiting,) = approvals.pending().values()
    assert waiting == experiment
    approvals.approve(waiting)
    assert approvals.pending() == {}
    other = changed(experiment, rounds={"number": 2})
    refused("EXPERIMENT_NOT_APPROVED", site.agent.train, request_for(1, other))
    assert site.agent.train(request_for(1)).round == 1
    approvals.revoke("pilot")
    refused("EXPERIMENT_NOT_APPROVED", site.agent.train, request_for(2))
    assert len(site.charges) == 1


def test_policy_toml_can_name_the_configuration_itself(experiment, changed):
    digest = experiment.digest()
    for entry in (f"pilot@{digest}", f"pilot@{digest[:12]}", "pilot", "*"):
        assert Policy((entry,), 1.0, 1.0).approves(experiment)
    other = changed(experiment, rounds={"number": 2})
    assert not Policy((f"pilot@{digest[:12]}",), 1.0, 1.0).approves(other)
    assert not Policy((f"pilo@{digest[:12]}",), 1.0, 1.0).approves(experiment)


def test_an_approval_overrides_no_other_rule(site, request_for, experiment, policy, tmp_path, audit):
    write(policy, experiments=[], min_noise_multiplier=4.5)
    Approvals(tmp_path).approve(experiment)
    site.start(PolicyFile(policy, tmp_path, audit))
    refused("TOO_LITTLE_NOISE", site.agent.train, request_for(1))


def test_only_a_few_refused_experiments_are_remembered(tmp_path, experiment, changed):
    approvals = Approvals(tmp_path)
    for number in range(3 * MOST_PENDING):
        approvals.wait(changed(experiment, name=f"e{number}"))
    assert list(approvals.pending()) == [f"e{number}" for number in range(2 * MOST_PENDING, 3 * MOST_PENDING)]


@pytest.mark.parametrize(
    ("hours", "clock", "quiet"),
    [
        ("22:00-06:00", "23:59", True),
        ("22:00-06:00", "05:59", True),
        ("22:00-06:00", "06:00", False),
        ("22:00-06:00", "21:59", False),
        ("09:00-17:00", "12:00", True),
        ("09:00-17:00", "17:00", False),
        ("09:00-17:00", "08:59", False),
    ],
)
def test_quiet_hours(hours, clock, quiet):
    assert Policy(("*",), 1.0, 1.0, quiet_hours=(hours,)).quiet_at(time.strptime(clock, "%H:%M")) is quiet
