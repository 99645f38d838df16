"""Terms of the loss without images: they are gradients of what they say, and no longer than an example may be."""

import dataclasses

import numpy as np
import pytest
import torch

from dpfpl_client.learning.step import TEMPERATURE, contrast_cotangents, public_pull

CLASSES = ("cat", "dog", "bird")


@pytest.fixture
def pulled(backbone, make_experiment):
    def make(method="fedpgp", personal=0.3, **options):
        plain = make_experiment(width=backbone.width, classes=CLASSES, method=method, trust="local")
        experiment = dataclasses.replace(plain, prompt=dataclasses.replace(plain.prompt, **options))
        scorer = backbone.scorer(experiment)
        initial = backbone.text_embeddings("a photo of a", 4)
        shared = initial + 0.1 * torch.randn(initial.shape, generator=torch.Generator().manual_seed(1))
        whole = shared + personal * torch.randn(initial.shape, generator=torch.Generator().manual_seed(2))
        return experiment, scorer, initial, shared, whole

    return make


def test_without_options_nothing_is_computed(pulled):
    assert public_pull(*pulled()) is None


def test_retention_lowers_the_loss_on_the_shared_prompt_s_classes_and_is_bounded(pulled):
    experiment, scorer, initial, shared, whole = pulled(retention=3.0)
    pull = public_pull(experiment, scorer, initial, shared, whole)
    assert not pull.shared.any()
    assert 0 < np.linalg.norm(pull.personal) <= 3.0 * experiment.privacy.clipping_norm * (1 + 1e-9)
    texts = scorer.class_features(shared)
    step = torch.from_numpy((0.01 * pull.personal / np.linalg.norm(pull.personal)).astype(np.float32))
    losses = [-scorer.at(context).probabilities(texts).diagonal().log().mean() for context in (whole, whole - step)]
    assert losses[1] < losses[0]


def contrast(shared, personal, plain):
    positive, negative = ((shared * other).sum(dim=1) / TEMPERATURE for other in (plain, personal))
    return -(positive - torch.logaddexp(positive, negative)).mean()


def test_the_contrastive_gradient_is_that_of_the_published_term():
    rows = [
        torch.nn.functional.normalize(torch.randn((5, 7), generator=torch.Generator().manual_seed(i)).double(), dim=1)
        for i in range(3)
    ]
    leaves = [row.clone().requires_grad_(True) for row in rows[:2]]
    expected = torch.autograd.grad(contrast(*leaves, rows[2]), leaves)
    for found, known in zip(contrast_cotangents(*rows), expected, strict=True):
        torch.testing.assert_close(found, known)


def test_contrast_descends_in_both_parts_and_is_bounded(pulled):
    experiment, scorer, initial, shared, whole = pulled(contrast=2.0)
    pull = public_pull(experiment, scorer, initial, shared, whole)
    plain = scorer.class_features(initial)

    def loss(shared_step, personal_step):
        moved = shared - shared_step
        return contrast(
            scorer.class_features(moved), scorer.class_features(moved + whole - shared - personal_step), plain
        )

    nothing = torch.zeros_like(shared)
    for part, place in ((pull.shared, 0), (pull.personal, 1)):
        assert 0 < np.linalg.norm(part) <= 2.0 * experiment.privacy.clipping_norm * (1 + 1e-9)
        step = torch.from_numpy((0.02 * part / np.linalg.norm(part)).astype(np.float32))
        assert loss(*((step, nothing) if place == 0 else (nothing, step))) < loss(nothing, nothing)
