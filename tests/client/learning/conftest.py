"""The embedded model, a small site's features, and noise sources that write down what they are asked."""

import numpy as np
import pytest
import torch

from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import (
    Experiment,
    ModelSettings,
    PrivacySettings,
    PromptSettings,
    RoundSettings,
    TaskSettings,
)

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def backbone():
    return load_backbone("embedded")


@pytest.fixture(scope="session")
def double_backbone():
    """The same model in float64, to compare down to 1e-10."""
    return load_backbone("embedded", dtype=torch.float64)


class RecordingNoise:
    """Writes down every total and standard deviation; adds nothing, or answers with noise alone."""

    is_private = False

    def __init__(self, answer=None):
        self.calls = []
        self._answer = answer

    def add(self, total, noise_stddev):
        self.calls.append((np.array(total), noise_stddev))
        return np.array(total) if self._answer is None else self._answer(total, noise_stddev)


@pytest.fixture
def recording_noise():
    return RecordingNoise


@pytest.fixture
def make_experiment():
    def make(
        *, width=8, num_context=4, rank=2, method="dpfpl", classes=("cat", "dog"), local_steps=2, sites=4,
        init_text="a photo of a", task=None, **privacy,
    ):  # fmt: skip
        settings = {"noise_multiplier": 1.5, "clipping_norm": 0.3, "factor_clipping_norm": 0.2, "sample_rate": 0.5}
        return Experiment(
            name="pilot",
            classes=tuple(classes),
            sites=tuple(f"s{i}" for i in range(sites)),
            model=ModelSettings(width=width),
            prompt=PromptSettings(method=method, num_context=num_context, rank=rank, init_text=init_text),
            privacy=PrivacySettings(**{"mechanism": "per_step", **settings, "nominal_site_size": 40, **privacy}),
            rounds=RoundSettings(number=3, local_steps=local_steps),
            task=task or TaskSettings(),
        )

    return make


@pytest.fixture
def make_features():
    def make(seed, feature_size, classes, count=24):
        generator = torch.Generator().manual_seed(seed)

        def images(n):
            features = torch.nn.functional.normalize(torch.randn(n, feature_size, generator=generator), dim=1)
            return LabelledFeatures(features, torch.randint(len(classes), (n,), generator=generator))

        return SiteFeatures(images(count), images(16), images(16), tuple(classes))

    return make
