"""What the sites sent becomes one gradient: equal weights, the server's noise only under central trust, no round on too
few sites."""

import math

import numpy as np
import pytest
import server_samples
import torch

from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.step import SeededRandomness, SystemRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import RoundError
from dpfpl_common.privacy.noise import SeededNoise, SystemNoise
from dpfpl_common.privacy_plan import largest_signal, site_noise_stddev
from dpfpl_server.federation import aggregation
from dpfpl_server.federation.aggregation import initial_global_context, update_norm_cap
from no_noise import NoNoise

SITES = ("east", "north", "south", "west")


def make_experiment(sites=SITES, width=500, **settings):
    return server_samples.make_experiment(sites, width=width, **{"noise_multiplier": 2.0, **settings})


def aggregate(experiment, updates, noise):
    return aggregation.aggregate(experiment, aggregation.Updates(experiment, updates), noise)


def make_updates(experiment, count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=experiment.context_shape).astype("<f4") for _ in range(count)]


class RecordingNoise:
    """Adds nothing and remembers what it was asked for."""

    is_private = True

    def __init__(self):
        self.calls = []

    def add(self, total, noise_stddev):
        self.calls.append((total.copy(), noise_stddev))
        return total


@pytest.mark.parametrize("trust", ["distributed", "local"])
def test_without_server_noise_the_gradient_is_the_plain_mean(trust):
    experiment = make_experiment(trust=trust)
    updates = make_updates(experiment, 4)
    noise = RecordingNoise()

    gradient = aggregate(experiment, updates, noise)

    np.testing.assert_allclose(gradient, np.mean([u.astype(np.float64) for u in updates], axis=0), rtol=1e-12)
    assert gradient.dtype == np.float64
    assert noise.calls == []  # a second noise would be paid for in accuracy and reported nowhere


@pytest.mark.privacy
@pytest.mark.parametrize("local_steps", [1, 4])
def test_central_noise_goes_to_the_sum_with_the_stddev_of_the_analysis(local_steps):
    experiment = make_experiment(
        trust="central",
        noise_multiplier=1.7,
        clipping_norm=0.3,
        sample_rate=0.25,
        nominal_site_size=40,
        rounds={"local_steps": local_steps},
    )
    updates = make_updates(experiment, 4)
    noise = RecordingNoise()

    aggregate(experiment, updates, noise)

    ((total, stddev),) = noise.calls
    np.testing.assert_allclose(total, np.sum([u.astype(np.float64) for u in updates], axis=0))
    assert stddev == pytest.approx(1.7 * 0.3 / (0.25 * 40) / math.sqrt(local_steps))


@pytest.mark.privacy
@pytest.mark.parametrize("factor", [1.0, 2 / 3, 3 / 2])
def test_measured_central_noise_accepts_the_right_stddev_and_no_other(factor):
    """4 x 25 x 500 values: the measured deviation is within 1 % of the true one with all but certainty (8 sigma)."""
    experiment = make_experiment(
        trust="central", sample_rate=0.5, nominal_site_size=100, clipping_norm=0.1, rounds={"local_steps": 4}
    )
    updates = make_updates(experiment, 4)
    exact = np.mean([u.astype(np.float64) for u in updates], axis=0)
    source = SystemNoise()

    errors = [(aggregate(experiment, updates, source) - exact) * 4 for _ in range(25)]

    expected = factor * 2.0 * 0.1 / (0.5 * 100) / math.sqrt(4)
    close = abs(np.std(errors) / expected - 1) < 0.02
    assert close == (factor == 1.0)
    if factor == 1.0:
        assert abs(np.mean(errors)) < 5 * expected / math.sqrt(np.size(errors))


@pytest.mark.privacy
def test_the_claimed_noise_of_a_round_is_the_same_under_every_trust():
    """All honest sites' noise together (less the colluder's) or the server's: the same deviation on the sum."""
    settings = {"sample_rate": 0.5, "nominal_site_size": 20, "clipping_norm": 0.1}
    deviations = {}
    for trust in ("distributed", "central"):
        experiment = make_experiment(trust=trust, width=200, rounds={"local_steps": 1}, **settings)
        divisor = 0.5 * 20
        stddev = site_noise_stddev(experiment)
        generator = np.random.default_rng(3)
        sums = []
        for _ in range(60):
            honest = experiment.sites[:-1] if trust == "distributed" else experiment.sites
            updates = [
                (generator.normal(0, stddev, experiment.context_shape) / divisor if stddev else np.zeros((4, 200)))
                for _ in honest
            ]
            updates += [np.zeros((4, 200))] * (4 - len(updates))
            sums.append(aggregate(experiment, updates, SeededNoise(generator)) * 4)
        deviations[trust] = np.std(sums)
    assert deviations["distributed"] == pytest.approx(deviations["central"], rel=0.03)
    assert deviations["central"] == pytest.approx(2.0 * 0.1 / 10, rel=0.03)


@pytest.mark.privacy
@pytest.mark.parametrize(
    ("dropouts", "min_sites", "enough"), [(0, 0, 4), (1, 0, 3), (3, 0, 1), (2, 3, 3), (1, 4, 4), (3, 2, 2)]
)
def test_fewer_updates_than_the_analysis_or_the_quorum_needs_are_not_aggregated(dropouts, min_sites, enough):
    experiment = make_experiment(tolerated_dropouts=dropouts, rounds={"min_sites": min_sites})
    for count in range(5):
        updates = make_updates(experiment, count)
        if count >= enough:
            assert np.all(np.isfinite(aggregate(experiment, updates, NoNoise())))
        else:
            with pytest.raises(RoundError) as caught:
                aggregate(experiment, updates, NoNoise())
            assert caught.value.code == "TOO_FEW_SITES"
            assert f"{count} usable" in caught.value.message
            assert str(enough) in caught.value.message


def test_the_mean_is_over_the_sites_that_answered():
    experiment = make_experiment(tolerated_dropouts=2)
    ones = np.ones(experiment.context_shape, dtype="<f4")

    np.testing.assert_array_equal(aggregate(experiment, [ones, ones], NoNoise()), 1.0)


def test_the_start_is_zero_from_text_and_a_public_draw_without():
    zero = initial_global_context(make_experiment())
    assert zero.dtype == np.dtype("<f4")
    assert not zero.any()

    drawn = initial_global_context(make_experiment(prompt={"init_text": ""}))
    again = initial_global_context(make_experiment(prompt={"init_text": ""}))
    np.testing.assert_array_equal(drawn, again)
    assert np.std(drawn) == pytest.approx(0.02, rel=0.1)


# The norm cap, with the real learner


@pytest.fixture(scope="module")
def backbone():
    torch.set_num_threads(1)
    return load_backbone("embedded")


def learner_of(backbone, experiment, count):
    """A site whose examples are all the same hard one: every clipped gradient points the same way, at full length."""
    direction = torch.randn(backbone.feature_size, generator=torch.Generator().manual_seed(5))
    feature = direction / direction.norm()
    images = LabelledFeatures(feature.repeat(count, 1), torch.zeros(count, dtype=torch.long))
    return PromptLearner(backbone, experiment, SiteFeatures(images, images, images, experiment.classes))


@pytest.mark.privacy
@pytest.mark.parametrize("trust", ["distributed", "central", "local"])
@pytest.mark.parametrize(("sample_rate", "size_factor", "z"), [(1.0, 1, 0.0), (1.0, 20, 1.0), (0.05, 5, 30.0)])
def test_an_honest_update_never_exceeds_the_norm_cap(backbone, trust, sample_rate, size_factor, z):
    nominal = 12
    experiment = make_experiment(
        width=backbone.width,
        trust=trust,
        noise_multiplier=z,
        clipping_norm=1e-4,  # far below the gradients, so that every example is clipped
        sample_rate=sample_rate,
        nominal_site_size=nominal,
        rounds={"local_steps": 2},
    )
    learner = learner_of(backbone, experiment, nominal * size_factor)
    source = SystemRandomness() if z else SeededRandomness(0)

    norms = [
        np.linalg.norm(
            learner.train_round(
                initial_global_context(experiment), PersonalState.initial(experiment), source.for_round("east", k)
            ).update
        )
        for k in range(1, 4)
    ]

    assert max(norms) <= update_norm_cap(experiment)
    if z == 0:
        assert min(norms) > 0.3 * 1e-4 / sample_rate  # the examples really are aligned, else the test shows nothing


@pytest.mark.parametrize("clipping_norm", [1e-9, 1.0])
def test_an_honest_update_of_one_shot_keeps_within_the_norm_cap_whatever_its_gradients(backbone, clipping_norm):
    """Nobody clips them: a steep place once had a whole run abandoned, an honest site dropped for its long update."""
    experiment = make_experiment(
        width=backbone.width,
        mechanism="one_shot",
        trust="local",
        noise_multiplier=1e-3,
        clipping_norm=clipping_norm,
        rounds={"local_steps": 2},
    )
    result = learner_of(backbone, experiment, 12).train_round(
        initial_global_context(experiment), PersonalState.initial(experiment), SeededRandomness(0).for_round("east", 1)
    )
    norm = np.linalg.norm(result.update.astype("<f4").astype(np.float64))
    assert norm <= largest_signal(experiment) <= update_norm_cap(experiment)
    if clipping_norm == 1e-9:
        assert norm > 0.999 * largest_signal(experiment)  # it would have been longer


@pytest.mark.parametrize("clipping_norm", [1e-6, 0.1, 10.0])
@pytest.mark.parametrize("z", [0.0, 1.0, 100.0])
def test_the_norm_cap_refuses_absurd_updates(clipping_norm, z):
    cap = update_norm_cap(make_experiment(clipping_norm=clipping_norm, noise_multiplier=z))
    assert 0 < cap < 1e7
