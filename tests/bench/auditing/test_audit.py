"""Attacks on a site's training: they succeed where the noise is off and stay below the claim where it is on."""

import numpy as np
import pytest
import torch

from dpfpl_bench.audit import AuditSettings, audit, victim_experiment, with_canaries
from dpfpl_client.learning.backbone import load_backbone
from dpfpl_client.learning.evaluation import LabelledFeatures
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.planning import resolve_noise

pytestmark = pytest.mark.privacy

CLASSES = ("cat", "dog", "bird")


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("embedded")


def experiment(backbone, **privacy):
    return resolve_noise(
        Experiment(
            name="audited",
            classes=CLASSES,
            sites=("a", "b", "c"),
            model=ModelSettings(width=backbone.width),
            privacy=PrivacySettings(target_epsilon=2.0, nominal_site_size=30, **privacy),
            rounds=RoundSettings(number=3, local_steps=2),
        )
    )


def images(backbone, count=60):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((count, backbone.feature_size), generator=generator)
    return LabelledFeatures(torch.nn.functional.normalize(features, dim=1), torch.arange(count) % len(CLASSES))


def test_the_victim_makes_the_same_steps_under_the_same_promise_alone(backbone):
    attacked = victim_experiment(experiment(backbone))
    assert attacked.total_steps == 6
    assert attacked.rounds.local_steps == 1
    assert attacked.sites == ("victim",)
    assert attacked.privacy.trust == "local"
    assert attacked.privacy.noise_multiplier == pytest.approx(experiment(backbone).privacy.noise_multiplier, rel=1e-3)


def test_canaries_have_wrong_labels_and_the_same_images(backbone):
    pool = images(backbone)
    canaries = with_canaries(pool, len(CLASSES), np.random.default_rng(0))
    assert not bool((canaries.labels == pool.labels).any())
    assert torch.equal(canaries.features, pool.features)


@pytest.mark.long
def test_attacks_are_alive_without_noise_and_stay_below_the_claim_with_it(backbone):
    effort = AuditSettings(canaries=40, trials=300, trainings=8, crowd=4, inversions=2)
    audited = experiment(backbone)
    findings = audit(backbone, audited, images(backbone), effort)
    by_name = {(f.attack, f.adversary, f.measure): f for f in findings}
    bounds = [f for f in findings if f.claimed_epsilon is not None]
    assert len(bounds) == 4
    assert all(f.holds for f in bounds)
    canary = by_name["one canary, one message", "operator: one message", "lower bound on epsilon"]
    assert canary.alive
    assert canary.noise_off > canary.claimed_epsilon
    found = by_name["inversion, one image, local", "operator: one message", "images found"]
    assert found.noise_off == 1.0
