"""The floors are what they claim: every site alone with the same noise, and all images in one place without any."""

import dataclasses

import numpy as np
import pytest
import torch
from featured_sites import clouds, experiment_of

from dpfpl_bench.simulation import baselines as floors
from dpfpl_bench.simulation.baselines import centralised, local_only, trained_floors
from dpfpl_bench.simulation.in_process import SimulatedSite, Simulation
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_common.experiment import OptimizerSettings

CLASSES = ("cat", "dog", "owl", "ant")


@pytest.fixture(scope="module")
def sites(backbone):
    """Two sites of different sizes with two classes each."""
    centres = 2.0 * np.eye(len(CLASSES), backbone.feature_size)

    def site(name, seed, own, others, size):
        labels = (own * size, own * 4, others * 4)
        parts = (clouds(centres, part, seed + number, 0.1) for number, part in enumerate(labels))
        return SimulatedSite(name, SiteFeatures(*parts, CLASSES), 2)

    return [site("north", 1, [0, 1], [2, 3], 8), site("south", 4, [2, 3], [0, 1], 4)]


def make_experiment(backbone, rounds=3, **privacy):
    given = {"target_epsilon": 8.0, "nominal_site_size": 12, "tolerated_dropouts": 1} | privacy
    experiment = experiment_of(backbone, CLASSES, ("north", "south"), rounds=rounds, local_steps=2, **given)
    return dataclasses.replace(
        experiment,
        optimizer=OptimizerSettings(global_learning_rate=0.05, personal_learning_rate=0.05),
        rounds=dataclasses.replace(experiment.rounds, min_sites=1),
    )


@pytest.mark.parametrize("trust", ["distributed", "central", "local"])
def test_local_only_equals_federations_of_one(backbone, sites, trust):
    experiment = make_experiment(backbone, trust=trust)
    seen = []

    floor = local_only(backbone, sites, experiment, seed=3, on_count=lambda done, total: seen.append((done, total)))

    alone = []
    for site in sites:
        one = dataclasses.replace(
            experiment,
            sites=(site.name,),
            privacy=dataclasses.replace(experiment.privacy, tolerated_dropouts=0),
            rounds=dataclasses.replace(experiment.rounds, min_sites=0),
        )
        alone.append(Simulation(backbone, [site], 3).run(one).final[site.name])
    assert seen == [(0, 2), (1, 2)]
    assert floor["local"] == pytest.approx(np.mean([m["personal_local"] for m in alone]))
    assert floor["neighbour"] == pytest.approx(np.mean([m["personal_neighbour"] for m in alone]))


@pytest.fixture
def simulated(monkeypatch):
    """Every simulation that a floor runs: its sites and its experiment; what is trained in one place stops soon."""
    runs = []

    class Recorder(Simulation):
        def __init__(self, backbone, sites, seed, randomness=None):
            super().__init__(backbone, sites, seed, randomness)
            self.recorded = list(sites)

        def run(self, experiment, *arguments, **keywords):
            runs.append((self.recorded, experiment))
            return super().run(experiment, *arguments, **keywords)

    monkeypatch.setattr(floors, "Simulation", Recorder)
    monkeypatch.setattr(floors, "MOST_STEPS", 50)
    return runs


@pytest.mark.privacy
def test_local_only_keeps_noise_clipping_and_steps(backbone, sites, simulated):
    experiment = make_experiment(backbone)
    local_only(backbone, sites, experiment, seed=0)
    for (site,), alone in simulated:
        assert alone.sites == (site.name,)
        assert alone.total_steps == experiment.total_steps
        for name in ("noise_multiplier", "clipping_norm", "sample_rate", "nominal_site_size", "trust"):
            assert getattr(alone.privacy, name) == getattr(experiment.privacy, name)


def test_centralised_trains_on_every_image_without_noise(backbone, sites, monkeypatch):
    trained, original = [], floors._trained_out

    def recorded(scorer, model, experiment, train, on_count):
        trained.append((experiment, train))
        return original(scorer, model, experiment, train, on_count)

    monkeypatch.setattr(floors, "_trained_out", recorded)
    monkeypatch.setattr(floors, "MOST_STEPS", 1)

    centralised(backbone, sites, make_experiment(backbone), seed=0)

    ((together, train),) = trained
    expected = torch.cat([site.features.train.features for site in sites])
    np.testing.assert_array_equal(train.features, expected)
    assert train.labels.tolist() == [0, 1] * 8 + [2, 3] * 4
    assert together.privacy.noise_multiplier == 0.0
    assert together.privacy.nominal_site_size == 24
    assert together.prompt.method == "promptfl"
    assert not together.is_private


def test_centralised_is_tested_on_every_sites_own_images_and_learns(backbone, sites):
    untrained = Simulation(backbone, sites, 0).run(make_experiment(backbone, rounds=1))
    zero_shot = np.mean([untrained.final[s]["zero_shot_local"] for s in ("north", "south")])

    floor = centralised(backbone, sites, make_experiment(backbone, rounds=15, clipping_norm=1.0), seed=0)

    assert floor["local"] > max(zero_shot, 0.6)
    assert floor["neighbour"] == pytest.approx(floor["local"], abs=0.35)


def test_a_site_without_test_images_is_left_out_of_the_means(backbone, sites):
    none = LabelledFeatures(torch.zeros((0, backbone.feature_size)), torch.zeros(0, dtype=torch.long))
    blind = SimulatedSite("south", dataclasses.replace(sites[1].features, test=none, neighbour_test=none), 2)

    floor = local_only(backbone, [blind], make_experiment(backbone, rounds=1), seed=0)

    assert floor == dict.fromkeys(("local", "neighbour", "unseen", "all", "worst_site"))


def test_every_site_alone_is_shown_with_its_noise_and_without(backbone, sites, simulated):
    found = trained_floors(backbone, sites, make_experiment(backbone, rounds=1), seed=0)
    assert set(found) == {"local_only", "local_only_no_noise", "centralised"}
    assert [alone.privacy.noise_multiplier for _, alone in simulated] == [1.0, 1.0, 0.0, 0.0]
    for floor in found.values():
        assert floor["worst_site"] <= floor["local"]


def test_without_noise_every_site_alone_is_trained_once(backbone, sites, simulated):
    experiment = make_experiment(backbone, rounds=1, target_epsilon=None, noise_multiplier=0.0)
    found = trained_floors(backbone, sites, experiment, seed=0)
    assert len(simulated) == 2
    assert found["local_only"] == found["local_only_no_noise"]


@pytest.mark.usefixtures("simulated")
def test_floors_of_a_mechanism_s_own_options_can_be_trained(backbone, sites):
    """``centralised`` trains by another mechanism and method, to which they say nothing."""
    once = make_experiment(backbone, rounds=1, mechanism="one_shot", trust="local")
    kept = dataclasses.replace(once, prompt=dataclasses.replace(once.prompt, absent_weight=0.5))
    steps = make_experiment(backbone, rounds=1)
    drawn = dataclasses.replace(steps, prompt=dataclasses.replace(steps.prompt, method="fedpgp", contrast=1.0))
    for experiment in (kept, drawn):
        assert set(trained_floors(backbone, sites, experiment, seed=0)) >= {"local_only", "centralised"}
