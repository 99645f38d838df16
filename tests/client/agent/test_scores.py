"""Scores: one noised count for an experiment, charged beside its training and not on top of it."""

import dataclasses

import numpy as np
import pytest

from dpfpl_client.agent.budget import check_budget, spent
from dpfpl_client.agent.core import SCORES
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_common.errors import RefusedError, StateError
from dpfpl_common.policy import Policy
from dpfpl_common.privacy.accounting import BOTH_PARTS, HELD_BACK, TRAINING, epsilon
from dpfpl_common.privacy_plan import planned_events, planned_score_events, scored
from dpfpl_common.wire.payloads import EvaluateRequest

pytestmark = pytest.mark.privacy


def final(experiment, value=0.0, number=3):
    return EvaluateRequest(experiment, number, np.full(experiment.context_shape, value, "<f4"))


def test_scores_are_released_once_and_repeated_from_the_store(site, experiment):
    first = site.agent.evaluate(final(experiment)).scores
    assert len(first) == len(scored(experiment)) + 1
    assert site.agent.evaluate(final(experiment)).scores == first
    assert site.start().evaluate(final(experiment)).scores == first
    assert site.agent.evaluate(final(experiment, 1.0)).scores == (), "another prompt gets no second count"
    assert [charge.round for charge in site.charges] == [SCORES]


def test_scores_leave_after_the_last_round_only_and_never_under_metrics_none(site, experiment):
    assert site.agent.evaluate(final(experiment, number=2)).scores == ()
    quiet = Policy(("*",), 50.0, 100.0, metrics="none")
    assert site.start(quiet).evaluate(final(experiment)).scores == ()
    assert site.charges == []


def test_NI6_what_was_released_under_a_looser_policy_stays_at_the_site_under_a_stricter_one(site, experiment):
    assert site.agent.evaluate(final(experiment)).scores
    strict = Policy(("*",), 50.0, 100.0, metrics="none")
    assert site.start(strict).evaluate(final(experiment)).scores == ()
    exact = Policy(("*",), 50.0, 100.0, metrics="exact")
    told = site.start(exact, public=True).evaluate(final(experiment, 1.0)).metrics
    assert told
    for policy in (strict, Policy(("*",), 50.0, 100.0, metrics="noised")):
        assert site.start(policy, public=True).evaluate(final(experiment, 1.0)).metrics == {}


def test_NI6_a_repeated_round_tells_no_more_than_the_policy_of_today(site, request_for):
    exact = Policy(("*",), 50.0, 100.0, metrics="exact")
    assert site.start(exact, public=True).train(request_for(evaluate=True)).metrics
    noised = Policy(("*",), 50.0, 100.0)
    again = site.start(noised, public=True).train(request_for(evaluate=True))
    assert again.metrics == {}
    assert again.update.any()
    assert site.start(exact).train(request_for(evaluate=True)).metrics == {}, "the data are not public any more"


def test_NI3_no_policy_lets_an_exact_accuracy_leave_a_site_whose_data_are_not_public(site, request_for, experiment):
    for metrics in ("none", "noised", "coarse", "exact"):
        policy = Policy(("*",), 500.0, 500.0, metrics=metrics)
        named = dataclasses.replace(experiment, name=f"e-{metrics}")
        agent = site.start(policy)
        assert agent.train(request_for(1, named, evaluate=True)).metrics == {}
        assert agent.evaluate(final(named)).metrics == {}


@pytest.mark.parametrize("metrics", ["coarse", "exact"])
def test_NI3_the_names_of_accuracies_do_not_tell_which_classes_are_trained_on(site, experiment, metrics):
    deployed = dataclasses.replace(site.features, neighbour_test=site.features.test.none())
    lacking = deployed.train.take(np.flatnonzero(deployed.train.labels.numpy() != 0))
    assert 0 < len(lacking) < len(deployed.train)
    policy, names = Policy(("*",), 500.0, 500.0, metrics=metrics), []
    for number, train in enumerate((deployed.train, lacking)):
        agent = site.start(policy, dataclasses.replace(deployed, train=train), public=True)
        names.append(set(agent.evaluate(final(dataclasses.replace(experiment, name=f"e-{number}"))).metrics))
    assert names[0] == names[1]
    assert "personal_all" in names[0]


def test_NI3_no_policy_computes_an_exact_accuracy_of_data_that_are_not_public(site, request_for, computed):
    for metrics in ("noised", "coarse", "exact"):
        site.start(Policy(("*",), 500.0, 500.0, metrics=metrics))
        site.agent.train(request_for(1, evaluate=True))
    assert computed == ["train_round"]
    assert site.store.read("pilot", 1).reply.metrics == {}


def test_a_crash_between_charge_and_scores_stays_charged_and_the_retry_pays_anew(site, experiment, monkeypatch):
    def crash(*_):
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(type(site.store), "write_scores", crash)
        with pytest.raises(RuntimeError):
            site.agent.evaluate(final(experiment))
    assert [charge.release_digest for charge in site.charges] == [""]
    assert site.start().evaluate(final(experiment)).scores
    assert len(site.charges) == 2


def test_damaged_scores_are_not_served(site, experiment):
    site.agent.evaluate(final(experiment))
    path = site.folder / "experiments" / "pilot" / "scores.json"
    path.write_text(path.read_text().replace("0x1", "0x2", 1))
    with pytest.raises(StateError):
        site.start().evaluate(final(experiment))


def test_training_with_scores_costs_what_training_costs(site, experiment, request_for):
    for number in (1, 2, 3):
        site.agent.train(request_for(number))
    alone = spent(site.ledger, 1e-5)
    site.agent.evaluate(final(experiment))
    both = spent(site.ledger, 1e-5)
    assert {event.part for event in site.ledger.events()} == {TRAINING, HELD_BACK}
    assert both == pytest.approx(alone, rel=0.01)
    site.start()
    assert spent(site.ledger, 1e-5) == both, "over a restart"


def test_each_part_has_the_lifetimes_sum_of_its_own_and_the_cap_holds_for_both(experiment):
    """Scores of many experiments compose with each other, however little was trained."""
    ledger = Ledger(None)
    scores = planned_score_events(experiment)
    for number in range(3):
        ledger.reserve(f"other-{number}", SCORES, "d", scores)
    held_back = [dataclasses.replace(event, steps=3) for event in scores if event.adversary == "prompt_recipient"]
    assert spent(ledger, 1e-5)["prompt_recipient"] == epsilon(held_back, 1e-5)
    four = [dataclasses.replace(held_back[0], steps=4)]
    cap = epsilon(four, 1e-5 / 2)  # the rest of delta is for a filter that sampling would bring in
    room = Policy(("*",), 1000.0, cap * 1.01, max_epsilon_operator=1000.0, max_epsilon_operator_lifetime=1000.0)
    check_budget(room, ledger, experiment, scores)
    tight = dataclasses.replace(room, max_epsilon_lifetime=epsilon(four, 1e-5) * 1.001)
    with pytest.raises(RefusedError, match="max_epsilon_lifetime"):
        check_budget(tight, ledger, experiment, scores)


def test_what_counts_for_both_parts_counts_with_its_own_noise(experiment, changed):
    """Towards the operator, whom ``distributed`` leaves less noise in updates than in scores."""
    asked = changed(experiment, privacy={"mechanism": "per_step", "trust": "distributed", "sample_rate": 0.5})
    ledger = Ledger(None)
    ledger.reserve(asked.name, 1, "d", planned_events(asked))
    ledger.register({"manifest": "m"}, moved=1)
    both = ledger.events(asked.name, "operator")
    scores = [event for event in planned_score_events(asked) if event.adversary == "operator"]
    assert {event.part for event in both} == {BOTH_PARTS}
    assert both[0].noise_multiplier < scores[0].noise_multiplier
    real = epsilon([*both, *scores], 1e-5)
    policy = Policy(("*",), 1000.0, 1000.0, max_epsilon_operator=real * 1.001, max_epsilon_operator_lifetime=1000.0)
    check_budget(policy, ledger, asked, planned_score_events(asked))
    with pytest.raises(RefusedError, match="max_epsilon_operator"):
        check_budget(dataclasses.replace(policy, max_epsilon_operator=real * 0.999), ledger, asked, scores)


def test_an_example_that_changes_its_part_ends_parallel_composition(experiment):
    """Once an example was in both parts, what was charged before counts for both."""
    ledger = Ledger(None)
    ledger.reserve("a", 1, "d", planned_events(experiment))
    ledger.reserve("a", SCORES, "d", planned_score_events(experiment))
    before = spent(ledger, 1e-5)["prompt_recipient"]
    ledger.register({"manifest": "m"}, moved=0)
    assert spent(ledger, 1e-5)["prompt_recipient"] == before
    ledger.register({"manifest": "n"}, moved=1)
    assert {event.part for event in ledger.events()} == {BOTH_PARTS}
    together = [
        dataclasses.replace(event, part=TRAINING)
        for event in (*planned_events(experiment), *planned_score_events(experiment))
        if event.adversary == "prompt_recipient"
    ]
    after = spent(ledger, 1e-5)["prompt_recipient"]
    assert after == pytest.approx(epsilon(together, 1e-5))
    assert after > 1.2 * before


def test_NI14_evaluations_under_ever_new_names_end_at_the_lifetimes_count(site, experiment):
    policy = Policy(("*",), 50.0, 100.0, max_evaluations_lifetime=5, max_experiments_per_day=1000)
    answered = 0
    for number in range(8):
        agent = site.start(policy) if number in (0, 4) else site.agent
        try:
            agent.evaluate(final(dataclasses.replace(experiment, name=f"e-{number}"), number=0))
            answered += 1
        except RefusedError as error:
            assert error.code == "TOO_MANY_EVALUATIONS"  # noqa: PT017
    assert answered == 5
