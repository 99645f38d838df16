"""A model in a larger feature space is the same model, but for the coordinates that class sums have."""

import dataclasses

import numpy as np
import pytest
import torch

from dpfpl_bench.simulation.in_process import SimulatedSite
from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.class_scorer import class_probabilities, per_example_gradients
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from research.tables.privacy import lifted_backbone, lifted_features, limited

CLASSES = ("cat", "dog", "tree")


@pytest.fixture(scope="module")
def backbone():
    torch.set_num_threads(1)
    return load_backbone("embedded")


@pytest.fixture(scope="module")
def features(backbone):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(30, backbone.feature_size, generator=generator), dim=1)
    images = LabelledFeatures(vectors, torch.arange(30) % 3)
    return SiteFeatures(images, images, images, CLASSES)


def test_logits_and_gradients_are_the_originals(backbone, features):
    lifted, there = lifted_backbone(backbone, 512), lifted_features(features, 512)
    assert (lifted.feature_size, lifted.width) == (512, backbone.width)
    assert there.train.features.shape == (30, 512)
    tokens, context = backbone.class_tokens(CLASSES, 4), backbone.text_embeddings("a photo of a", 4)
    torch.testing.assert_close(
        class_probabilities(lifted, context, tokens, there.train.features),
        class_probabilities(backbone, context, tokens, features.train.features),
        rtol=1e-4,
        atol=1e-5,
    )
    ours = per_example_gradients(lifted, context, tokens, there.train.features, there.train.labels)
    theirs = per_example_gradients(backbone, context, tokens, features.train.features, features.train.labels)
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def test_only_one_shot_sees_the_dimension(backbone, features):
    lifted, there = lifted_backbone(backbone, 512), lifted_features(features, 512)
    experiment = Experiment(
        name="lift",
        classes=CLASSES,
        sites=("one",),
        model=ModelSettings(width=backbone.width),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=0.2, nominal_site_size=30),
        rounds=RoundSettings(number=1, local_steps=2),
    )
    start = np.zeros(experiment.context_shape, np.float32)

    def update(of, model, data):
        state = PersonalState.initial(of)
        return PromptLearner(model, of, data).train_round(start, state, SeededRandomness(0).for_round("one", 1))

    same = [update(experiment, model, data).update for model, data in ((backbone, features), (lifted, there))]
    np.testing.assert_allclose(*same, atol=1e-6)
    privacy = dataclasses.replace(experiment.privacy, mechanism="one_shot", trust="local")
    one_shot = dataclasses.replace(experiment, privacy=privacy)
    sums = [update(one_shot, model, data).state.class_sums for model, data in ((backbone, features), (lifted, there))]
    assert [s.shape for s in sums] == [(3, backbone.feature_size), (3, 512)]


def test_a_limited_site_keeps_so_many_images_of_every_class(features):
    site = SimulatedSite("one", features, 3)
    kept = limited(site, 4, seed=0).features
    assert np.bincount(kept.train.labels.numpy()).tolist() == [4, 4, 4]
    assert len(kept.test) == 30
    assert len(limited(site, 100, seed=0).features.train) == 30
