"""A simulated federation shares one model, is a function of its seed, scales, and answers as a deployed one would."""

import gc
import os

import numpy as np
import pytest
import torch
from featured_sites import drawn, experiment_of

from dpfpl_bench.simulation.in_process import (
    SERVER_NODE,
    InProcessGrid,
    SimulatedSite,
    Simulation,
    mean_local_accuracy,
    prepare_sites,
    site_names,
)
from dpfpl_client.data import DataSettings, list_classes, load_pool, partition_sites
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.learning.step import SystemRandomness
from dpfpl_common.errors import DataError, RefusedError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings
from dpfpl_common.wire.payloads import EvaluateRequest, Refusal, SiteReply, TrainRequest
from dpfpl_server.federation.messages import reply_in, request_content

CLASSES = ("cat", "dog", "owl")


def make_sites(backbone, count, images=12):
    def part(seed, count):
        return drawn(backbone.feature_size, np.arange(count) % len(CLASSES), seed)

    return [
        SimulatedSite(name, SiteFeatures(part(3 * k, images), part(3 * k + 1, 6), part(3 * k + 2, 6), CLASSES), 3)
        for k, name in enumerate(site_names(count))
    ]


def make_experiment(backbone, sites, classes=CLASSES, **changes):
    return experiment_of(backbone, classes, (site.name for site in sites), **({"nominal_site_size": 12} | changes))


def same(one, other):
    return (
        np.array_equal(one.checkpoint.global_context, other.checkpoint.global_context)
        and one.final == other.final
        and all(np.array_equal(one.personal[site], other.personal[site]) for site in one.personal)
    )


@pytest.mark.parametrize("trust", ["distributed", "central", "local"])
def test_the_seed_decides_everything(backbone, trust):
    """And every run of a simulation starts fresh."""
    sites = make_sites(backbone, 2)
    experiment = make_experiment(backbone, sites, trust=trust)
    five, six = (Simulation(backbone, sites, seed) for seed in (5, 6))

    first, again, other = five.run(experiment), five.run(experiment), six.run(experiment)

    assert same(first, again)
    assert not np.array_equal(first.checkpoint.global_context, other.checkpoint.global_context)
    assert not np.array_equal(first.personal["site-1"], other.personal["site-1"])
    assert not np.array_equal(first.personal["site-1"], first.personal["site-2"])


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


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
def test_an_extra_site_costs_less_than_a_megabyte(backbone):
    """All memory counts here, also torch's and SQLite's; the model alone has five megabytes."""

    def used(count):
        sites = make_sites(backbone, count)
        during = []
        Simulation(backbone, sites, seed=0).run(
            make_experiment(backbone, sites, rounds=1),
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


@pytest.mark.slow
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


# The grid keeps to Flower's interface.


EXPERIMENT = Experiment(
    name="pilot",
    classes=("cat", "dog"),
    sites=("north", "south"),
    model=ModelSettings(width=8),
    privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0),
)
CONTEXT = np.random.default_rng(0).normal(size=(4, 8)).astype("<f4")
TRAIN = TrainRequest(EXPERIMENT, 2, CONTEXT)
EVALUATE = EvaluateRequest(EXPERIMENT, 10, CONTEXT)


class Agent:
    def __init__(self, site, error=None):
        self.site, self.error, self.seen = site, error, []

    def train(self, request):
        if self.error:
            raise self.error
        self.seen.append(request)
        return SiteReply(self.site, request.round, 2 * request.global_context, {"personal_local": 0.5})

    def evaluate(self, request):
        self.seen.append(request)
        return SiteReply(self.site, request.round, None, {"personal_local": 0.75})


def ask(grid, site, request):
    kind = "train" if isinstance(request, TrainRequest) else "evaluate"
    message = grid.create_message(request_content(request), kind, grid.nodes[site], str(request.round))
    (reply,) = grid.send_and_receive([message])
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
    assert reply.metadata.src_node_id == grid.nodes[site]
    assert reply.metadata.dst_node_id == SERVER_NODE
    return reply_in(reply.content, request)


def test_training_and_evaluation_reach_the_right_agent_through_the_wire_format():
    north, south = Agent("north"), Agent("south")
    grid = InProcessGrid({"north": north, "south": south})

    trained = ask(grid, "south", TRAIN)
    evaluated = ask(grid, "south", EVALUATE)

    assert trained.site == "south"
    np.testing.assert_array_equal(trained.update, 2 * CONTEXT)
    assert (evaluated.update, evaluated.metrics) == (None, {"personal_local": 0.75})
    assert not north.seen
    assert south.seen[0].experiment == EXPERIMENT
    assert south.seen[0].global_context is not CONTEXT


NOT_APPROVED = RefusedError(code="NOT_APPROVED", message="Not on the list (rule experiments).", advice="Ask.")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (NOT_APPROVED, "NOT_APPROVED", True),
        (DataError(code="BROKEN_IMAGE", message="patient-17.png is broken."), "BROKEN_IMAGE", False),
        (ZeroDivisionError("patient-17.png"), "INTERNAL", False),
    ],
)
def test_a_sites_error_becomes_its_refusal_without_names_of_its_files(error, code, told, caplog):
    grid = InProcessGrid({"north": Agent("north", error)})

    answer = ask(grid, "north", TRAIN)

    assert isinstance(answer, Refusal)
    assert answer.code == code
    assert ("rule experiments" in answer.message) == told
    assert "patient" not in repr(answer)
    assert ("ZeroDivisionError" in caplog.text) == (code == "INTERNAL")  # a bug of ours is not swallowed


def test_replies_come_once_and_only_for_what_is_asked():
    grid = InProcessGrid({"north": Agent("north"), "south": Agent("south")})
    messages = [grid.create_message(request_content(TRAIN), "train", node, "2") for node in (1, 2)]
    first, second = grid.push_messages(messages)

    (reply,) = grid.pull_messages([second, "unknown"])

    assert reply.metadata.reply_to_message_id == second
    assert grid.pull_messages([second]) == []
    assert len(grid.pull_messages([first, second])) == 1
    assert list(grid.get_node_ids()) == [1, 2]
    with pytest.raises(RuntimeError):
        _ = grid.run
