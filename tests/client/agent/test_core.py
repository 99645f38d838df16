"""The release protocol: one output and one charge per round, whatever fails and whoever asks again."""

import dataclasses
import threading

import numpy as np
import pytest
from failures import CrashError, crash, refused

from dpfpl_client.agent.audit import AuditLog
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.store import DiskStore, MemoryStore
from dpfpl_client.learning.learner import PromptLearner, SiteFeatures
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_common.errors import RefusedError, StateError
from dpfpl_common.evidence import pack_pool, pool_rows
from dpfpl_common.policy import Policy
from dpfpl_common.privacy.accounting import PrivacyEvent, epsilon
from dpfpl_common.privacy_plan import planned_events
from dpfpl_common.wire.codec import encode_reply
from dpfpl_common.wire.payloads import EvaluateRequest

pytestmark = pytest.mark.privacy


def reply_bytes(reply, request):
    return encode_reply(reply, request).SerializeToString(deterministic=True)


# The same request again


def test_a_repeated_request_gets_the_same_bytes_for_one_charge(site, request_for, computed):
    request = request_for(evaluate=True)
    first = reply_bytes(site.agent.train(request), request)
    assert {reply_bytes(site.agent.train(request), request) for _ in range(20)} == {first}
    for _ in range(3):
        assert reply_bytes(site.start().train(request), request) == first
    assert [charge.round for charge in site.charges] == [1]
    assert computed.count("train_round") == 1


def test_real_noise_differs_between_sites_so_equal_bytes_are_no_accident(site, site_in, request_for, tmp_path_factory):
    other = site_in(tmp_path_factory.mktemp("other"))
    assert not np.array_equal(site.agent.train(request_for()).update, other.agent.train(request_for()).update)


def test_an_old_round_is_served_again_after_later_ones(site, request_for):
    first = site.agent.train(request_for(1))
    site.agent.train(request_for(2))
    assert site.start().train(request_for(1)).update.tobytes() == first.update.tobytes()
    assert [charge.round for charge in site.charges] == [1, 2]


def test_the_reply_is_what_was_stored_and_recorded(site, request_for):
    reply = site.agent.train(request_for())
    record = site.store.read("pilot", 1)
    assert record.reply.update.tobytes() == reply.update.tobytes()
    assert [charge.release_digest for charge in site.charges] == [record.digest()]


# Another request for the same round


@pytest.mark.parametrize("restart", [False, True])
def test_one_ulp_of_difference_gets_no_fresh_noise(site, request_for, experiment, computed, restart):
    site.agent.train(request_for())
    if restart:
        site.start()
    context = np.zeros(experiment.context_shape, "<f4")
    context[0, 0] = np.nextafter(np.float32(0), np.float32(1))
    refused("KEY_REUSED_OTHER_DIGEST", site.agent.train, request_for(context=context))
    refused("KEY_REUSED_OTHER_DIGEST", site.agent.train, request_for(evaluate=True))
    assert len(site.charges) == 1
    assert computed.count("train_round") == 1


def test_the_same_name_cannot_mean_another_experiment(site, request_for, experiment, changed):
    site.agent.train(request_for())
    other = changed(experiment, privacy={"noise_multiplier": 5.0})
    refused("EXPERIMENT_CHANGED", site.agent.train, request_for(2, other))
    refused("EXPERIMENT_CHANGED", site.start().train, request_for(1, other))
    assert len(site.charges) == 1


def test_rounds_go_forward_only(site, request_for):
    site.agent.train(request_for(2))
    refused("ROUND_ORDER", site.agent.train, request_for(1))
    assert [charge.round for charge in site.charges] == [2]


def test_an_interrupted_round_is_not_taken_up_again_after_a_later_one(site, request_for):
    site.store.write = crash
    with pytest.raises(CrashError):
        site.agent.train(request_for(1))
    site.start().train(request_for(2))
    refused("ROUND_ORDER", site.agent.train, request_for(1))
    assert (len(site.charges), site.released) == (2, 1)


# A crash at every step: charged >= released, always


@pytest.mark.parametrize(
    ("where", "reserved", "stored", "paid", "computed_again"),
    [("reserve", 0, 0, 1, 1), ("train_round", 1, 0, 2, 1), ("write", 1, 0, 2, 2), ("commit", 1, 1, 1, 1)],
)
def test_a_crash_stays_charged_once_reserved_and_a_record_that_was_written_is_served_for_nothing(
    site, request_for, monkeypatch, computed, where, reserved, stored, paid, computed_again
):
    places = {"write": site.store, "train_round": PromptLearner}
    with monkeypatch.context() as patch:
        patch.setattr(places.get(where, site.ledger), where, crash)
        with pytest.raises(CrashError):
            site.agent.train(request_for())
    assert [charge.release_digest for charge in site.charges] == [""] * reserved
    assert site.released == stored
    record = site.store.read("pilot", 1)
    reply = site.start().train(request_for())
    assert record is None or record.reply.update.tobytes() == reply.update.tobytes()
    released = site.store.read("pilot", 1).digest()
    assert [charge.release_digest for charge in site.charges] == [*[""] * (paid - 1), released]
    assert site.released == 1
    assert computed.count("train_round") == computed_again
    assert site.start().train(request_for()).update.tobytes() == reply.update.tobytes()
    assert len(site.charges) == paid


def test_the_charge_is_on_disk_before_anything_is_computed(site, request_for, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "dpfpl_client.agent.core.PromptLearner.train_round", lambda *_, **more: seen.append(site.charges)
    )
    with pytest.raises(AttributeError):
        site.agent.train(request_for())
    assert [len(charges) for charges in seen] == [1]


def test_a_crash_leaves_the_personal_prompt_of_the_round_before(site, request_for):
    site.agent.train(request_for(1))
    before = site.store.read("pilot", 1).state.context
    site.store.write = crash
    with pytest.raises(CrashError):
        site.agent.train(request_for(2))
    site.start()
    assert site.store.last_round("pilot") == 1
    np.testing.assert_array_equal(site.agent._state(request_for().experiment).context, before)


def test_the_personal_prompt_survives_a_restart(backbone, features, request_for, tmp_path):
    """Two rounds with a restart between are two rounds without one, to the last bit, given the same randomness."""

    def agent(folder):
        folder.mkdir(exist_ok=True)
        store = DiskStore(folder)
        return SiteAgent("north", backbone, features, None, Ledger(None), store, SeededRandomness(3)), store

    whole, whole_store = agent(tmp_path / "whole")
    updates = [whole.train(request_for(number)).update for number in (1, 2)]
    for number in (1, 2):
        again, store = agent(tmp_path / "cut")
        np.testing.assert_array_equal(again.train(request_for(number)).update, updates[number - 1])
    np.testing.assert_array_equal(store.read("pilot", 2).state.context, whole_store.read("pilot", 2).state.context)
    assert np.abs(store.read("pilot", 2).state.context).max() > 0


# What lies on disk does not fit together


def test_a_deleted_release_is_not_replaced_by_a_second_one(site, request_for, computed):
    site.agent.train(request_for())
    (site.folder / "experiments/pilot/round-00001.safetensors").unlink()
    with pytest.raises(StateError, match="RECORD_DAMAGED"):
        site.start().train(request_for())
    assert (len(site.charges), computed.count("train_round")) == (1, 1)


@pytest.mark.parametrize("number", [1, 2])
def test_a_changed_release_is_neither_served_nor_trained_on(site, request_for, number):
    site.agent.train(request_for())
    path = site.folder / "experiments/pilot/round-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(StateError, match="RECORD_DAMAGED"):
        site.start().train(request_for(number))


def test_an_older_ledger_does_not_allow_a_second_release(site, request_for):
    first = site.agent.train(request_for())
    site.ledger.close()
    (site.folder / "ledger.sqlite").unlink()
    refused("ROUND_ORDER", site.start().train, request_for())
    assert site.store.read("pilot", 1).reply.update.tobytes() == first.update.tobytes()


# Refusals come before any charge and any computation


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("NOT_A_MEMBER", {"sites": ("south",)}),
        ("NOISE_NOT_RESOLVED", {"privacy": {"noise_multiplier": None, "target_epsilon": 2.0}}),
        ("OTHER_MODEL", {"model": {"fingerprint": "0" * 64}}),
        ("TOO_LITTLE_NOISE", {"privacy": {"noise_multiplier": 0.0}}),
        ("TRUST_NOT_ALLOWED", {"privacy": {"trust": "central"}}),
        ("WRONG_WIDTH", {"model": {"width": 64}}),
    ],
)
def test_refused_before_any_charge_and_any_computation(site, request_for, experiment, changed, computed, code, changes):
    other = changed(experiment, **changes)
    refused(code, site.agent.train, request_for(1, other))
    context = np.zeros(other.context_shape, "<f4")
    refused(code, site.agent.evaluate, EvaluateRequest(other, 0, context))
    assert (site.charges, site.released, computed) == ([], 0, [])
    assert site.store.read_final("pilot") is None
    assert site.agent.train(request_for()).round == 1  # nor does the refusal use up the experiment's name


def test_U8_a_site_that_did_not_agree_refuses_by_itself_whoever_asks(site, request_for, experiment, changed, computed):
    """The server asks only the sites on its list; a site does not rely on that."""
    refused("NOT_A_MEMBER", site.agent.train, request_for(1, changed(experiment, sites=("south",))))
    site.start(Policy(experiments=("another",), max_epsilon_per_experiment=50.0, max_epsilon_lifetime=100.0))
    refused("EXPERIMENT_NOT_APPROVED", site.agent.train, request_for())
    assert (site.charges, site.released, computed) == ([], 0, [])


def test_the_right_fingerprint_is_accepted(site, request_for, experiment, changed):
    other = changed(experiment, model={"fingerprint": site.backbone.fingerprint})
    assert site.agent.train(request_for(1, other)).update is not None


@pytest.mark.parametrize(
    "privacy",
    [
        {},
        {"trust": "local"},
        {"trust": "local", "mechanism": "one_shot"},
        {"unit": "site"},
    ],
)
def test_A10_a_site_without_the_experiments_classes_answers_like_any_other(
    site, request_for, experiment, changed, privacy
):
    """A refusal would tell which classes it has: it trains on nothing, is charged, and sends noise."""
    site.start(Policy(("*",), 50.0, 100.0, units=("example", "site")))
    other = changed(experiment, classes=("lion", "tiger"), privacy={"noise_multiplier": 8.0, **privacy})
    for number in (1, 2):
        reply = site.agent.train(request_for(number, other))
        # What one_shot sends is trained on its noised sums, in which no class stands out from the noise.
        assert (np.abs(reply.update).max() > 0) == (privacy.get("mechanism") != "one_shot")
    assert len(site.charges) == 2
    assert site.agent.evaluate(EvaluateRequest(other, 2, np.zeros(other.context_shape, "<f4"))).update is None


# Class list


def test_labels_follow_the_experiments_class_list(site, request_for, experiment, changed):
    """An experiment with the classes in another order, and one more, trains the same images under new numbers."""
    known = site.features
    other = changed(experiment, name="other", classes=("fish", *reversed(experiment.classes)))

    def renumbered(images):
        return LabelledFeatures(images.features, 3 - images.labels)

    ready = SiteFeatures(*(renumbered(x) for x in (known.train, known.test, known.neighbour_test)), other.classes)
    agents = [
        SiteAgent("north", site.backbone, have, None, Ledger(None), MemoryStore(), SeededRandomness(0))
        for have in (known, ready)
    ]
    replies = [agent.train(request_for(1, other, evaluate=True)) for agent in agents]
    np.testing.assert_array_equal(replies[0].update, replies[1].update)
    assert replies[0].metrics == replies[1].metrics


def test_images_of_classes_off_the_list_are_left_out(site, experiment):
    left = site.features.relabelled(("bird", "lion"))
    assert len(left.train) == 4
    assert set(left.train.labels.tolist()) == {0}


def test_ni5_no_feature_is_gathered_for_an_experiment_that_is_refused(site, request_for, experiment, monkeypatch):
    """To gather them takes the longer the more there are."""
    agent = site.start(Policy(("*",), 50.0, 100.0, max_experiments_per_day=1))
    agent.train(request_for())

    def gathered(*_):
        raise AssertionError

    monkeypatch.setattr(SiteFeatures, "relabelled", gathered)
    refused("TOO_MANY_EXPERIMENTS", agent.train, request_for(1, dataclasses.replace(experiment, name="second")))


def test_a_vote_after_an_old_ledger_was_accepted_is_paid_for(site, request_for, changed, experiment):
    """The ledger has forgotten whether one has left already, at no charge of its own."""
    one_shot = changed(experiment, privacy={"mechanism": "one_shot", "trust": "local", "noise_multiplier": 1.0})
    rows = np.random.default_rng(0).normal(size=(2, 3, site.backbone.feature_size))
    pooled, weights = pool_rows(list(rows), 1.0)
    votes = {"pool": pack_pool(pooled, weights[0])}
    site.agent.train(dataclasses.replace(request_for(1, one_shot), collect=True))
    site.ledger._append({"kind": "accepted"})
    for number, more, paid in ((2, {}, 1), (3, votes, 2)):
        site.start().train(dataclasses.replace(request_for(number, one_shot), **more))
        assert [event.steps for event in site.ledger.events("pilot")] == [paid]


def test_what_is_left_out_is_said_in_the_sites_log_alone(site, request_for, experiment, caplog, tmp_path):
    audit = AuditLog(tmp_path / "audit.jsonl")
    other = dataclasses.replace(experiment, classes=(experiment.classes[0].title(), *experiment.classes[1:]))
    agent = SiteAgent(
        "north", site.backbone, site.features, None, Ledger(None), MemoryStore(), SeededRandomness(0), audit=audit
    )
    with caplog.at_level("WARNING"):
        reply = agent.train(request_for(1, other, evaluate=True))
    lost = [label for label in experiment.classes if label not in other.classes]
    (text,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert repr(lost[0]) in text
    assert "class_map" in text
    assert "left out" not in (tmp_path / "audit.jsonl").read_text()
    assert "left out" not in repr(reply)


def test_classes_are_the_same_in_either_unicode_form(site, experiment):
    composed, decomposed = "B\u00e4r", "Ba\u0308r"
    features = dataclasses.replace(site.features, classes=(decomposed, *site.features.classes[1:]))
    classes = (*site.features.classes[1:], composed)
    assert len(features.relabelled(classes).train) == len(site.features.train)


# Budget


def budget(per_experiment, lifetime):
    return Policy(experiments=("*",), max_epsilon_per_experiment=per_experiment, max_epsilon_lifetime=lifetime)


def cost(experiment, steps):
    privacy = experiment.privacy
    return epsilon([PrivacyEvent("x", "per_step", privacy.noise_multiplier, privacy.sample_rate, steps)], 1e-5)


def test_retries_count_against_the_cap_of_the_experiment(site, request_for, experiment, computed):
    site.start(budget((cost(experiment, 3) + cost(experiment, 4)) / 2, 100.0))
    real = site.store.write
    site.store.write = crash
    with pytest.raises(CrashError):
        site.agent.train(request_for(1))
    site.store.write = real
    site.agent.train(request_for(1))
    site.agent.train(request_for(2))
    refused("BUDGET_EXHAUSTED", site.agent.train, request_for(3))
    assert (len(site.charges), computed.count("train_round")) == (3, 3)
    assert epsilon(site.ledger.events("pilot"), 1e-5) <= cost(experiment, 3)


def test_A3_the_lifetime_cap_holds_over_experiments_and_restarts(site, request_for, experiment, changed, computed):
    # Over a lifetime a filter decides, valid for adaptive choice: it takes 5 steps for 1.11 times what they cost.
    policy = budget(50.0, 1.17 * cost(experiment, 5))
    site.start(policy)
    replies = [site.agent.train(request_for(number)) for number in (1, 2, 3)]
    second = changed(experiment, name="second")
    for _ in range(2):
        error = refused("BUDGET_EXHAUSTED", site.start(policy).train, request_for(1, second))
        assert "max_epsilon_lifetime" in error.message
    assert (len(site.charges), computed.count("train_round")) == (3, 3)
    site.agent.train(request_for(1, changed(experiment, name="short", rounds={"number": 2})))
    assert site.start(budget(50.0, 1e-6)).train(request_for(3)).update.tobytes() == replies[2].update.tobytes()
    assert len(site.charges) == 4


def test_NI12_an_experiment_that_was_admitted_as_the_only_one_counts_whole_however_little_ran(
    site, request_for, experiment, changed
):
    """Else an operator could stop it for what it gave away and go on under the filter, at twice delta."""
    policy, short = budget(50.0, 1.01 * cost(experiment, 3)), changed(experiment, name="short", rounds={"number": 1})
    site.start(policy).train(request_for(1))
    error = refused("BUDGET_EXHAUSTED", site.start(policy).train, request_for(1, short))
    assert "max_epsilon_lifetime" in error.message
    assert site.start(policy).train(request_for(2)).round == 2
    told = (*site.ledger.events_of_others("short"), *site.ledger.events())
    steps = [event.steps for event in told if event.part == "training"]
    assert steps == [3, 2], "planned; what is charged stays what ran"
    assert site.ledger.counts_whole("pilot")
    assert site.start(budget(50.0, 100.0)).train(request_for(1, short)).round == 1


def test_NI12_where_there_is_room_for_others_only_what_ran_counts(site, request_for, experiment, changed):
    site.start(budget(50.0, 100.0)).train(request_for(1))
    assert site.ledger.events_of_others("short")[0].steps == 1
    assert not site.ledger.counts_whole("pilot")


def test_A3_what_many_experiments_tell_the_operator_stops_at_its_own_cap(site, request_for, experiment, changed):
    """Many sites share the noise, so the operator learns more than anybody else; its sum is capped by itself."""
    names = ("north", *(f"site-{number}" for number in range(20)))
    one = changed(experiment, sites=names, rounds={"number": 2})
    alone = epsilon(planned_events(one)[2:], 1e-5)
    site.start(Policy(("*",), 50.0, 100.0, max_epsilon_operator=alone, max_epsilon_operator_lifetime=2 * alone))
    served = 0
    for number in range(30):
        another = changed(one, name=f"attempt-{number}")
        try:
            for round_number in (1, 2):
                site.agent.train(request_for(round_number, another))
        except RefusedError:
            break
        served += 1
    error = refused("BUDGET_EXHAUSTED", site.agent.train, request_for(1, another))
    assert "max_epsilon_operator_lifetime" in error.message
    operator = epsilon(site.ledger.events(adversary="operator"), 1e-5)
    assert 2 <= served < 30
    assert operator <= 2 * alone
    assert operator > epsilon(site.ledger.events(), 1e-5)


def test_A3_the_cap_towards_the_operator_does_not_bind_where_central_is_allowed(site, request_for, experiment):
    site.start(Policy(("*",), 50.0, 100.0, max_epsilon_operator_lifetime=1e-6))
    refused("BUDGET_EXHAUSTED", site.agent.train, request_for())
    trust = ("central", "distributed", "local")
    site.start(Policy(("*",), 50.0, 100.0, max_epsilon_operator_lifetime=1e-6, trust=trust))
    assert site.agent.train(request_for()).round == 1


def test_an_evaluation_before_the_end_charges_nothing_tells_nothing_and_keeps_the_context(
    site, request_for, experiment
):
    site.agent.train(request_for())
    context = np.full(experiment.context_shape, 0.5, "<f4")
    reply = site.agent.evaluate(EvaluateRequest(experiment, 2, context))
    assert (reply.update, reply.metrics, reply.scores) == (None, {}, ())
    assert len(site.charges) == 1
    np.testing.assert_array_equal(site.store.read_final("pilot"), context)


@pytest.mark.parametrize("metrics", ["none", "coarse", "exact"])
def test_the_policy_decides_which_accuracies_leave(site, request_for, experiment, metrics):
    site.start(Policy(("*",), 50.0, 100.0, metrics=metrics), public=True)
    context = np.zeros(experiment.context_shape, "<f4")
    replies = [
        site.agent.train(request_for(evaluate=True)),
        site.agent.evaluate(EvaluateRequest(experiment, 3, context)),
    ]
    for reply in replies:
        if metrics == "none":
            assert reply.metrics == {}
            continue
        assert {name.split("_local")[0] for name in reply.metrics if name.endswith("_local")} >= {"personal", "global"}
        for name, value in reply.metrics.items():
            if not name.endswith(("_local", "_neighbour")):
                continue
            images = 7 if name.endswith("local") else 6
            assert (value * images == pytest.approx(round(value * images), abs=1e-9)) or metrics == "coarse"
            assert (value * 20 == pytest.approx(round(value * 20), abs=1e-9)) or metrics == "exact"
    assert site.agent.train(request_for(2)).metrics == {}  # not asked for


# Threads


def test_two_threads_get_one_release_and_one_charge(site, request_for, computed):
    start, replies = threading.Barrier(4), []

    def ask():
        start.wait(10)
        replies.append(site.agent.train(request_for()).update.tobytes())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(replies), len(set(replies))) == (4, 1)
    assert (len(site.charges), computed.count("train_round")) == (1, 1)


# Classes that the model cannot tell apart


@pytest.mark.parametrize("names", [("Nevus", "nevus"), ("bar ", "bar"), ("lung  cancer", "lung cancer")])
def test_classes_that_the_model_reads_alike_are_refused_with_both_names_and_nothing_is_charged(
    site, request_for, experiment, changed, names
):
    alike = changed(experiment, name="alike", classes=names)
    refusal = refused("CLASSES_READ_ALIKE", site.agent.train, request_for(of=alike))
    assert all(repr(name) in str(refusal) for name in names)
    assert "same tokens" in str(refusal)
    assert not site.charges
    assert not site.released
