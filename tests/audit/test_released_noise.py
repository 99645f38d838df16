"""What a site really releases carries the noise it is charged for: every block, every round, also after a restart.

The site's training images are of no consequence here: their clipped sum is at most a ten-thousandth of the noise, so
each released tensor, divided by its standard deviation, must be standard normal.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.learning.methods import build_method
from dpfpl_client.learning.step import SystemRandomness, noised_step
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import METHODS, Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.privacy.noise import SystemNoise
from dpfpl_common.privacy_plan import BLOCKS, site_noise_stddev
from dpfpl_common.wire.payloads import TrainRequest

pytestmark = pytest.mark.privacy

ALPHA = 1e-5
ROUNDS = 30
NOISE_MULTIPLIER = 200.0


def experiment(trust: str = "distributed", mechanism: str = "per_step") -> Experiment:
    return Experiment(
        name="noise",
        classes=("circle", "square"),
        sites=("one", "two", "three", "four"),
        model=ModelSettings(width=128),
        privacy=PrivacySettings(
            mechanism=mechanism, trust=trust, noise_multiplier=NOISE_MULTIPLIER, sample_rate=0.01, nominal_site_size=100
        ),
        rounds=RoundSettings(number=ROUNDS, local_steps=1),
    )


def agent(folder) -> SiteAgent:
    backbone = load_backbone("embedded")
    features = torch.nn.functional.normalize(torch.ones(2, backbone.feature_size), dim=1)
    images = LabelledFeatures(features, torch.tensor([0, 1]))
    nothing = LabelledFeatures(features[:0], torch.zeros(0, dtype=torch.long))
    site = SiteFeatures(images, nothing, nothing, ("circle", "square"))
    ledger, store = Ledger(folder / "ledger.sqlite"), DiskStore(folder)
    return SiteAgent("one", backbone, site, None, ledger, store, SystemRandomness())


def accept_standard_normal(values: np.ndarray) -> None:
    """Chi-square on the energy and on 20 equal bins; both reject 2/3 and 3/2 of the right standard deviation."""
    assert energy_accepts(values)
    assert bins_accept(values)
    for wrong in (2 / 3, 3 / 2):
        assert not energy_accepts(values * wrong), "the test has no power"
        assert not bins_accept(values * wrong), "the test has no power"


def energy_accepts(values: np.ndarray) -> bool:
    energy, n = float(np.sum(values**2)), values.size
    return bool(stats.chi2.ppf(ALPHA, n) < energy < stats.chi2.isf(ALPHA, n))


def bins_accept(values: np.ndarray) -> bool:
    counts, _ = np.histogram(stats.norm.cdf(values), bins=20, range=(0, 1))
    return bool(stats.chisquare(counts).pvalue > ALPHA)


def uncorrelated(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(stats.pearsonr(a.ravel(), b.ravel()).pvalue > ALPHA)


@pytest.mark.parametrize("trust", ["distributed", "local"])
def test_updates_over_rounds_and_a_restart_are_the_charged_noise(tmp_path, trust):
    torch.set_num_threads(1)
    planned = experiment(trust)
    divisor = planned.privacy.sample_rate * planned.privacy.nominal_site_size
    context = np.zeros(planned.context_shape, dtype=np.float32)
    updates = []
    site = agent(tmp_path)
    for number in range(1, ROUNDS + 1):
        if number == ROUNDS // 2:
            site = agent(tmp_path)  # as after kill -9
        update = site.train(TrainRequest(planned, number, context, evaluate=False)).update
        assert update is not None
        updates.append(update.astype(np.float64) * divisor / site_noise_stddev(planned))
    accept_standard_normal(np.stack(updates))
    assert all(uncorrelated(a, b) for a, b in itertools.pairwise(updates)), "noise was used again"
    assert len({update.tobytes() for update in updates}) == ROUNDS


class Watched:
    """The system's noise, with every release kept."""

    is_private = True

    def __init__(self) -> None:
        self.released: list[np.ndarray] = []

    def add(self, total: np.ndarray, noise_stddev: float) -> np.ndarray:
        self.released.append(SystemNoise().add(total, noise_stddev))
        return self.released[-1]


@pytest.mark.parametrize("method", METHODS)
def test_every_block_of_every_step_has_the_charged_noise_of_its_own(method):
    planned = experiment()
    privacy = planned.privacy
    built = build_method(method, planned.context_shape, 4)
    begun = built.begin(np.random.default_rng(0))
    directions = built.directions(np.zeros(planned.context_shape) if begun is None else begun, np.random.default_rng(0))
    noise = Watched()
    for _ in range(60):
        noised_step(planned, directions, np.zeros((0, *planned.context_shape)), noise)
    count = BLOCKS[method]
    factor_stddev = NOISE_MULTIPLIER * privacy.factor_norm
    stddevs = [site_noise_stddev(planned), *[factor_stddev] * (count - 1)]
    assert len(noise.released) == 60 * count
    blocks = [np.stack(noise.released[b::count]) / stddev for b, stddev in enumerate(stddevs)]
    for block in blocks:
        accept_standard_normal(block)
    first = [block.reshape(60, -1)[:, :16] for block in blocks]
    assert all(uncorrelated(a, b) for a, b in itertools.combinations(first, 2)), "blocks share their noise"


def test_class_sums_are_the_charged_noise(tmp_path):
    planned = experiment("local", "one_shot")
    site = agent(tmp_path)
    site.train(TrainRequest(planned, 1, np.zeros(planned.context_shape, dtype=np.float32), evaluate=False))
    record = DiskStore(tmp_path).read("noise", 1)
    assert record is not None
    assert record.state.class_sums is not None
    sums = record.state.class_sums / NOISE_MULTIPLIER
    assert energy_accepts(sums)
    assert not energy_accepts(sums * 2 / 3)
    assert not energy_accepts(sums * 3 / 2)
    charges = Ledger(tmp_path / "ledger.sqlite").charges()
    assert [(c.events[0].steps, c.events[0].noise_multiplier) for c in charges] == [(1, NOISE_MULTIPLIER)]
    site.train(TrainRequest(planned, 2, np.zeros(planned.context_shape, dtype=np.float32), evaluate=False))
    assert [c.events[0].steps for c in Ledger(tmp_path / "ledger.sqlite").charges()] == [1, 0]
