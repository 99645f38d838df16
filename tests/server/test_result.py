"""result.json has the names that scripts rely on, is strict JSON, and its epsilons can be recomputed from it."""

import dataclasses
import functools
import json

import dp_accounting
import pytest
import server_samples
from dp_accounting import pld

from dpfpl_common.config import build
from dpfpl_common.experiment import METHODS, Experiment, PromptSettings
from dpfpl_common.privacy_plan import BLOCKS, resolve_noise
from dpfpl_server.runs.result import build_result, floors_from_metrics, mean, privacy_statement

SITES = ("north", "south", "west")


NOTHING = dict.fromkeys(("local", "neighbour", "unseen", "all", "worst_site"))


def make_experiment(**privacy):
    rounds = {"number": 4, "local_steps": 3}
    return server_samples.make_experiment(SITES, rounds=rounds, **{"noise_multiplier": 2.0, **privacy})


def entry(number, **more):
    return server_samples.entry(number, SITES, **more)


FINAL = {
    "north": {"personal_local": 0.9, "personal_neighbour": 0.1, "global_local": 0.6, "global_neighbour": 0.2}
    | {"zero_shot_local": 0.5, "zero_shot_neighbour": 0.3},
    "south": {"personal_local": 0.7, "personal_neighbour": 0.3, "global_local": 0.4, "global_neighbour": 0.4}
    | {"zero_shot_local": 0.3, "zero_shot_neighbour": 0.5},
    "west": {"personal_local": 0.5},
}


def make_result(experiment=None, **changes):
    experiment = experiment or make_experiment()
    arguments = {
        "transport": "in_process",
        "history": [entry(1, metrics={"north": {"personal_local": 0.25}}), *(entry(k) for k in (2, 3, 4))],
        "final": FINAL,
        "num_classes": {"north": 2, "south": 1},
        "seconds": 12.34567,
        "seed": 3,
    }
    return build_result(experiment, **(arguments | changes))


def strict(result):
    return json.loads(json.dumps(result, allow_nan=False))


def test_the_names_of_the_design_are_there():
    result = strict(make_result(extra_floors={"local_only": {"local": 0.4, "neighbour": 0.1}, "centralised": {}}))

    names = "transport, method, config, seed, versions, sites, accuracy, floors, privacy, rounds, seconds"
    assert set(names.split(", ")) <= set(result)
    for site in result["sites"]:
        assert {"name", "local", "neighbour", "before", "num_classes"} <= set(site)
    assert set(result["accuracy"]) == {"local", "neighbour", "unseen", "all", "worst_site"}
    assert result["baselines"] == result["floors"]
    assert set(result["floors"]) == {"zero_shot", "global_only", "local_only", "centralised"}
    for row in result["privacy"]["epsilons"]:
        assert {"adversary", "epsilon", "delta", "unit"} <= set(row)
    for row in result["privacy"]["events"]:
        assert set(row) == {"adversary", "mechanism", "noise_multiplier", "sample_rate", "steps"}
    for row in result["rounds"]:
        assert {"round", "seconds", "bytes_up", "bytes_down", "sites", "dropped"} <= set(row)
    assert result["method"] == "dpfpl"
    assert result["seed"] == 3
    assert result["seconds"] == 12.346
    assert {"dpfpl-common", "flwr"} <= set(result["versions"])


def test_the_figures_are_those_of_the_sites():
    result = make_result()

    assert [s["name"] for s in result["sites"]] == list(SITES)
    assert [s["local"] for s in result["sites"]] == [0.9, 0.7, 0.5]
    assert [s["neighbour"] for s in result["sites"]] == [0.1, 0.3, None]
    assert [s["before"] for s in result["sites"]] == [0.25, None, None]
    assert [s["num_classes"] for s in result["sites"]] == [2, 1, None]
    found = [result["accuracy"], result["floors"]["zero_shot"], result["floors"]["global_only"]]
    assert [row["local"] for row in found] == pytest.approx([0.7, 0.4, 0.5])
    assert [row["neighbour"] for row in found] == pytest.approx([0.2, 0.4, 0.3])
    assert [row["worst_site"] for row in found] == pytest.approx([0.5, 0.3, 0.4])
    assert [(row["unseen"], row["all"]) for row in found] == [(None, None)] * 3


@pytest.mark.parametrize("history", [[], [entry(1)]])
def test_missing_metrics_are_null(history):
    result = strict(make_result(final={}, history=history, num_classes={}))

    assert all(site["local"] is None and site["before"] is None for site in result["sites"])
    assert result["accuracy"] == NOTHING
    assert result["floors"]["zero_shot"] == NOTHING


def test_the_configuration_can_be_read_back():
    experiment = make_experiment()
    result = strict(make_result(experiment))

    again = build(Experiment, result["config"], "result.json")
    assert again == experiment
    assert again.digest() == result["experiment_digest"]


def recomputed(event, delta):
    """Straight from dp-accounting, by another path than our accounting module."""
    return composed(event["noise_multiplier"], event["sample_rate"], event["steps"], delta)


@functools.cache
def composed(noise_multiplier, sample_rate, steps, delta):
    step = dp_accounting.PoissonSampledDpEvent(sample_rate, dp_accounting.GaussianDpEvent(noise_multiplier))
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(step, steps)
    return accountant.get_epsilon(delta)


@pytest.mark.privacy
def test_where_sites_are_sampled_no_round_tells_which_took_part_or_was_asked_again():
    told = {**entry(1), "asked_again": ["north"], "late": {"north": 1}, "duplicates": {"south": 1}}
    experiment = make_experiment(unit="site", trust="central", site_sample_rate=0.5)
    rounds = json.dumps(strict(make_result(experiment, history=[told]))["rounds"])
    assert not [site for site in SITES if site in rounds]
    assert "north" in json.dumps(strict(make_result(history=[told]))["rounds"])


SEPARATE = {"clipping": "separate"}
WAYS = [
    {"sample_rate": 0.1},
    {"trust": "central"},
    {"trust": "local"},
    {"mechanism": "one_shot", "trust": "local"},
    {"unit": "site"},
    {"unit": "site", "trust": "central", "site_sample_rate": 0.5},
]


@pytest.mark.privacy
@pytest.mark.parametrize(("method", "way"), [*(("dpfpl", way) for way in WAYS), *((m, SEPARATE) for m in METHODS)])
def test_the_epsilons_of_every_method_and_mechanism_can_be_recomputed(method, way):
    """Within 1 %, from the events of result.json alone; the method matters to noise that is separate by block."""
    experiment = make_experiment(noise_multiplier=2.5, **way)
    experiment = dataclasses.replace(experiment, prompt=PromptSettings(method=method))
    privacy = strict(make_result(experiment))["privacy"]
    events = {event["adversary"]: event for event in privacy["events"]}
    rows = {row["adversary"]: row for row in privacy["epsilons"]}
    assert set(rows) == set(events) == {"prompt_recipient", "other_site", "operator"}
    for name, row in rows.items():
        if events[name]["noise_multiplier"] == 0:
            assert row["epsilon"] == "infinite"
        else:
            assert row["epsilon"] == pytest.approx(recomputed(events[name], row["delta"]), rel=0.01)
    assert (rows["operator"]["epsilon"] == "infinite") == (way.get("trust") == "central")
    if "trust" not in way and "unit" not in way:  # distributed: a single message carries a share of the noise only
        assert rows["operator"]["epsilon"] > rows["other_site"]["epsilon"]
    expected = {"one_shot": 1, "per_step": 12, "whole_update": 4}
    assert {event["steps"] for event in events.values()} == {expected[events["operator"]["mechanism"]]}
    if way == SEPARATE:
        assert events["prompt_recipient"]["noise_multiplier"] == pytest.approx(2.5 / BLOCKS[method] ** 0.5)


@pytest.mark.privacy
def test_paper_accounting_states_its_nominal_epsilon_beside_the_honest_ones():
    asked = make_experiment(noise_multiplier=None, target_epsilon=0.5, accounting="paper", sample_rate=0.1)
    privacy = strict(make_result(resolve_noise(asked)))["privacy"]
    assert privacy["nominal_epsilon"] == 0.5
    (event,) = (event for event in privacy["events"] if event["adversary"] == "prompt_recipient")
    (row,) = (row for row in privacy["epsilons"] if row["adversary"] == "prompt_recipient")
    assert row["epsilon"] == pytest.approx(recomputed(event, row["delta"]), rel=0.01)
    assert row["epsilon"] != pytest.approx(0.5, rel=0.05)
    assert strict(make_result(make_experiment(target_epsilon=0.5)))["privacy"]["nominal_epsilon"] is None


@pytest.mark.privacy
def test_without_noise_every_epsilon_is_the_string_infinite():
    result = strict(make_result(make_experiment(noise_multiplier=0.0)))
    assert {row["epsilon"] for row in result["privacy"]["epsilons"]} == {"infinite"}


@pytest.mark.privacy
def test_only_completed_rounds_are_charged():
    none, some, all_ = (privacy_statement(make_experiment(), rounds)["epsilons"][0]["epsilon"] for rounds in (0, 2, 4))
    assert none == 0.0 < some < all_


@pytest.mark.privacy
def test_seeded_noise_is_named_as_such():
    assert privacy_statement(make_experiment(), 1)["noise"] == "operating system"
    assert privacy_statement(make_experiment(), 1, real_noise=False)["noise"].startswith("seeded")


def test_mean_leaves_out_what_is_missing():
    assert mean([0.5, None, 1.0]) == 0.75
    assert mean([None]) is None
    assert mean([]) is None
    assert floors_from_metrics({})["zero_shot"] == NOTHING


@pytest.mark.privacy
@pytest.mark.parametrize("trust", ["distributed", "local"])
def test_NI8_where_only_sums_carry_the_whole_noise_nothing_of_a_single_message_is_published(trust):
    """Two runs with the same sums and other single messages publish the same; under local trust each message may be."""
    found = []
    for signal in ({"north": 9.0, "south": 9.0, "west": -9.0}, {"north": 0.0, "south": 0.0, "west": 0.0}):
        history = [{**entry(number), "signal": signal} for number in (1, 2, 3, 4)]
        found.append(json.dumps(make_result(make_experiment(trust=trust), history=history), sort_keys=True))
    assert (found[0] == found[1]) == (trust == "distributed")


@pytest.mark.privacy
def test_scores_are_told_with_intervals_and_cost_no_more():
    experiment = make_experiment()
    counts = dict.fromkeys(SITES, (10.0, 12.0, 16.0, 20.0))
    without, scored = make_result(experiment), make_result(experiment, scores=counts)
    assert without["scores"] == without["gains"] == without["privacy"]["held_back_events"] == []
    assert [row["candidate"] for row in scored["scores"]] == ["zero_shot", "global", "prompt"]
    assert [row["value"] for row in scored["scores"]] == pytest.approx([0.75, 0.8, 0.9])
    assert all(row["interval"][0] < row["value"] < row["interval"][1] for row in scored["scores"])
    assert [row["value"] for row in scored["gains"]] == pytest.approx([0.05, 0.15])
    assert scored["privacy"]["epsilons"] == without["privacy"]["epsilons"]
    (recipient, *_), (held_back, *_) = scored["privacy"]["events"], scored["privacy"]["held_back_events"]
    told = scored["privacy"]["epsilons"][0]
    assert recomputed(recipient, told["delta"]) == pytest.approx(told["epsilon"], rel=0.01)
    assert recomputed(held_back, told["delta"]) <= told["epsilon"] * 1.001


@pytest.mark.privacy
def test_NI13_the_result_tells_groups_and_recognition():
    privacy = make_result(make_experiment(mechanism="one_shot", trust="local", noise_multiplier=0.6))["privacy"]
    assert [row["examples"] for row in privacy["groups"]] == [1, 2, 5, 10]
    assert privacy["groups"][0]["epsilon"] == pytest.approx(privacy["epsilons"][0]["epsilon"], rel=0.01)
    assert privacy["groups"][3]["epsilon"] > 20 * privacy["groups"][0]["epsilon"]
    rates = [row["true_positive_rate"] for row in privacy["recognition"]]
    assert rates == sorted(rates)
