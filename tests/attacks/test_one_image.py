"""A7: no prompt and no class name makes one image count for more than the clipping norm."""

import time

import numpy as np
import pytest
import torch

from dpfpl_client.learning.learner import initial_context
from dpfpl_client.learning.methods import build_method
from dpfpl_client.learning.step import noised_step
from dpfpl_client.models.class_scorer import per_example_gradients
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings
from no_noise import NoNoise

pytestmark = pytest.mark.privacy

CLASSES = ("cat", "x", "!!!!", "patient 123", "a photo of a photo of a")
C, SIZE, RATE = 0.1, 12, 0.5


@pytest.fixture(scope="module")
def backbone():
    torch.set_num_threads(1)
    return load_backbone("embedded")


class Attack:
    """Prompts of an operator against one image; what the image adds to a release, in units of the clipping norm."""

    def __init__(self, backbone, seed, trust="distributed"):
        self.backbone = backbone
        self.experiment = Experiment(
            name="trap",
            classes=CLASSES,
            sites=("north", "south"),
            model=ModelSettings(width=backbone.width),
            prompt=PromptSettings(num_context=4, rank=2),
            privacy=PrivacySettings(
                mechanism="per_step",
                noise_multiplier=1.0,
                clipping_norm=C,
                nominal_site_size=SIZE,
                sample_rate=RATE,
                trust=trust,
            ),
        )
        self.random = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        image = torch.randn((1, backbone.feature_size), generator=generator)
        self.image = torch.nn.functional.normalize(image, dim=1)
        self.label = torch.tensor([int(self.random.integers(len(CLASSES)))])
        self.start = initial_context(backbone, self.experiment)
        self.tokens = backbone.class_tokens(CLASSES, self.experiment.prompt.num_context)

    def gradient(self, prompt):
        context = self.start + torch.from_numpy(prompt.astype(np.float32))
        return per_example_gradients(self.backbone, context, self.tokens, self.image, self.label).double().numpy()

    def prompt(self):
        """Any prompt that passes the wire: small, huge, one-hot, constant."""
        shape = self.experiment.context_shape
        kind = self.random.integers(4)
        scale = 10.0 ** self.random.uniform(-4, 6)
        if kind == 0:
            made = self.random.normal(0, 1, shape) * scale
        elif kind == 1:
            made = np.zeros(shape)
            made[self.random.integers(shape[0]), self.random.integers(shape[1])] = scale
        elif kind == 2:
            made = np.full(shape, scale)
        else:
            made = np.sign(self.random.normal(size=shape)) * scale
        return np.clip(made, -1e6, 1e6)

    def optimised(self, steps):
        """A prompt moved to where this one image's gradient is large, by random search."""
        best, size = self.prompt() * 1e-3, -1.0
        for _ in range(steps):
            tried = best + self.random.normal(0, 0.3, best.shape)
            found = np.linalg.norm(np.nan_to_num(self.gradient(tried)))
            if found > size:
                best, size = tried, found
        return best

    def contribution(self, prompt):
        """The release with the image less the release without it, in the metric that the noise is measured in."""
        method = build_method("dpfpl", self.experiment.context_shape, 2)
        directions = method.directions(self.random.normal(0, 1e-3, self.experiment.context_shape), self.random)
        empty = np.zeros((0, *self.experiment.context_shape))
        with_it, without = (
            noised_step(self.experiment, directions, gradients, NoNoise())
            for gradients in (self.gradient(prompt), empty)
        )
        difference = (with_it.shared - without.shared) * RATE * SIZE
        return np.linalg.norm(difference) / C


def attack(backbone, random_prompts, optimised_prompts, seed):
    worst, binding = 0.0, 0
    for number in range(random_prompts + optimised_prompts):
        one = Attack(backbone, seed + number)
        prompt = one.prompt() if number < random_prompts else one.optimised(10)
        size = one.contribution(prompt)
        assert np.isfinite(size)
        worst, binding = max(worst, size), binding + (size > 0.5)
    return worst, binding


def test_A7_no_prompt_isolates_an_image(backbone):
    worst, binding = attack(backbone, 150, 10, 0)
    assert worst <= 1.0
    assert binding > 20  # the bound is reached: without the clip it would be passed


@pytest.mark.long
def test_A7_ten_thousand_prompts(backbone, capsys):
    began = time.monotonic()
    worst, binding = attack(backbone, 10_000, 1_000, 10_000)
    with capsys.disabled():
        print(f"\n11000 prompts in {time.monotonic() - began:.0f} s: at most {worst:.9f} C, {binding} above C/2")
    assert worst <= 1.0
