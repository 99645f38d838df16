"""The reply of a whole site, as it goes onto the wire: every float of it is bounded, and no other site is in it."""

import dataclasses

import numpy as np
import pytest
import torch

from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.store import MemoryStore
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.learning.step import Randomness, SeededRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import METHODS, Experiment, ModelSettings, PrivacySettings, PromptSettings, RoundSettings
from dpfpl_common.wire.codec import encode_reply
from dpfpl_common.wire.payloads import TrainRequest

pytestmark = pytest.mark.privacy

CLASSES = ("cat", "dog", "bird")


class Everybody:
    def draw(self, count, sample_rate):
        return np.arange(count)


class Shown:
    """Randomness that hides nothing: everybody joins, and the noise is zero, asked for all the same."""

    is_private = False

    def __init__(self):
        self.noised = 0

    def for_round(self, site, round_number):
        return Randomness(self, Everybody(), np.random.default_rng(0))

    def add(self, total, noise_stddev):
        self.noised += 1
        return np.array(total)


@pytest.fixture(scope="module")
def backbone():
    torch.set_num_threads(1)
    return load_backbone("embedded")


def experiment_of(backbone, method, trust):
    return Experiment(
        name="pilot",
        classes=CLASSES,
        sites=("north", "south"),
        model=ModelSettings(width=backbone.width),
        prompt=PromptSettings(method=method, rank=2),
        privacy=PrivacySettings(
            mechanism="per_step",
            trust=trust,
            noise_multiplier=1.0,
            clipping_norm=0.05,
            nominal_site_size=20,
            sample_rate=0.5,
        ),
        rounds=RoundSettings(number=3, local_steps=1),
    )


def images(backbone, count, seed, canary=1.0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(count, backbone.feature_size, generator=generator), dim=1)
    features[0] *= canary
    return LabelledFeatures(features, torch.arange(count) % len(CLASSES))


def site(backbone, name, train, randomness):
    nothing = LabelledFeatures(train.features[:0], train.labels[:0])
    features = SiteFeatures(train, nothing, nothing, CLASSES)
    return SiteAgent(name, backbone, features, None, Ledger(None), MemoryStore(), randomness)


def request(experiment, number=1):
    return TrainRequest(experiment, number, np.zeros(experiment.context_shape, "<f4"), evaluate=False)


@pytest.mark.parametrize("canary", [1.0, 1e6, float("nan")])
@pytest.mark.parametrize("trust", ["distributed", "central", "local"])
@pytest.mark.parametrize("method", METHODS)
def test_P10_every_float_of_the_reply_is_within_the_sensitivity(backbone, method, trust, canary):
    """With and without one image: all that differs between the two messages, together, is at most C / (q n)."""
    experiment = experiment_of(backbone, method, trust)
    train = images(backbone, 9, seed=1, canary=canary)
    without = LabelledFeatures(train.features[1:], train.labels[1:])
    floats, others = [], []
    for data in (train, without):
        sent = request(experiment)
        message = encode_reply(site(backbone, "north", data, Shown()).train(sent), sent)
        update = message.reply.update
        assert (update.rows, update.columns) == experiment.context_shape
        assert not message.reply.metrics, "nothing but the update is computed"
        assert not message.reply.HasField("evidence"), "nothing but the update is computed"
        floats.append(np.frombuffer(update.data, "<f4").astype(np.float64))
        message.reply.ClearField("update")
        others.append(message.SerializeToString(deterministic=True))
    assert others[0] == others[1], "no other field depends on the data"
    privacy = experiment.privacy
    allowed = privacy.clipping_norm / (privacy.sample_rate * privacy.nominal_site_size)
    assert np.all(np.isfinite(floats))
    apart = np.linalg.norm(floats[0] - floats[1])
    assert apart <= allowed * (1 + 1e-4)
    if canary == 1.0:
        assert apart > allowed / 4, "the image does matter"


@pytest.mark.parametrize("mechanism", [{}, {"mechanism": "one_shot", "trust": "local", "noise_multiplier": 0.2}])
@pytest.mark.parametrize("method", METHODS)
def test_isolation_another_sites_images_change_no_bit_of_this_sites_updates(backbone, method, mechanism):
    """Two agents around one model take turns; given the same global prompts, one is blind to the other's data."""
    experiment = experiment_of(backbone, method, "distributed")
    experiment = dataclasses.replace(experiment, privacy=dataclasses.replace(experiment.privacy, **mechanism))
    updates = []
    for other_seed in (2, 3):
        north = site(backbone, "north", images(backbone, 30, seed=1), SeededRandomness(0))
        south = site(backbone, "south", images(backbone, 30, seed=other_seed), SeededRandomness(0))
        turns = [(south.train(request(experiment, n)), north.train(request(experiment, n))) for n in (1, 2, 3)]
        updates.append([mine.update.tobytes() for _, mine in turns])
        other = turns[0][0].update.tobytes()
    assert updates[0] == updates[1]
    assert other not in updates[0]
