"""U9: a free-rider is flagged where it can be told from honest sites, and nobody is where it cannot."""

import numpy as np
import pytest
import server_samples

from dpfpl_bench.simulation.in_process import InProcessGrid
from dpfpl_common.privacy_plan import site_noise_stddev
from dpfpl_common.wire.payloads import SiteReply
from dpfpl_server.federation.replies import LARGEST, TOO_LITTLE_NOISE, ZERO_SIGNAL, signal_score, verdicts
from dpfpl_server.federation.rounds import DPFPLStrategy

SITES = ("east", "north", "south", "west")


def make_experiment(**privacy):
    settings = {"noise_multiplier": 2.0, "sample_rate": 0.5, "nominal_site_size": 100, "clipping_norm": 0.1}
    return server_samples.make_experiment(SITES, width=64, rounds={"number": 5, "local_steps": 4}, **settings | privacy)


def noise_stddev(experiment):
    """Of one coordinate of an update: a mean over the local steps of noised sums, divided by the public batch size."""
    privacy = experiment.privacy
    divisor = privacy.sample_rate * privacy.nominal_site_size
    return site_noise_stddev(experiment) / divisor / np.sqrt(experiment.rounds.local_steps)


class Site:
    """Adds ``signal`` times a direction of norm 1 to its share of the noise."""

    def __init__(self, name, signal, noise=1.0):
        self.name, self.signal, self.noise = name, signal, noise
        self.rng = np.random.default_rng(sum(name.encode()))

    def train(self, request):
        experiment = request.experiment
        direction = np.ones(experiment.context_shape) / np.sqrt(np.prod(experiment.context_shape))
        update = self.signal * direction
        update = update + self.noise * self.rng.normal(0, noise_stddev(experiment), experiment.context_shape)
        return SiteReply(self.name, request.round, update.astype("<f4"), {})

    def evaluate(self, request):
        return SiteReply(self.name, request.round, None, {"personal_local": 0.5})


def run(experiment, **sites):
    grid = InProcessGrid({name: sites.get(name, Site(name, 0.1)) for name in SITES})
    strategy = DPFPLStrategy(experiment, grid.nodes, keys=None, site_wait_s=0.0)
    return strategy.run(grid)


def test_U9_a_site_that_sends_noise_alone_is_flagged():
    """For the operator's console alone: that the result does not tell it, NI8, is in test_result.py."""
    assert verdicts(run(make_experiment(), west=Site("west", 0.0)).history) == {"west": ZERO_SIGNAL}


def test_honest_sites_are_not_flagged():
    assert verdicts(run(make_experiment()).history) == {}


def test_U9_where_noise_drowns_every_signal_nobody_is_flagged():
    weak = {name: Site(name, 0.002) for name in SITES[:3]}
    checkpoint = run(make_experiment(noise_multiplier=50.0), west=Site("west", 0.0), **weak)
    assert verdicts(checkpoint.history) == {}


def test_U9_all_free_riders_look_alike_and_are_not_told_apart():
    assert verdicts(run(make_experiment(), **{name: Site(name, 0.0) for name in SITES}).history) == {}


def test_a_site_that_leaves_its_share_of_the_noise_out_is_flagged():
    checkpoint = run(make_experiment(), west=Site("west", 0.0, noise=0.5))
    assert verdicts(checkpoint.history) == {"west": TOO_LITTLE_NOISE}


@pytest.mark.parametrize("trust", ["distributed", "local"])
def test_the_score_of_noise_alone_is_a_standard_normal(trust):
    """Accepts the right noise level, rejects two thirds and three halves of it."""
    experiment = make_experiment(trust=trust)
    rng = np.random.default_rng(0)
    for factor, right in ((1.0, True), (2 / 3, False), (1.5, False)):
        draws = rng.normal(0, factor * noise_stddev(experiment), (400, *experiment.context_shape)).astype("<f4")
        scores = np.array([signal_score(experiment, update) for update in draws])
        assert (abs(scores.mean()) < 0.2 and 0.85 < scores.std() < 1.15) == right


def test_without_noise_only_zero_itself_is_remarkable():
    experiment = make_experiment(trust="central")
    assert signal_score(experiment, np.zeros(experiment.context_shape, "<f4")) == 0.0
    assert signal_score(experiment, np.full(experiment.context_shape, 1e-6, "<f4")) == LARGEST
