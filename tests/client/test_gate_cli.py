"""What the administrator types to steer the gate: approve, register, policy, audit, ledger."""

import dataclasses
import json
import shutil
from contextlib import nullcontext

import pytest

from dpfpl_client.agent.policy_file import Approvals
from dpfpl_client.approval import read_plan
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import ConfigError, RefusedError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.policy import Policy, permit
from dpfpl_common.privacy_plan import resolve_noise


@pytest.fixture
def experiment():
    return Experiment(
        name="lungs",
        classes=("bright", "dark"),
        sites=(*(f"site-{number}" for number in range(8)), "north"),
        model=ModelSettings(width=128),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=6.0),
        rounds=RoundSettings(number=3),
    )


@pytest.fixture
def toml_plan(tmp_path):
    """toml_plan(privacy): an experiment.toml with this [privacy]."""

    def write(privacy, sites=("east", "north", "west")):
        path = tmp_path / "lungs.toml"
        text = f'classes = ["a", "b"]\nsites = {list(sites)}\n[model]\nwidth = 128\n[privacy]\n{privacy}\n'
        path.write_text(text)
        return path

    return write


@pytest.fixture
def plan(tmp_path, experiment):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"experiment": json.loads(experiment.to_json()), "digest": experiment.digest()}))
    return path


def test_approve_shows_in_plain_words_who_learns_what_and_asks(command, trained_site, plan, experiment, monkeypatch):
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    code, out, _ = command("approve", plan, "--site", trained_site)
    assert code == 1
    for text in (
        "Experiment lungs", "9 sites", "bright, dark", "in each of 3 rounds", "512 numbers", "noised update",
        "accuracies", "Never an image", "one training example", "anyone who receives", "another site", "the operator",
        "allowed 50 for one experiment", "of 100", "of 40", "Not approved",
    ):  # fmt: skip
        assert text in out
    assert not Approvals(load_site(trained_site).state_folder).holds(experiment)
    code, out, _ = command("approve", plan, "--site", trained_site, "--yes")
    assert (code, "Approved." in out) == (0, True)
    assert Approvals(load_site(trained_site).state_folder).holds(experiment)


def test_approve_for_scripts(command, trained_site, plan, experiment):
    code, out, _ = command("approve", plan, "--site", trained_site, "--json")
    told = json.loads(out)
    assert (code, told["approved"], told["digest"]) == (1, False, experiment.digest())
    by_adversary = {cost["adversary"]: cost for cost in told["costs"]}
    assert by_adversary["operator"]["epsilon"] > by_adversary["prompt_recipient"]["epsilon"]
    assert all(cost["with_earlier"] > cost["epsilon"] for cost in told["costs"])  # the pilot was charged before
    code, out, _ = command("approve", plan, "--site", trained_site, "--json", "--yes")
    assert (code, json.loads(out)["approved"]) == (0, True)
    code, _, _ = command("approve", "--revoke", "lungs", "--site", trained_site)
    assert code == 0
    assert not Approvals(load_site(trained_site).state_folder).holds(experiment)


def test_what_was_refused_can_be_approved_without_a_file(command, trained_site, experiment):
    code, _, err = command("approve", "--pending", "--site", trained_site)
    assert (code, "NOTHING_PENDING" in err) == (2, True)
    approvals = Approvals(load_site(trained_site).state_folder)
    approvals.wait(experiment)
    code, _, _ = command("approve", "--pending", "--name", "other", "--site", trained_site)
    assert code == 2
    assert command("approve", "--pending", "--site", trained_site, "--yes")[0] == 0
    assert approvals.holds(experiment)
    assert command("approve", "--site", trained_site)[0] == 2


def test_a_plan_that_the_policy_refuses_says_so(command, trained_site, tmp_path, experiment):
    bare = dataclasses.replace(experiment, privacy=PrivacySettings(noise_multiplier=0.1))
    (tmp_path / "bare.json").write_text(bare.to_json())
    _, out, _ = command("approve", tmp_path / "bare.json", "--site", trained_site, "--json")
    assert "TOO_LITTLE_NOISE" in json.loads(out)["refused_because"]


def test_plans_in_toml_need_their_sites(toml_plan):
    path = toml_plan("target_epsilon = 4.0", ["north"])
    read = read_plan(path)
    assert (read.name, read) == ("lungs", resolve_noise(read))
    assert read.privacy.noise_multiplier is not None
    assert (read.privacy.mechanism, read.privacy.trust) == ("one_shot", "local")  # as the operator's server fills it in
    path.write_text(path.read_text().replace("sites = ['north']\n", ""))
    with pytest.raises(ConfigError, match="PLAN_WITHOUT_SITES"):
        read_plan(path)


def test_a_plan_whose_trust_the_server_decides_is_not_approved_as_local(toml_plan):
    """It would be secure where all sites enrolled: the site would have approved, by name, what never runs."""
    for left_open in ("target_epsilon = 4.0", 'trust = "auto"\ntarget_epsilon = 4.0'):
        with pytest.raises(ConfigError, match="PLAN_WITHOUT_TRUST"):
            read_plan(toml_plan(left_open))
    for named in ("local", "secure"):
        assert read_plan(toml_plan(f'trust = "{named}"\ntarget_epsilon = 4.0')).privacy.trust == named
    never_secure = toml_plan('mechanism = "per_step"\ntarget_epsilon = 4.0')
    assert read_plan(never_secure).privacy.trust == "distributed", "whoever enrolled"


@pytest.mark.parametrize(("approved", "asked"), [("local", "secure"), ("secure", "local")])
def test_what_was_approved_under_one_trust_does_not_run_under_another(
    command, trained_site, toml_plan, approved, asked
):
    path, state = toml_plan(f'trust = "{approved}"\ntarget_epsilon = 4.0'), load_site(trained_site).state_folder
    assert command("approve", path, "--yes", "--site", trained_site)[0] == 0
    allowed = read_plan(path)
    other = dataclasses.replace(allowed, privacy=dataclasses.replace(allowed.privacy, trust=asked))
    policy = Policy((), 50.0, 50.0, trust=("local", "secure"))
    for experiment, runs in ((allowed, True), (other, False)):
        holds = Approvals(state).holds(experiment)
        assert holds is runs
        with nullcontext() if runs else pytest.raises(RefusedError, match="EXPERIMENT_NOT_APPROVED"):
            permit(policy, experiment, holds)


def test_noise_that_is_added_once_is_said_to_be(command, trained_site, toml_plan, monkeypatch):
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    _, out, _ = command("approve", toml_plan("target_epsilon = 4.0", ["north"]), "--site", trained_site)
    assert "sums over your images that are noised once, at the start" in out
    assert "noised update" not in out


def test_under_secure_trust_it_says_what_is_assumed_and_how_far_pins_go(command, trained_site, toml_plan):
    path = toml_plan('target_epsilon = 4.0\ntrust = "secure"')
    pins = trained_site.parent / "peers.toml"
    fingerprint = "SHA256:" + "A" * 43
    for pinned, said in (
        ((), "WARNING No key of another site is pinned here: an operator that invents sites could read yours"),
        (("west",), "WARNING Sums are refused until the keys of east are pinned"),
        (("east", "west"), "The keys of all other sites are pinned here"),
    ):
        pins.write_text("".join(f'{site} = "{fingerprint}"\n' for site in pinned))
        pins.chmod(0o640)
        _, out, _ = command("approve", path, "--yes", "--site", trained_site)
        assert "honest but curious" in out
        assert said in out
        _, out, _ = command("approve", path, "--json", "--site", trained_site)
        assert json.loads(out)["peers"] == {site: site in pinned for site in ("east", "west")}


@pytest.mark.parametrize("content", ["{", "[]", '{"experiment": {}}', "no json"])
def test_what_is_no_plan_is_refused(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(ConfigError):
        read_plan(tmp_path / "plan.json")


def test_a_plan_whose_digest_is_another_is_refused(plan):
    plan.write_text(plan.read_text().replace('"number": 3', '"number": 4'))
    with pytest.raises(ConfigError, match="BAD_PLAN"):
        read_plan(plan)


def test_policy_show_and_accept(command, trained_site):
    policy = trained_site.parent / "policy.toml"
    policy.write_text(policy.read_text() + "max_rounds = 1000\n")
    code, out, _ = command("policy", "show", "--site", trained_site, "--json")
    told = json.loads(out)
    assert (code, told["rules"]["max_rounds"], told["not_accepted"]) == (0, 500, ["max_rounds"])
    assert "not accepted" in command("policy", "show", "--site", trained_site)[1]
    code, out, _ = command("policy", "accept", "--site", trained_site, "--yes")
    assert (code, "Looser: max_rounds" in out) == (0, True)
    code, out, _ = command("policy", "show", "--site", trained_site, "--json")
    assert json.loads(out) == {"rules": {**told["rules"], "max_rounds": 1000}, "not_accepted": []}


def test_audit_show(command, trained_site):
    code, out, _ = command("audit", "show", "--site", trained_site)
    assert code == 0
    for event in ("policy_first_read", "dataset_registered", "agent_started", "released", "evaluated"):
        assert event in out
    code, out, _ = command("audit", "show", "--last", "1", "--json", "--site", trained_site)
    assert [line["event"] for line in json.loads(out)] == ["evaluated"]
    assert ".png" not in json.dumps(json.loads(out))


def test_register_and_accept_rollback(command, trained_site):
    code, out, _ = command("register", "--site", trained_site, "--yes", "--json", "--unreadable", "refuse")
    assert (code, json.loads(out)["version"], json.loads(out)["rule"]) == (0, 2, "refuse")
    state = load_site(trained_site).state_folder
    shutil.copytree(state, state.with_name("yesterday"))
    command("register", "--site", trained_site, "--yes")
    shutil.rmtree(state)
    state.with_name("yesterday").rename(state)
    code, out, _ = command("ledger", "verify", "--site", trained_site)
    assert (code, "LEDGER_ROLLED_BACK" in out) == (2, True)
    code, out, _ = command("ledger", "accept-rollback", "--site", trained_site, "--yes", "--json")
    assert (code, json.loads(out)) == (0, {"charged": []})  # nothing was spent between the two
    assert command("ledger", "verify", "--site", trained_site)[0] == 0


def test_F11_ledger_verify_names_the_record_and_fails(command, trained_site):
    import sqlite3

    database = sqlite3.connect(load_site(trained_site).state_folder / "ledger.sqlite")
    database.execute("DROP TRIGGER never_changed")
    database.execute("UPDATE records SET content = replace(content, 'pilot', 'pilat') WHERE sequence = 4")
    database.commit()
    database.close()
    code, out, _ = command("ledger", "verify", "--site", trained_site, "--json")
    assert code == 2
    assert "Record 4 was changed" in json.loads(out)["problems"][0]


def test_approve_says_which_images_are_left_out_before_it_asks(
    command, trained_site, tmp_path, experiment, monkeypatch
):
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    other = dataclasses.replace(experiment, classes=("bright", "Dark"))
    (tmp_path / "other.json").write_text(other.to_json())
    _, out, _ = command("approve", tmp_path / "other.json", "--site", trained_site)
    assert "WARNING 6 of 12 images are left out" in out
    assert "'dark' (6)" in out
    assert 'class_map = { "dark" = "Dark" }' in out
    _, out, _ = command("approve", tmp_path / "other.json", "--site", trained_site, "--json")
    assert "6 of 12" in json.loads(out)["left_out"]
    (tmp_path / "same.json").write_text(experiment.to_json())
    _, out, _ = command("approve", tmp_path / "same.json", "--site", trained_site)
    assert "left out" not in out


def test_doctor_says_which_images_are_left_out(command, trained_site, experiment):
    approvals = Approvals(load_site(trained_site).state_folder)
    assert (
        "All images have classes that the experiments know" in command("doctor", "--offline", "--site", trained_site)[1]
    )
    approvals.wait(dataclasses.replace(experiment, classes=("bright", "Dark")))
    code, out, _ = command("doctor", "--offline", "--site", trained_site)
    assert "lungs: 6 of 12 images are left out" in out
    assert "UNKNOWN_CLASS" in out
    assert code >= 1
