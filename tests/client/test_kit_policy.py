"""DR6: the kit is not the site's law: what its policy allows beyond the client's template is shown and accepted."""

import json
import tomllib

import pytest

from dpfpl_client.agent.audit import AuditLog
from dpfpl_client.agent.policy_file import PolicyFile
from dpfpl_client.cli import gate, main
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
    archive = provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("north",), archive="tar.gz")).kits[
        "north"
    ]
    plain = provision(ProvisionRequest(tmp_path / "server2", tmp_path / "plain", ("north",))).kits["north"]
    assert archive.suffix == ".gz"
    (plain / "policy.toml").write_text(LOOSE)
    (plain / "policy.toml").chmod(0o640)
    (tmp_path / "images").mkdir()
    return plain


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["dpfpl-client", *arguments])
    with pytest.raises(SystemExit) as left:
        main.main()
    return left.value.code, capsys.readouterr().out


def rules(kit):
    return PolicyFile(kit / "policy.toml", kit / "state", AuditLog(None))


def test_the_kits_own_starting_policy_is_not_looser_than_the_template(tmp_path):
    (tmp_path / "policy.toml").write_text(STARTING_POLICY)
    (tmp_path / "policy.toml").chmod(0o640)
    assert PolicyFile(tmp_path / "policy.toml", tmp_path, AuditLog(None)).looser_than(template_policy()) == []
    assert tomllib.loads(STARTING_POLICY) != tomllib.loads(LOOSE)


@pytest.mark.privacy
def test_DR6_looser_rules_of_a_kit_are_listed_and_do_not_hold(kit, tmp_path, monkeypatch, capsys):
    code, out = run(monkeypatch, capsys, "init", "--site", str(kit / "site.toml"), "--data", str(tmp_path / "images"))
    assert code in (0, None)
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
def test_DR6_they_are_accepted_one_by_one(kit, tmp_path, monkeypatch, capsys):
    site = str(kit / "site.toml")
    run(monkeypatch, capsys, "init", "--site", site, "--data", str(tmp_path / "images"))
    code, out = run(monkeypatch, capsys, "policy", "accept", "--site", site, "--rule", "metrics", "--json")
    assert (code or 0, json.loads(out)["looser"]) == (0, ["metrics"])
    policy = rules(kit).current()
    assert (policy.metrics, policy.max_epsilon_lifetime) == ("exact", 20.0), "the other one still does not hold"
    code, out = run(monkeypatch, capsys, "policy", "accept", "--site", site, "--rule", "delta")
    assert code == 2


@pytest.mark.privacy
def test_DR6_at_a_terminal_each_one_is_asked_for(kit, tmp_path, monkeypatch, capsys):
    asked = []

    def confirm(text):
        asked.append(text.strip().split(":")[0])
        return asked[-1] == "max_epsilon_lifetime"

    monkeypatch.setattr(gate.typer, "confirm", confirm)
    monkeypatch.setattr(gate.sys.stdin, "isatty", lambda: True, raising=False)
    run(monkeypatch, capsys, "init", "--site", str(kit / "site.toml"), "--data", str(tmp_path / "images"))
    assert sorted(asked) == ["max_epsilon_lifetime", "metrics"]
    assert rules(kit).current().max_epsilon_lifetime == 500.0
    assert rules(kit).current().metrics == "noised"
    run(monkeypatch, capsys, "init", "--site", str(kit / "site.toml"), "--data", str(tmp_path / "images"))
    assert rules(kit).current().metrics == "noised", "a second init accepts nothing by itself"
