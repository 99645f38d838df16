"""DR6: the kit is not the site's law: what its policy allows beyond the client's template is shown and accepted."""

import json

import pytest

from dpfpl_client.agent.audit import AuditLog
from dpfpl_client.agent.policy_file import PolicyFile
from dpfpl_client.cli import gate
from dpfpl_client.site.init import template_policy
from dpfpl_server.sites.kits import STARTING_POLICY
from dpfpl_server.sites.provision import ProvisionRequest, provision

LOOSE = (
    STARTING_POLICY.replace("max_epsilon_lifetime = 20.0", "max_epsilon_lifetime = 500.0")
    .replace('metrics = "noised"', 'metrics = "exact"')
    .replace("max_epsilon_per_experiment = 10.0", "max_epsilon_per_experiment = 5.0")
)


@pytest.fixture
def kit(tmp_path):
    """A kit as a hostile operator makes it: looser in two rules, stricter in one."""
    kit = provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("north",))).kits["north"]
    (kit / "policy.toml").write_text(LOOSE)
    (kit / "policy.toml").chmod(0o640)
    return kit


@pytest.fixture
def init(kit, image_folder, command):
    return lambda: command("init", "--site", kit / "site.toml", "--data", image_folder)


def rules(kit):
    return PolicyFile(kit / "policy.toml", kit / "state", AuditLog(None))


def test_the_kits_own_starting_policy_is_not_looser_than_the_template(tmp_path):
    (tmp_path / "policy.toml").write_text(STARTING_POLICY)
    (tmp_path / "policy.toml").chmod(0o640)
    assert PolicyFile(tmp_path / "policy.toml", tmp_path, AuditLog(None)).looser_than(template_policy()) == []


@pytest.mark.privacy
def test_DR6_looser_rules_of_a_kit_are_listed_and_do_not_hold(kit, init):
    code, out, _ = init()
    assert code == 0
    for line in (
        "max_epsilon_lifetime: 500.0, where the template has 20.0",
        'metrics: "exact", where the template has "noised"',
    ):
        assert line in out
    assert "max_epsilon_per_experiment" not in out, "what is stricter needs no word"
    policy = rules(kit).current()
    assert (policy.max_epsilon_lifetime, policy.metrics, policy.max_epsilon_per_experiment) == (20.0, "noised", 5.0)
    assert sorted(rules(kit).pending()) == ["max_epsilon_lifetime", "metrics"]


@pytest.mark.privacy
def test_DR6_they_are_accepted_one_by_one(kit, init, command):
    init()
    accept = ("policy", "accept", "--site", kit / "site.toml", "--rule")
    code, out, _ = command(*accept, "metrics", "--json")
    assert (code, json.loads(out)["looser"]) == (0, ["metrics"])
    policy = rules(kit).current()
    assert (policy.metrics, policy.max_epsilon_lifetime) == ("exact", 20.0), "the other one still does not hold"
    assert command(*accept, "delta")[0] == 2


@pytest.mark.privacy
def test_DR6_at_a_terminal_each_one_is_asked_for(kit, init, monkeypatch):
    asked = []

    def confirm(text):
        asked.append(text.strip().split(":")[0])
        return asked[-1] == "max_epsilon_lifetime"

    monkeypatch.setattr(gate.typer, "confirm", confirm)
    monkeypatch.setattr(gate.sys.stdin, "isatty", lambda: True, raising=False)
    init()
    assert sorted(asked) == ["max_epsilon_lifetime", "metrics"]
    assert rules(kit).current().max_epsilon_lifetime == 500.0
    assert rules(kit).current().metrics == "noised"
    init()
    assert rules(kit).current().metrics == "noised", "a second init accepts nothing by itself"
