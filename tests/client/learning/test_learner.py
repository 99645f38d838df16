"""A site's rounds: nothing un-noised stays, nobody else's data matters, zero displacement is zero-shot."""

import dataclasses

import numpy as np
import pytest
import torch

from dpfpl_client.agent.store import Record
from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures, initial_context
from dpfpl_client.learning.step import Randomness, SeededRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_common.errors import ModelError
from dpfpl_common.experiment import METHODS
from dpfpl_common.privacy.sampling import SeededSampler
from dpfpl_common.wire.payloads import SiteReply

pytestmark = pytest.mark.privacy

CLASSES = ("cat", "dog", "tree")
# So little noise in one_shot that the classes of two dozen random images stand out from it.
ONE_SHOT = {"mechanism": "one_shot", "trust": "local", "noise_multiplier": 0.05}
MECHANISMS = [{"mechanism": "per_step"}, {**ONE_SHOT, "projection": "text"}]


@pytest.fixture
def site(backbone, make_experiment, make_features):
    def make(seed=0, count=24, optimizer=None, **settings):
        experiment = make_experiment(width=backbone.width, classes=CLASSES, **settings)
        if optimizer is not None:
            experiment = dataclasses.replace(experiment, optimizer=optimizer)
        features = make_features(seed, backbone.feature_size, CLASSES, count)
        return experiment, PromptLearner(backbone, experiment, features)

    return make


def sources(noise, sampler=None):
    """The given noise, with a batch and factors that are the same in every call."""
    sampler = sampler or SeededSampler(np.random.default_rng(1))
    return Randomness(noise, sampler, np.random.default_rng(2))


def round_of(number):
    return SeededRandomness(0).for_round("s0", number)


def start(experiment):
    return np.zeros(experiment.context_shape, np.float32), PersonalState.initial(experiment)


@pytest.mark.parametrize("trust", ["distributed", "central", "local"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_un_noised_enters_the_personal_state(site, recording_noise, trust, method):
    """A source that drops the data and answers noise alone: two data sets end in the same state, bit for bit."""
    results = []
    for seed in (1, 2):
        generator = np.random.default_rng(9)
        noise = recording_noise(lambda total, std, generator=generator: generator.normal(0, std, total.shape))
        experiment, learner = site(seed, trust=trust, method=method, local_steps=3)
        global_context, state = start(experiment)
        for _ in range(3):
            result = learner.train_round(global_context, state, sources(noise))
            state = result.state
        results.append(result)
    a, b = results
    assert a.state.context.tobytes() == b.state.context.tobytes()
    assert a.state.optimizer.first.tobytes() == b.state.optimizer.first.tobytes()
    assert a.state.optimizer.second.tobytes() == b.state.optimizer.second.tobytes()
    assert (a.state.parameters is None) == (b.state.parameters is None) == (method != "fedpgp")
    if a.state.parameters is not None:
        assert a.state.parameters.tobytes() == b.state.parameters.tobytes()
    assert (a.update.tobytes() == b.update.tobytes()) == (trust != "central")
    assert bool(a.state.context.any()) == (method != "promptfl")


@pytest.mark.parametrize("projection", ["none", "text"])
@pytest.mark.parametrize("method", METHODS)
def test_one_shot_trains_on_what_the_noise_source_answered_alone(site, recording_noise, method, projection):
    results = []
    for seed in (1, 2):
        noise = recording_noise(lambda total, std: np.random.default_rng(3).normal(0, 2.0, total.shape))
        experiment, learner = site(seed, method=method, **{**ONE_SHOT, "projection": projection})
        global_context, state = start(experiment)
        for _ in range(2):
            result = learner.train_round(global_context, state, sources(noise))
            state = result.state
        assert len(noise.calls) == 1
        results.append(result)
    a, b = results
    assert a.update.any()
    assert a.update.tobytes() == b.update.tobytes()
    assert a.state.context.tobytes() == b.state.context.tobytes()
    assert a.state.class_sums.tobytes() == b.state.class_sums.tobytes()


def test_the_projection_changes_what_is_learned_and_not_what_is_released(site):
    states = []
    for projection in ("none", "text"):
        experiment, learner = site(**{**ONE_SHOT, "projection": projection})
        states.append(learner.train_round(*start(experiment), round_of(1)).state)
    assert states[0].class_sums.tobytes() == states[1].class_sums.tobytes()
    assert states[0].context.tobytes() != states[1].context.tobytes()


def test_with_all_the_noise_there_is_one_shot_stays_zero_shot(site):
    experiment, learner = site(**{**ONE_SHOT, "noise_multiplier": 500.0, "projection": "text"})
    result = learner.train_round(*start(experiment), round_of(1))
    assert not result.update.any()
    assert not result.state.context.any()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "promptfl"])
def test_the_data_does_reach_the_state_through_the_noised_sum(site, method):
    """The other side of the test above: with the real path the two data sets differ."""
    states = []
    for seed in (1, 2):
        experiment, learner = site(seed, method=method)
        states.append(learner.train_round(*start(experiment), round_of(1)).state.context)
    assert states[0].tobytes() != states[1].tobytes()


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda m: m["mechanism"])
@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("method", ["dplora", "fedpgp"])
def test_the_personal_context_has_the_rank_that_was_asked_for(site, method, rank, mechanism):
    """After every round, under the real optimizer and with noise."""
    settings = {"method": method, "rank": rank, "num_context": 8, **mechanism}
    experiment, learner = site(**settings)
    global_context, state = start(experiment)
    for number in (1, 2):
        state = learner.train_round(global_context, state, round_of(number)).state
        values = np.linalg.svd(state.context, compute_uv=False)
        assert values[0] > 0
        assert np.all(values[rank:] <= 1e-10 * values[0])


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda m: m["mechanism"])
@pytest.mark.parametrize("method", METHODS)
def test_a_restart_from_the_record_equals_going_on(site, method, mechanism):
    """All that a method needs from round to round is in the record, down to the bit."""
    settings = {"method": method, "rank": 1, "num_context": 8, **mechanism}
    experiment, learner = site(**settings)
    global_context, state = start(experiment)
    kept = state
    for number in (1, 2, 3):
        through = learner.train_round(global_context, state, round_of(number))
        _, fresh = site(**settings)
        again = fresh.train_round(global_context, kept, round_of(number))
        assert again.update.tobytes() == through.update.tobytes()
        assert again.state.context.tobytes() == through.state.context.tobytes()
        state = through.state
        reply = SiteReply("s0", number, again.update.astype("<f4"), {})
        kept = Record.from_bytes(Record("f" * 64, reply, global_context, again.state).to_bytes()).state


def test_fedpgp_makes_its_factors_once(site):
    """With a learning rate of 0 the factors of the first round are those of the last, whatever the randomness since."""
    experiment, _ = site(method="fedpgp")
    still = dataclasses.replace(experiment.optimizer, personal_learning_rate=0.0)
    experiment, learner = site(method="fedpgp", optimizer=still)
    global_context, state = start(experiment)
    kept = []
    for number in (1, 2, 3):
        state = learner.train_round(global_context, state, round_of(number)).state
        kept.append(state.parameters.tobytes())
    assert len(set(kept)) == 1
    assert state.parameters.any()
    assert not state.context.any()


@pytest.mark.parametrize("method", ["dpfpl", "fedpgp"])
def test_isolation_another_sites_data_changes_nothing_here(site, method):
    experiment, mine = site(1, method=method)
    alone = mine.train_round(*start(experiment), round_of(1))
    _, other = site(2, method=method)
    other.train_round(*start(experiment), SeededRandomness(0).for_round("s1", 1))
    again = mine.train_round(*start(experiment), round_of(1))
    assert again.update.tobytes() == alone.update.tobytes()
    assert again.state.context.tobytes() == alone.state.context.tobytes()


def test_the_given_state_is_not_written_to(site):
    experiment, learner = site()
    global_context, state = start(experiment)
    learner.train_round(global_context, state, round_of(1))
    assert not state.context.any()
    assert not global_context.any()
    assert state.optimizer.steps == 0


def test_every_local_step_is_noised_and_the_update_is_their_mean(site, recording_noise):
    experiment, learner = site(local_steps=4, trust="local", method="promptfl")
    noise = recording_noise(lambda total, std: np.ones_like(total))
    result = learner.train_round(*start(experiment), sources(noise))
    assert len(noise.calls) == 4
    np.testing.assert_allclose(result.update, 1 / (0.5 * 40), rtol=1e-12)
    assert result.state.optimizer.steps == 4


def test_P8_a_round_without_any_example_still_releases_noise(site, recording_noise):
    class Nobody:
        def draw(self, count, sample_rate):
            return np.zeros(0, dtype=np.int64)

    experiment, learner = site()
    noise = recording_noise()
    learner.train_round(*start(experiment), sources(noise, Nobody()))
    assert len(noise.calls) == 3 * experiment.rounds.local_steps
    assert not any(total.any() for total, _ in noise.calls)


class Everybody:
    """The same randomness for both neighbours: everybody joins."""

    def draw(self, count, sample_rate):
        return np.arange(count)


# With 0.5 of 12 and of 11, of 10 and of 9: both sides of what int() or round() of a batch size would make of them.
@pytest.mark.parametrize("count", [12, 11, 10, 1])
@pytest.mark.parametrize("method", METHODS)
def test_P9_one_image_moves_a_step_by_at_most_the_sensitivity(
    site, recording_noise, backbone, make_features, method, count
):
    """The real gradients, with and without one image, up to float32 rounding of the others' gradients."""
    experiment, _ = site(local_steps=1, method=method)
    features = make_features(5, backbone.feature_size, CLASSES, count)
    smaller = dataclasses.replace(
        features, train=LabelledFeatures(features.train.features[1:], features.train.labels[1:])
    )
    totals, updates = [], []
    for data in (features, smaller):
        noise = recording_noise()
        result = PromptLearner(backbone, experiment, data).train_round(*start(experiment), sources(noise, Everybody()))
        totals.append([total for total, _ in noise.calls])
        updates.append(result.update)
    bounds = [0.3, 0.2, 0.2]
    apart = sum(np.sum((a - b) ** 2) / c**2 for a, b, c in zip(*totals, bounds[: len(totals[0])], strict=True)) ** 0.5
    assert 0.5 < apart <= 1 + 1e-4
    # What is sent is the sum over a constant, the same for both.
    np.testing.assert_allclose(updates[0] - updates[1], (totals[0][0] - totals[1][0]) / (0.5 * 40), atol=1e-12)


PROMPTS = ("zero_shot", "global", "personal")


def test_zero_displacement_is_zero_shot(site):
    experiment, learner = site()
    metrics = learner.evaluate(*(start(experiment)[0], np.zeros(experiment.context_shape)))
    assert {f"{name}_{column}" for name in PROMPTS for column in ("local", "neighbour", "all")} <= set(metrics)
    for where in ("local", "neighbour"):
        assert metrics[f"personal_{where}"] == metrics[f"global_{where}"] == metrics[f"zero_shot_{where}"]


def test_the_context_is_the_sum_of_its_parts(site, backbone):
    experiment, learner = site()
    shape = experiment.context_shape
    g, p = np.full(shape, 0.25, np.float32), np.full(shape, 0.5)
    initial = backbone.text_embeddings("a photo of a", 4)
    assert torch.equal(learner.context(np.zeros(shape), np.zeros(shape)), initial)
    assert torch.equal(learner.context(g, p), initial + 0.75)


def test_the_strength_weighs_the_personal_part_in_evaluation_and_not_in_training(backbone, site, make_features):
    experiment, learner = site()
    weightless = dataclasses.replace(experiment, prompt=dataclasses.replace(experiment.prompt, personal_strength=0.0))
    other = PromptLearner(backbone, weightless, make_features(0, backbone.feature_size, CLASSES, 24))
    shared, state = start(experiment)
    personal = np.random.default_rng(0).normal(0.0, 0.5, experiment.context_shape)
    assert learner.evaluate(shared, personal)["personal_local"] != learner.evaluate(shared, personal)["global_local"]
    metrics = other.evaluate(shared, personal)
    assert metrics["personal_local"] == metrics["global_local"]
    first, second = (each.train_round(shared, state, round_of(1)) for each in (learner, other))
    np.testing.assert_array_equal(first.state.context, second.state.context)


@pytest.mark.parametrize(
    ("method", "extra"), [*((m, {"retention": 2.0}) for m in METHODS), ("fedpgp", {"contrast": 2.0})]
)
def test_public_pulls_are_made_of_released_values_and_public_facts_alone(
    backbone, site, recording_noise, method, extra
):
    """The noise source drops the data: two data sets end in the same state, and not in that without a pull."""
    states = []
    for seed, options in ((1, extra), (2, extra), (1, {})):
        generator = np.random.default_rng(9)
        noise = recording_noise(lambda total, std, generator=generator: generator.normal(0, std, total.shape))
        experiment, bare = site(seed, method=method, local_steps=3)
        pulled = dataclasses.replace(experiment, prompt=dataclasses.replace(experiment.prompt, **options))
        learner = PromptLearner(backbone, pulled, bare._features)
        states.append(learner.train_round(*start(experiment), sources(noise)).state.context)
    assert states[0].tobytes() == states[1].tobytes()
    assert (states[0].tobytes() == states[2].tobytes()) == (method == "promptfl")


def test_without_test_images_there_is_no_metric(backbone, site, make_features):
    experiment, _ = site()
    features = make_features(0, backbone.feature_size, CLASSES)
    nobody = LabelledFeatures(features.test.features[:0], features.test.labels[:0])
    learner = PromptLearner(backbone, experiment, dataclasses.replace(features, neighbour_test=nobody))
    metrics = learner.evaluate(start(experiment)[0], np.zeros(experiment.context_shape))
    assert set(metrics) == {f"{name}_{column}" for name in PROMPTS for column in ("local", "all")}


def test_relabelling_maps_indices_and_drops_unknown_classes(make_features):
    features = make_features(0, 6, ("cat", "dog", "tree"))
    mapped = features.relabelled(("tree", "car", "cat"))
    for before, after in ((features.train, mapped.train), (features.test, mapped.test)):
        kept = before.labels != 1
        assert torch.equal(after.features, before.features[kept])
        assert after.labels.tolist() == [{0: 2, 2: 0}[label] for label in before.labels[kept].tolist()]
    assert mapped.classes == ("tree", "car", "cat")
    assert features.relabelled(features.classes) is features
    assert len(features.relabelled(("car", "bus")).train) == 0
    assert isinstance(mapped, SiteFeatures)


def test_the_initial_context_needs_the_right_width(backbone, make_experiment):
    with pytest.raises(ModelError, match="width 8") as caught:
        initial_context(backbone, make_experiment(width=8))
    assert caught.value.code == "WRONG_WIDTH"
    experiment = make_experiment(width=backbone.width)
    empty = dataclasses.replace(experiment, prompt=dataclasses.replace(experiment.prompt, init_text=""))
    assert not initial_context(backbone, empty).any()
