"""The plan says beforehand what a run then costs, and which sites would refuse it."""

import dataclasses
import json
import math
import re
import tomllib

import numpy as np
import pytest
import server_samples
from server_samples import entry, keep, provisioned
from wire_samples import reply_content

from dpfpl_client.agent.budget import check_budget
from dpfpl_client.agent.ledger.book import SCORES, Ledger
from dpfpl_client.agent.policy_file import load_policy
from dpfpl_common.config import build
from dpfpl_common.errors import RefusedError
from dpfpl_common.experiment import Experiment
from dpfpl_common.policy import Policy, permit
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy_plan import capped_event, planned_events, planned_score_events
from dpfpl_common.wire.payloads import METRIC_NAMES, SiteReply, TrainRequest
from dpfpl_server.federation.messages import content_bytes, request_content
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.plan import KNOWN_SIZES, make_plan, plan_lines
from dpfpl_server.runs.result import privacy_statement
from dpfpl_server.sites.kits import STARTING_POLICY
from dpfpl_server.sites.register import save_sites

SITES = ("east", "north", "south")
REGISTER = provisioned(*SITES)
CHEAP = {"noise_multiplier": 2.7}
"""So that one run is within the caps of a kit and fifteen are not."""
PRIVACY = {"noise_multiplier": 4.0, "tolerated_dropouts": 1}


def make_experiment(rounds=None, **privacy):
    made = server_samples.make_experiment(
        SITES, width=128, rounds={"local_steps": 2} | (rounds or {}), **{**PRIVACY, **privacy}
    )
    return dataclasses.replace(made, model=dataclasses.replace(made.model, fingerprint="abc"))


def test_the_epsilons_are_those_of_the_finished_run(tmp_path):
    experiment = make_experiment()
    plan = make_plan(experiment, REGISTER, tmp_path)
    assert plan["privacy"]["epsilons"] == privacy_statement(experiment, 3)["epsilons"]
    assert plan["privacy"]["epsilons"][0]["epsilon"] == epsilon(planned_events(experiment)[:1], 1e-5)
    assert (plan["refusals"], plan["warnings"]) == ([], [])


def test_the_experiment_in_it_is_what_sites_get(tmp_path):
    experiment = make_experiment()
    plan = json.loads(json.dumps(make_plan(experiment, REGISTER, tmp_path)))
    again = build(Experiment, plan["experiment"], "plan.json")
    assert again == experiment
    assert again.digest() == plan["digest"]


def test_the_bytes_are_about_those_that_are_sent(tmp_path):
    experiment = make_experiment()
    context = np.zeros(experiment.context_shape, dtype="<f4")
    request = TrainRequest(experiment, 1, context)
    plan = make_plan(experiment, REGISTER, tmp_path)["bytes"]
    assert plan["down_per_site_round"] == content_bytes(request_content(request))
    reply = SiteReply("east", 1, context, dict.fromkeys(METRIC_NAMES, 0.123), signature=b"s" * 64)
    assert plan["up_per_site_round"] == pytest.approx(content_bytes(reply_content(reply, request)), rel=0.15)
    assert plan["down"] == 3 * 3 * plan["down_per_site_round"]


def test_how_many_images_a_class_needs_is_said_where_it_needs_some(tmp_path):
    steps = make_plan(make_experiment(), REGISTER, tmp_path)
    assert steps["images_of_a_class"] == {}
    assert "a class counts" not in "\n".join(plan_lines(steps))
    once = make_plan(make_experiment(mechanism="one_shot", trust="local", noise_multiplier=2.0), REGISTER, tmp_path)
    assert once["images_of_a_class"] == {"96": 21, "512": 28, "768": 31}  # 10 z, 14 z, 15.3 z
    assert "than about 21 where the model's image features have 96 numbers, 28 where" in "\n".join(plan_lines(once))


def test_the_plan_says_which_mechanism_auto_takes_and_why(tmp_path):
    steps = make_plan(make_experiment(), REGISTER, tmp_path)
    assert "mechanism: per_step; auto takes one_shot: no setting rules out" in "\n".join(plan_lines(steps))
    once = make_plan(make_experiment(mechanism="one_shot", trust="local"), REGISTER, tmp_path)
    assert "mechanism: one_shot; auto takes one_shot: " in "\n".join(plan_lines(once))
    site = make_plan(make_experiment(unit="site"), REGISTER, tmp_path)
    assert "mechanism: per_step; auto takes per_step: one_shot protects single examples" in "\n".join(plan_lines(site))


def test_the_plan_says_where_class_vectors_will_find_little(tmp_path):
    def said(images):
        once = make_experiment(mechanism="one_shot", trust="local", nominal_site_size=images, tolerated_dropouts=0)
        return next(line for line in plan_lines(make_plan(once, REGISTER, tmp_path)) if line.startswith("mechanism"))

    few = re.search(
        r"may find little: 15 images of a class, nominally, where about (\d+) are needed at this epsilon if every site "
        r"has the same share of them \((\d+) under secure, if the sites enrol keys\), and (\d+) if one site has them "
        r"all; this is if features have 512 numbers, fewer need fewer images; per_step may learn more", said(10)
    )  # fmt: skip
    local, secure, one = map(int, few.groups())
    assert secure < local
    assert local == pytest.approx(one * math.sqrt(3), abs=2), "the noise of three sites"
    assert "may find little" in said(local // 2)
    assert "may find little" not in said(local)  # three sites of two classes: half as many again


def test_it_does_not_say_that_a_secure_sum_needs_fewer_images_of_a_class_at_one_site(tmp_path):
    register = {name: dataclasses.replace(site, aggregation_key="own") for name, site in REGISTER.items()}
    plan = make_plan(
        make_experiment(mechanism="one_shot", trust="secure", nominal_site_size=10, tolerated_dropouts=0),
        register,
        tmp_path,
    )
    assert "may find little" in plan["mechanism"]["reason"]
    assert "if one site has them all" not in plan["mechanism"]["reason"]
    now = plan["evidence"]["now"]
    assert (now["found_at_one_site"], now["half_at_one_site"]) == (now["found_evenly"], now["half_evenly"])


def test_a_known_models_own_feature_size_is_used(tmp_path):
    """By the fingerprint that every site checks; the id is what somebody wrote."""
    once = make_experiment(mechanism="one_shot", trust="local", nominal_site_size=10, tolerated_dropouts=0)
    known = dataclasses.replace(once, model=dataclasses.replace(once.model, fingerprint=next(iter(KNOWN_SIZES))))
    other, embedded = (make_plan(experiment, REGISTER, tmp_path) for experiment in (once, known))
    assert [plan["evidence"]["feature_size"] for plan in (other, embedded)] == [512, 96]
    needed = [plan["evidence"]["now"]["half_evenly"] for plan in (other, embedded)]
    assert needed[0] == pytest.approx(needed[1] * math.sqrt(512 / 96), rel=0.02)
    assert "(features of 512 numbers, assumed; fewer need fewer images)" in "\n".join(plan_lines(other))
    said = "\n".join(plan_lines(embedded))
    assert "(features of 96 numbers)" in said
    assert "512" not in said
    assert "may find little" in said
    assert set(embedded["images_of_a_class"]) == {"96"}


def test_with_a_single_round_it_says_that_there_are_no_class_vectors(tmp_path):
    def said(number, **privacy):
        plan = make_plan(make_experiment({"number": number}, **privacy), REGISTER, tmp_path)
        return [line for line in plan_lines(plan) if line.startswith("WARNING class vectors need two rounds")]

    once = {"mechanism": "one_shot", "trust": "local"}
    assert len(said(1, **once)) == 1
    assert said(2, **once) == said(1) == []


@pytest.mark.parametrize(("trust", "enrolled"), [("local", SITES), ("secure", SITES), ("local", SITES[:2])])
def test_the_plan_says_which_trust_auto_takes_and_why_and_who_would_refuse_it(tmp_path, trust, enrolled):
    register = {n: dataclasses.replace(s, aggregation_key="own" * (n in enrolled)) for n, s in REGISTER.items()}
    experiment = make_experiment(mechanism="one_shot", trust=trust, tolerated_dropouts=0)
    plan = make_plan(experiment, register, tmp_path)
    why = "secure: all 3 sites enrolled" if enrolled == SITES else "local: 1 of 3 sites enrolled no keys of their own"
    assert f"trust: {trust}; auto takes {why}" in "\n".join(plan_lines(plan))
    assert plan["refusals"] == [], "kits of sites that enrolled admit secure"
    kept = make_plan(experiment, REGISTER, tmp_path)
    assert [refusal["rule"] for refusal in kept["refusals"]] == (["trust"] if trust == "secure" else [])


BREACHES = {
    "trust": {"trust": "central"},
    "units": {"unit": "site"},
    "accounting": {"accounting": "paper"},
    "max_clipping_norm": {"clipping_norm": 11.0},
    "min_noise_multiplier": {"noise_multiplier": 0.25},
    "delta": {"target_delta": 1e-4},
    "max_epsilon_per_experiment": {"noise_multiplier": 0.4},
    "max_epsilon_operator": {"noise_multiplier": 0.4},
    "max_rounds": {},
}


@pytest.mark.parametrize("rule", BREACHES)
def test_what_a_kits_policy_refuses_is_foreseen(tmp_path, rule):
    """The site's own rules, in its own code, refuse it by the same name."""
    experiment = make_experiment(rounds={"number": 501} if rule == "max_rounds" else None, **BREACHES[rule])
    assert rule in [refusal["rule"] for refusal in make_plan(experiment, REGISTER, tmp_path)["refusals"]]
    (tmp_path / "policy.toml").write_text(STARTING_POLICY)
    with pytest.raises(RefusedError):
        permit(load_policy(tmp_path / "policy.toml"), experiment)


def test_what_a_kits_policy_admits_is_not_foreseen_as_refused(tmp_path):
    (tmp_path / "policy.toml").write_text(STARTING_POLICY)
    for experiment in (make_experiment(), make_experiment(trust="local"), make_experiment(noise_multiplier=2.0)):
        permit(load_policy(tmp_path / "policy.toml"), experiment)
        assert make_plan(experiment, REGISTER, tmp_path)["refusals"] == []


@pytest.mark.parametrize("names", [("Nevus", "nevus"), ("bar ", "bar"), ("lung  cancer", "lung cancer"), ("É", "é")])
def test_class_names_that_models_read_alike_are_foreseen_as_refused(tmp_path, names):
    experiment = dataclasses.replace(make_experiment(), classes=("cat", *names))
    (refusal,) = make_plan(experiment, REGISTER, tmp_path)["refusals"]
    assert refusal["rule"] == "classes"
    assert all(repr(name) in refusal["why"] for name in names)
    assert "same tokens" in refusal["why"]


def test_sites_that_cannot_take_part_are_named(tmp_path):
    register = {"east": REGISTER["east"], "north": dataclasses.replace(REGISTER["north"], agent_key="")}
    why = " ".join(refusal["why"] for refusal in make_plan(make_experiment(), register, tmp_path)["refusals"])
    assert "north has no signing key" in why
    assert "south is not provisioned" in why


def test_the_time_comes_from_an_earlier_run_alike(tmp_path):
    first = make_plan(make_experiment(), REGISTER, tmp_path)["seconds"]
    assert "not known before a first run" in first["basis"]
    folder = RunFolder(tmp_path / "earlier")
    folder.begin(make_experiment())
    keep(folder, *(entry(number, SITES, seconds=seconds) for number, seconds in ((1, 9.0), (2, 2.0), (3, 2.5))))
    seconds = make_plan(make_experiment(), REGISTER, tmp_path)["seconds"]
    assert (seconds["per_round"], seconds["expected"]) == (2.5, 10.0)


def test_plan_on_the_command_line(tmp_path, dpfpl_server):
    server = tmp_path / "server"
    server.mkdir()
    save_sites(server, {name: dataclasses.replace(site, node_id=None) for name, site in REGISTER.items()})
    (tmp_path / "pilot.toml").write_text(
        'classes = ["cat", "dog"]\n[model]\nwidth = 128\nfingerprint = "abc"\n[privacy]\nnoise_multiplier = 4.0\n'
        "sample_rate = 0.1\ntolerated_dropouts = 1\n[rounds]\nnumber = 3\nlocal_steps = 2\n"
    )

    def call(*more):
        return dpfpl_server("plan", tmp_path / "pilot.toml", *more)[:2]

    where = ("--server", str(server), "--runs", str(tmp_path / "runs"))
    code, text = call(*where, "--out", str(tmp_path / "plan.json"))
    assert code == 0
    assert "epsilon" in text
    assert "at delta 1e-05 towards" in text
    code, printed = call(*where, "--json")
    assert json.loads(printed) == json.loads((tmp_path / "plan.json").read_text())
    assert json.loads(printed)["experiment"]["sites"] == list(SITES)
    (tmp_path / "pilot.toml").write_text((tmp_path / "pilot.toml").read_text().replace("number = 3", "number = 501"))
    code, text = call(*where)
    assert code == 3
    assert "REFUSED by a site with its kit's policy (rule max_rounds)" in text
    assert not (tmp_path / "runs").exists()


def test_lines_say_infinite_where_nothing_is_promised(tmp_path):
    lines = plan_lines(make_plan(make_experiment(trust="central"), REGISTER, tmp_path))
    assert any("epsilon infinite" in line for line in lines)


def earlier_run(runs, experiment, rounds, dropped=()):
    """A run as it lies in the folder after so many rounds; ``dropped`` sites gave no usable reply in any of them."""
    folder = RunFolder(runs / experiment.name)
    folder.begin(experiment)
    keep(folder, *(entry(number, experiment.sites, dict(dropped)) for number in range(1, rounds + 1)))
    folder.store.close()


@pytest.mark.privacy
def test_it_foretells_which_sites_have_spent_too_much_in_earlier_runs(tmp_path):
    """Fifteen runs: each alone is cheap enough, together they pass the cap of a lifetime."""
    first = make_experiment(**CHEAP)
    assert make_plan(first, REGISTER, tmp_path)["refusals"] == [], "no site refuses it for itself"
    for number in range(14):
        again = dataclasses.replace(first, name=f"run-{number}")
        earlier_run(tmp_path, again, 3, {"south": "REFUSED EXPERIMENT_NOT_APPROVED: experiments"})
    plan = make_plan(dataclasses.replace(first, name="next"), REGISTER, tmp_path)
    (refusal,) = [entry for entry in plan["refusals"] if entry["rule"] == "max_epsilon_lifetime"]
    assert refusal["by"].startswith("east, north,"), "south refused them all and charged nothing"
    assert "south" not in refusal["by"]
    one, scores = capped_event(first), planned_score_events(first)[0]
    expected = epsilon([dataclasses.replace(event, steps=event.steps * 15) for event in (one, scores)], 1e-5)
    assert expected > 20
    assert f"{expected:.3f} with this one" in refusal["why"]
    assert any("REFUSED" in line and "earlier runs" in line for line in plan_lines(plan))


@pytest.mark.privacy
def test_it_foretells_what_the_site_decides(tmp_path):
    """For every number of earlier runs the same verdict as the site's own ledger gives."""
    policy = build(Policy, tomllib.loads(STARTING_POLICY), "policy.toml")
    ledger, verdicts = Ledger(tmp_path / "ledger.sqlite"), []
    for number in range(14):
        run = make_experiment(**CHEAP)
        run = dataclasses.replace(run, name=f"run-{number}")
        plan = make_plan(run, REGISTER, tmp_path / "runs")
        foretold = any(entry["by"].startswith("east") for entry in plan["refusals"])
        try:
            check_budget(policy, ledger, run, planned_events(run, run.rounds.local_steps))
        except RefusedError:
            assert foretold, f"after {number} runs"
            verdicts.append(True)
            break
        assert not foretold, f"after {number} runs"
        earlier_run(tmp_path / "runs", run, 3)
        for round_number in range(1, 4):
            events = planned_events(run, run.rounds.local_steps)
            ledger.commit(ledger.reserve(run.name, round_number, "asked", events), "left")
        ledger.commit(ledger.reserve(run.name, SCORES, "asked", planned_score_events(run)), "left")
    assert verdicts, "it was refused in the end"
    ledger.close()


def test_a_damaged_run_stops_no_plan_of_another(tmp_path):
    earlier_run(tmp_path, dataclasses.replace(make_experiment(), name="earlier"), 3)
    whole = make_plan(make_experiment(), REGISTER, tmp_path)
    for name, file, content in (("a", "experiment.json", b"{"), ("b", "run.sqlite", b"rubbish" * 1000)):
        earlier_run(tmp_path, dataclasses.replace(make_experiment(), name=name), 3)
        (tmp_path / name / file).write_bytes(content)
    assert make_plan(make_experiment(), REGISTER, tmp_path) == whole


def test_a_run_that_is_going_on_does_not_count_against_itself(tmp_path):
    experiment = make_experiment(**CHEAP)
    earlier_run(tmp_path, experiment, 3)
    assert make_plan(experiment, REGISTER, tmp_path)["refusals"] == []
