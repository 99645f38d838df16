"""A tiny site around the real model and learner: random image features of three classes, twelve to train on."""

import dataclasses

import numpy as np
import pytest
import torch

from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.pace import Pace
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.learning.learner import PromptLearner, SiteFeatures
from dpfpl_client.learning.step import SystemRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, RoundSettings
from dpfpl_common.policy import Policy
from dpfpl_common.wire.payloads import TrainRequest

CLASSES = ("cat", "dog", "bird")


@pytest.fixture(scope="session")
def backbone():
    torch.set_num_threads(1)
    return load_backbone("embedded")


@pytest.fixture(scope="session")
def features(backbone):
    def images(count, seed):
        generator = torch.Generator().manual_seed(seed)
        vectors = torch.randn((count, backbone.feature_size), generator=generator)
        return LabelledFeatures(torch.nn.functional.normalize(vectors, dim=1), torch.arange(count) % len(CLASSES))

    return SiteFeatures(images(12, 0), images(7, 1), images(6, 2), CLASSES)


@pytest.fixture(scope="session")
def experiment(backbone):
    return Experiment(
        name="pilot",
        classes=CLASSES,
        sites=("north", "south"),
        model=ModelSettings(width=backbone.width),
        prompt=PromptSettings(num_context=4, rank=2),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=4.0, nominal_site_size=12),
        rounds=RoundSettings(number=3, local_steps=1),
    )


@pytest.fixture(scope="session")
def changed():
    """The same experiment with other settings: ``changed(experiment, name="b", rounds={"number": 5})``."""

    def change(experiment, **changes):
        parts = {
            key: dataclasses.replace(getattr(experiment, key), **value) if isinstance(value, dict) else value
            for key, value in changes.items()
        }
        return dataclasses.replace(experiment, **parts)

    return change


@pytest.fixture(scope="session")
def request_for(experiment):
    def request(number=1, of=experiment, context=None, evaluate=False):
        return TrainRequest(of, number, np.zeros(of.context_shape, "<f4") if context is None else context, evaluate)

    return request


GENEROUS = Policy(experiments=("*",), max_epsilon_per_experiment=50.0, max_epsilon_lifetime=100.0)


class SiteOnDisk:
    """A state folder, and the agents that live on it one after the other, with real randomness."""

    def __init__(self, folder, backbone, features):
        self.folder, self.backbone, self.features = folder, backbone, features
        self.start()

    def start(self, policy=GENEROUS, features=None, name="north", *, public=False):
        """A new agent on the same folder, as after a restart."""
        self.ledger, self.store = Ledger(self.folder / "ledger.sqlite"), DiskStore(self.folder)
        self.agent = SiteAgent(
            name,
            self.backbone,
            features or self.features,
            policy,
            self.ledger,
            self.store,
            SystemRandomness(),
            public=public,
        )
        return self.agent

    @property
    def charges(self):
        """What the file says, through a connection of its own."""
        ledger = Ledger(self.folder / "ledger.sqlite")
        try:
            return ledger.charges()
        finally:
            ledger.close()

    @property
    def released(self):
        return sum(len(self.store.rounds(name)) for name in self.store.experiments())


@pytest.fixture(scope="session")
def site_in(backbone, features):
    """Makes a site in a folder."""
    return lambda folder: SiteOnDisk(folder, backbone, features)


@pytest.fixture
def site(tmp_path, site_in):
    return site_in(tmp_path)


@pytest.fixture(autouse=True)
def unpaced(monkeypatch, request):
    """Replies leave as soon as they are ready, without a rehearsal, but in tests of that (NI5)."""
    if "NI5" not in request.node.name:
        monkeypatch.setattr(Pace, "rehearse", lambda *_: None)
        monkeypatch.setattr(Pace, "due", lambda self, *_: (self._started, False))
        monkeypatch.setattr(Pace, "slot", lambda self, _: self._started)


@pytest.fixture
def computed(monkeypatch):
    """The rounds that the learner really computed, and the evaluations."""
    calls = []

    def spy(name):
        real = getattr(PromptLearner, name)

        def call(self, *args, **more):
            calls.append(name)
            return real(self, *args, **more)

        monkeypatch.setattr(PromptLearner, name, call)

    spy("train_round")
    spy("evaluate")
    return calls
