"""Robust rules do what they say, as Flower's own do, and only where the noise of one message is enough."""

import itertools

import numpy as np
import pytest
import server_samples
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg, Krum
from server_samples import metadata

from dpfpl_bench.simulation.in_process import InProcessGrid
from dpfpl_common.errors import RoundError
from dpfpl_common.privacy.noise import SystemNoise
from dpfpl_common.wire.payloads import SiteReply
from dpfpl_server.federation import aggregation
from dpfpl_server.federation.aggregation import Updates, coordinate_median, krum, trimmed_mean
from dpfpl_server.federation.rounds import DPFPLStrategy

UPDATES = [np.random.default_rng(seed).normal(size=(4, 8)).astype("<f4") for seed in range(5)]


def make_experiment(rule):
    return server_samples.make_experiment(tuple("abcde"), trust="local", aggregation={"rule": rule, "trim": 1})


def aggregate(experiment, updates):
    return aggregation.aggregate(experiment, Updates(experiment, updates), SystemNoise())


def flowers(strategy, updates):
    """The same updates through one of Flower's own strategies."""
    replies = []
    for number, update in enumerate(updates, start=1):
        question = Message(RecordDict(), metadata=metadata(number))
        content = RecordDict({"a": ArrayRecord({"x": Array(update)}), "m": MetricRecord({"num-examples": 1})})
        replies.append(Message(content, reply_to=question))
    arrays, _ = strategy.aggregate_train(1, replies)
    return arrays["x"].numpy()


@pytest.mark.parametrize("count", [3, 4, 5])
def test_the_median_is_flowers(count):
    expected = flowers(FedMedian(), UPDATES[:count])
    np.testing.assert_allclose(coordinate_median(UPDATES[:count]), expected, rtol=1e-6)


def test_the_trimmed_mean_is_flowers():
    expected = flowers(FedTrimmedAvg(beta=0.2), UPDATES)  # one of five at each end
    np.testing.assert_allclose(trimmed_mean(UPDATES, 1), expected, rtol=1e-6)


@pytest.mark.parametrize(("count", "hostile"), [(5, 1), (7, 2), (9, 2)])
def test_krum_is_flowers(count, hostile):
    updates = [np.random.default_rng(seed).normal(size=(4, 8)).astype("<f4") for seed in range(count)]
    expected = flowers(Krum(num_malicious_nodes=hostile), updates)
    np.testing.assert_array_equal(krum(updates, hostile), expected)
    assert any(np.array_equal(expected, update) for update in updates)  # one site's own message


def test_krum_leaves_colluders_out_unless_they_are_more_than_it_was_told():
    rng = np.random.default_rng(0)
    honest = [(np.ones((4, 8)) + rng.normal(0, 0.1, (4, 8))).astype("<f4") for _ in range(5)]
    colluders = [np.full((4, 8), -9.0, dtype="<f4")] * 2  # at no distance from each other
    assert krum([*colluders, *honest], 2).mean() == pytest.approx(1.0, abs=0.1)
    crowd = colluders * 3
    assert krum([*crowd, *honest], 2).mean() == -9.0


def test_krum_is_not_drawn_towards_a_far_hostile_update():
    """Were all distances counted, the honest update that lies nearest to the hostile one would win."""
    updates = [np.full((4, 8), value, dtype="<f4") for value in (0.0, 1.0, 2.2, 3.3, 100.0)]
    assert krum(updates, 1).mean() == 1.0


def test_of_equals_krum_takes_the_same_one_in_any_order():
    pair = [np.full((4, 8), value, dtype="<f4") for value in (0.0, 1.0, 4.0, 5.0, 2.5)]
    chosen = {float(krum([pair[index] for index in order], 1)[0, 0]) for order in itertools.permutations(range(5))}
    assert len(chosen) == 1


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum"])
def test_U5_one_hostile_update_of_five_moves_a_robust_rule_within_the_honest_range(rule):
    hostile = np.full((4, 8), 1e5, dtype="<f4")
    honest = np.stack(UPDATES[:4])
    moved = aggregate(make_experiment(rule), [*UPDATES[:4], hostile])
    assert np.all(moved <= honest.max(axis=0) + 1e-6)
    assert np.all(moved >= honest.min(axis=0) - 1e-6)
    mean = aggregate(make_experiment("mean"), [*UPDATES[:4], hostile])
    assert np.abs(mean).min() > 1e4


def test_only_the_mean_is_added_up_as_replies_come():
    assert Updates(make_experiment("mean"), UPDATES).each is None
    assert Updates(make_experiment("median"), UPDATES).each == UPDATES


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum"])
def test_the_order_of_arrival_does_not_matter(rule):
    forwards = aggregate(make_experiment(rule), UPDATES)
    np.testing.assert_allclose(aggregate(make_experiment(rule), UPDATES[::-1]), forwards, rtol=1e-12)


def test_too_few_updates_abandon_the_round():
    with pytest.raises(RoundError):
        aggregate(make_experiment("median"), UPDATES[:4])  # the quorum
    with pytest.raises(RoundError) as caught:
        trimmed_mean(UPDATES[:2], 1)
    assert caught.value.code == "TOO_FEW_SITES"
    with pytest.raises(RoundError):
        krum(UPDATES[:4], 1)
    with pytest.raises(RoundError):
        coordinate_median([])


class Site:
    """Sends a direction that all honest sites share, with a little of its own; a hostile one sends it times -10."""

    def __init__(self, name, factor):
        self.name, self.factor = name, factor
        self.rng = np.random.default_rng(sum(name.encode()))

    def train(self, request):
        shape = request.experiment.context_shape
        update = self.factor * (np.full(shape, 0.01) + self.rng.normal(0, 0.002, shape))
        return SiteReply(self.name, request.round, update.astype("<f4"), {})

    def evaluate(self, request):
        return SiteReply(self.name, request.round, None, {})


@pytest.mark.parametrize("factor", [-1.0, -10.0])
@pytest.mark.parametrize("rule", ["mean", "median", "trimmed_mean", "krum"])
def test_U5_where_the_shared_prompt_goes_with_one_hostile_site_of_five(rule, factor):
    """The mean bears a flipped sign and not ten times it; the robust rules bear both."""
    experiment = make_experiment(rule)
    way = {}
    for hostile in (1.0, factor):
        agents = {name: Site(name, hostile if name == "a" else 1.0) for name in experiment.sites}
        grid = InProcessGrid(agents)
        way[hostile] = DPFPLStrategy(experiment, grid.nodes, keys=None, site_wait_s=0.0).run(grid).global_context
    agreement = float((way[1.0] * way[factor]).sum() / (np.linalg.norm(way[1.0]) * np.linalg.norm(way[factor])))
    if rule == "mean" and factor == -10.0:
        assert agreement < -0.9
    else:
        assert agreement > 0.9
