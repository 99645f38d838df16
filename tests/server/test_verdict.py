"""The verdict is about federating: nothing that a site has alone, or by chance, is credited to the federation."""

import math
import random

import pytest
from report_samples import make_experiment, make_result, with_counts

from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings
from dpfpl_common.privacy_plan import scored
from dpfpl_server.runs.result import build_result, verdict


def of(own, others, alone, text=(0.3, 0.3), images=250):
    """The verdict on 4 sites with so many test images each; accuracies on own and on the others' classes."""
    result = make_result(extra_floors={"local_only": {"local": alone[0], "neighbour": alone[1]}})
    result["accuracy"] |= {"local": own, "neighbour": others}
    result["baselines"]["zero_shot"] = {"local": text[0], "neighbour": text[1]}
    return with_counts(result, images)["verdict"]


@pytest.mark.parametrize(
    ("own", "others", "alone", "says"),
    [
        (0.90, 0.50, (0.60, 0.30), "pays"),
        (0.97, 0.86, (0.97, 0.71), "pays"),  # level on own classes, ahead on the others'
        (0.90, 0.30, (0.90, 0.30), "not_proven"),
        (0.60, 0.30, (0.90, 0.30), "not_proven"),  # the others' classes could still be ahead
        (0.60, 0.20, (0.90, 0.30), "costs"),
        (0.95, 0.50, (0.99, 0.30), "not_proven"),  # better there, worse here
    ],
)
def test_it_is_the_gain_over_each_site_alone_that_counts(own, others, alone, says):
    assert of(own, others, alone)["says"] == says


def test_the_plain_text_is_a_rival_as_well():
    assert of(0.90, 0.50, (0.60, 0.30), text=(0.95, 0.95))["says"] == "costs"


def test_few_images_prove_nothing():
    assert [of(0.7, 0.5, (0.6, 0.4), images=n)["says"] for n in (5, 2000)] == ["not_proven", "pays"]
    assert of(0.9, 0.9, (0.1, 0.1), images=0)["says"] == "not_proven"
    assert of(0.9, 0.9, (0.1, 0.1), images=0)["interval"] is None


def test_money_is_computed_from_the_best_that_a_company_has_without_a_federation():
    found = of(0.9, 0.5, (0.6, 0.3))
    assert (found["before"], found["after"]) == pytest.approx((0.6, 0.9))
    assert found["interval"][0] < 0.3 < found["interval"][1]
    assert of(0.9, 0.5, (0.6, 0.3), text=(0.8, 0.8))["before"] == pytest.approx(0.8)


def test_no_site_alone_was_measured():
    assert make_result()["verdict"]["says"] == "unknown"
    assert make_result(released=())["verdict"] == {
        "measured": "nothing", "says": "unknown", "rivals": [], "before": None, "after": None, "interval": None,
    }  # fmt: skip


def counted(right, noise_multiplier=0.5, sites=4, images=400, chosen="evidence", seed=0):
    """A deployed run of whose sites only noised counts are known; ``right``: share of right answers by candidate."""
    experiment = Experiment(
        name="pilot",
        classes=("cat", "dog"),
        sites=tuple(f"s{n}" for n in range(sites)),
        model=ModelSettings(width=8),
        privacy=PrivacySettings(mechanism="one_shot", trust="local", noise_multiplier=noise_multiplier),
    )
    names, draw = scored(experiment), random.Random(seed)
    stddev = noise_multiplier * math.sqrt(len(names) + 1)
    margins = [(2 * right[name] - 1) * images for name in names]
    counts = {site: [value + draw.gauss(0, stddev) for value in (*margins, images)] for site in experiment.sites}
    result = build_result(
        experiment, transport="grpc+tls", history=[], final={}, scores=counts, num_classes={}, seconds=1.0
    )
    assert result["chosen"] == "prompt"
    for gain in result["gains"]:
        gain["used"] = gain["candidate"] == {"evidence": "both"}.get(chosen, chosen)
    return verdict(result | {"chosen": chosen})


SHARES = {"zero_shot": 0.5, "global": 0.5, "prompt": 0.5, "text": 0.6, "alone": 0.7, "evidence": 0.85, "both": 0.85}


def test_a_deployed_run_is_judged_by_noised_counts():
    found = counted(SHARES)
    assert (found["measured"], found["says"]) == ("counts", "pays")
    assert [rival["name"] for rival in found["rivals"]] == ["zero_shot", "local_only_evidence"]
    assert [rival["local"]["value"] for rival in found["rivals"]] == pytest.approx([0.35, 0.15], abs=0.02)
    assert found["before"] == pytest.approx(0.7, abs=0.02)
    assert counted(SHARES | {"alone": 0.9})["says"] == "costs"
    assert counted(SHARES, noise_multiplier=400.0)["says"] != "pays"


def test_where_the_votes_chose_the_plain_text_the_federation_brought_nothing():
    """As it is used, with each site's usual mix of classes, which a site has alone as well."""
    assert counted(SHARES | {"alone": 0.1}, chosen="text")["says"] == "costs"
    found = counted(SHARES, chosen="text")
    assert found["says"] == "costs"
    assert [rival["name"] for rival in found["rivals"]] == ["text", "local_only_evidence"]
    assert [rival["local"]["value"] for rival in found["rivals"]] == pytest.approx([0.0, -0.1], abs=0.02)
    low, high = found["rivals"][1]["local"]["interval"]
    assert low < -0.1 < high < 0
    assert (found["before"], found["after"]) == pytest.approx((0.7, 0.6), abs=0.02)


@pytest.mark.parametrize("floors", [{}, *({"local_only": {"local": own, "neighbour": 0.4}} for own in (0.8, 0.892))])
def test_the_usual_mix_of_a_site_is_no_gain_of_federating(floors):
    """A simulation on public data: the plain text with each site's usual mix is far ahead of the plain text alone."""
    result = make_result(extra_floors=floors)
    result["accuracy"] |= {"local": 0.892, "neighbour": 0.5}
    result["baselines"]["zero_shot"] = {"local": 0.821, "neighbour": 0.6}
    found = with_counts(result | {"chosen": "text"}, 1000)["verdict"]
    assert (found["measured"], found["says"]) == ("accuracies", "costs")
    assert (found["before"], found["after"], found["interval"]) == (0.892, 0.892, [0.0, 0.0])
    assert [rival["name"] for rival in found["rivals"]] == [*floors, "text"]
    other = with_counts(result, 1000)["verdict"]["rivals"][-1]
    assert (other["name"], other["local"]["before"]) == ("zero_shot", 0.821), "where something else is used"


def test_a_site_alone_that_does_better_than_the_plain_text_stays_the_rival_that_counts():
    result = make_result(extra_floors={"local_only": {"local": 0.9, "neighbour": 0.4}})
    result["accuracy"] |= {"local": 0.892, "neighbour": 0.5}
    found = with_counts(result | {"chosen": "text"}, 1000)["verdict"]
    assert (found["says"], found["before"]) == ("costs", 0.9)
    assert found["after"] == pytest.approx(0.892)
    assert found["rivals"][0]["local"]["interval"][1] > 0 == found["interval"][1], "no chance of a gain, nor of money"


def test_the_interval_of_counts_covers_the_truth():
    covered = [
        low <= 0.15 <= high
        for seed in range(200)
        for low, high in [counted(SHARES, noise_multiplier=4.0, seed=seed)["rivals"][1]["local"]["interval"]]
    ]
    assert 0.90 <= sum(covered) / len(covered) <= 0.99


def test_a_run_without_class_sums_knows_no_site_alone():
    assert "alone" not in scored(make_experiment())
