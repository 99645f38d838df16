"""Accuracy counts right answers among all the experiment's classes."""

import pytest
import torch

from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.class_scorer import agreement, class_probabilities


@pytest.fixture
def setting(backbone):
    tokens = backbone.class_tokens(["cat", "dog", "tree"], 4)
    context = backbone.text_embeddings("a photo of a", 4)
    return backbone, context, tokens, backbone.text_features(context, tokens).detach()


def test_probabilities_are_the_softmax_of_scaled_cosines(setting):
    backbone, context, tokens, text = setting
    images = torch.nn.functional.normalize(torch.randn(5, backbone.feature_size), dim=1)
    expected = torch.softmax(backbone.logit_scale * images @ text.T, dim=1)
    assert torch.allclose(class_probabilities(backbone, context, tokens, images), expected, atol=1e-6)


def test_accuracy_is_the_share_of_right_answers(setting):
    *_, text = setting
    images = text[[0, 1, 2, 0]]
    for labels, expected in (([0, 1, 2, 0], 1.0), ([0, 1, 2, 1], 0.75), ([1, 2, 0, 1], 0.0)):
        assert float(agreement(text, LabelledFeatures(images, torch.tensor(labels))).mean()) == expected


def test_no_images_have_no_accuracy(setting):
    *_, text = setting
    empty = LabelledFeatures(text[:0], torch.zeros(0, dtype=torch.long))
    assert len(empty) == 0
    assert len(agreement(text, empty)) == 0
