"""A simulated federation shares one model, is a function of its seed, and scales to a hundred sites."""

import gc
import os

import numpy as np
import pytest
import torch

from dpfpl_bench.simulation.in_process import SimulatedSite, Simulation, mean_local_accuracy, prepare_sites, site_names
from dpfpl_client.data import DataSettings, list_classes, load_pool, partition_sites
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.learning.step import SystemRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def backbone():
    torch.set_num_threads(1)
    return load_backbone("embedded")


def make_sites(backbone, count, images=12):
    def part(seed, count):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(count, backbone.feature_size, generator=generator)
        labels = torch.randint(0, len(CLASSES), (count,), generator=generator)
        return LabelledFeatures(torch.nn.functional.normalize(features, dim=-1), labels)

    return [
        SimulatedSite(name, SiteFeatures(part(3 * k, images), part(3 * k + 1, 6), part(3 * k + 2, 6), CLASSES), 3)
        for k, name in enumerate(site_names(count))
    ]


def make_experiment(backbone, sites, classes=CLASSES, rounds=2, **privacy):
    return Experiment(
        name="simulated",
        classes=tuple(classes),
        sites=tuple(site.name for site in sites),
        model=ModelSettings(width=backbone.width),
        privacy=PrivacySettings(
            **({"mechanism": "per_step", "noise_multiplier": 1.0, "nominal_site_size": 12} | privacy)
        ),
        rounds=RoundSettings(number=rounds, local_steps=1),
    )


def same(one, other):
    return (
        np.array_equal(one.checkpoint.global_context, other.checkpoint.global_context)
        and one.final == other.final
        and all(np.array_equal(one.personal[site], other.personal[site]) for site in one.personal)
    )


@pytest.mark.parametrize("trust", ["distributed", "central", "local"])
def test_the_seed_decides_everything(backbone, trust):
    sites = make_sites(backbone, 2)
    experiment = make_experiment(backbone, sites, trust=trust)

    first, again, other = (Simulation(backbone, sites, seed).run(experiment) for seed in (5, 5, 6))

    assert same(first, again)
    assert not np.array_equal(first.checkpoint.global_context, other.checkpoint.global_context)
    assert not np.array_equal(first.personal["site-1"], other.personal["site-1"])
    assert not np.array_equal(first.personal["site-1"], first.personal["site-2"])


def test_every_run_of_a_simulation_starts_fresh(backbone):
    sites = make_sites(backbone, 2)
    simulation = Simulation(backbone, sites, seed=1)
    experiment = make_experiment(backbone, sites)

    assert same(simulation.run(experiment), simulation.run(experiment))


def test_real_randomness_is_never_repeated(backbone):
    sites = make_sites(backbone, 2)
    simulation = Simulation(backbone, sites, seed=1, randomness=SystemRandomness())
    experiment = make_experiment(backbone, sites, rounds=1)

    one, other = simulation.run(experiment), simulation.run(experiment)

    assert not np.array_equal(one.checkpoint.global_context, other.checkpoint.global_context)


def resident_bytes():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
def test_an_extra_site_costs_less_than_a_megabyte(backbone):
    """All memory counts here, also torch's and SQLite's; the model alone has five megabytes."""

    def used(count):
        sites = make_sites(backbone, count)
        during = []
        Simulation(backbone, sites, seed=0).run(
            make_experiment(backbone, sites, rounds=1, nominal_site_size=12),
            lambda status: during.append(resident_bytes()) if status["phase"] == "ROUND_DONE" else None,
        )
        return during[0]

    used(10)  # what is only paid once
    few = used(10)
    many = used(90)
    assert (many - few) / 80 < 1e6


class FeaturesOfLabels:
    """Stands in for the feature cache: a feature that is a function of the image's label and digest."""

    def __init__(self, backbone, class_names):
        self.size = backbone.feature_size
        self.index = {name: k for k, name in enumerate(class_names)}

    def features(self, records, progress=None):
        if not records:
            return torch.zeros((0, self.size))
        rows = []
        for record in records:
            row = 0.3 * torch.randn(self.size, generator=torch.Generator().manual_seed(int(record.digest[:8], 16)))
            row[self.index[record.label]] += 3.0
            rows.append(row / row.norm())
        return torch.stack(rows)


def test_a_hundred_sites_on_ten_classes(backbone):
    settings = DataSettings(source="digits")
    class_names = list_classes(settings)
    pool = load_pool(settings, class_names)
    data = partition_sites(pool, class_names, "pathological", 100, 0)

    sites = prepare_sites(data, class_names, FeaturesOfLabels(backbone, class_names), site_names(100))
    outcome = Simulation(backbone, sites, 0).run(make_experiment(backbone, sites, class_names, rounds=1))

    assert len(class_names) == 10
    assert len(outcome.final) == len(outcome.personal) == 100
    assert outcome.checkpoint.history[0]["sites"] == site_names(100)
    assert sum(len(site.features.train) for site in sites) == sum(r.split == "train" for r in pool)
    for site, own in zip(sites, data, strict=True):
        assert {class_names[k] for k in site.features.train.labels.tolist()} == set(own.classes)
        assert site.num_classes == len(own.classes) >= 2


@pytest.mark.parametrize(("count", "first", "last"), [(1, "site-1", "site-1"), (10, "site-01", "site-10")])
def test_site_names_sort_in_order(count, first, last):
    names = site_names(count)
    assert (names[0], names[-1], len(names)) == (first, last, count)
    assert sorted(names) == names


def test_mean_local_accuracy_of_a_round():
    assert (
        mean_local_accuracy({"metrics": {"a": {"personal_local": 0.5}, "b": {"personal_local": 1.0}, "c": {}}}) == 0.75
    )
    assert mean_local_accuracy({"metrics": {}}) is None
