"""The flags of ``dpfpl-bench run`` become the experiment that they name."""

import dataclasses

import pytest
import torch

from dpfpl_bench.simulate.settings import BenchSettings, build_experiment
from dpfpl_bench.simulate.simulation import SimulatedSite
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import ConfigError
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy_plan import planned_events

SETTINGS = BenchSettings(
    name="bench",
    method="dpfpl",
    rank=2,
    mechanism="per_step",
    trust="distributed",
    epsilon=3.0,
    clipping="joint",
    accounting="honest",
    delta=1e-6,
    rounds=5,
    local_steps=2,
    sample_rate=0.2,
    clipping_norm=0.3,
    learning_rate=0.01,
    personal_learning_rate=0.03,
    init_text="a photo of a",
    num_context=0,
    evaluate_every=2,
)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("embedded")


def make_sites(*sizes):
    def part(count):
        return LabelledFeatures(torch.zeros((count, 4)), torch.zeros(count, dtype=torch.long))

    return [
        SimulatedSite(f"site-{k}", SiteFeatures(part(size), part(1), part(1), ("cat", "dog")), 1)
        for k, size in enumerate(sizes)
    ]


def build(backbone, sizes=(10, 21), **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return build_experiment(settings, backbone, "embedded", ("cat", "dog"), make_sites(*sizes))


def test_every_flag_arrives(backbone):
    experiment = build(backbone)

    assert (experiment.classes, experiment.sites) == (("cat", "dog"), ("site-0", "site-1"))
    assert (experiment.model.width, experiment.model.fingerprint) == (backbone.width, backbone.fingerprint)
    assert (experiment.prompt.method, experiment.prompt.rank) == ("dpfpl", 2)
    assert experiment.prompt.init_text == "a photo of a"
    assert experiment.optimizer.global_learning_rate == 0.01
    assert experiment.optimizer.personal_learning_rate == 0.03
    privacy = experiment.privacy
    assert (privacy.mechanism, privacy.trust, privacy.target_delta) == ("per_step", "distributed", 1e-6)
    assert (privacy.clipping_norm, privacy.sample_rate) == (0.3, 0.2)
    assert privacy.nominal_site_size == 16  # round half to even of 15.5
    assert (experiment.rounds.number, experiment.rounds.local_steps, experiment.rounds.evaluate_every) == (5, 2, 2)


def test_a_model_without_class_features_gets_the_mechanism_that_serves_it(backbone):
    left_out = {"mechanism": "", "trust": ""}
    privacy = build(backbone, **left_out).privacy
    assert (privacy.mechanism, privacy.trust) == ("one_shot", "local")
    generative = load_backbone("embedded-vlm")
    privacy = build(generative, num_context=4, init_text="answer", **left_out).privacy
    assert (privacy.mechanism, privacy.trust) == ("per_step", "distributed")
    named = build(generative, num_context=4, init_text="answer", mechanism="one_shot", trust="local")
    assert named.privacy.mechanism == "one_shot"  # and refused by the model, which says what to write


@pytest.mark.privacy
@pytest.mark.parametrize("target", [1.0, 3.0])
def test_the_noise_is_calibrated_to_the_target(backbone, target):
    experiment = build(backbone, epsilon=target)
    assert 0.98 * target < epsilon(planned_events(experiment)[:1], 1e-6) <= target


@pytest.mark.privacy
def test_no_target_means_no_noise_and_no_claim(backbone):
    experiment = build(backbone, epsilon=None)
    assert experiment.privacy.noise_multiplier == 0.0
    assert not experiment.is_private


def test_the_context_is_as_long_as_the_text_unless_said(backbone):
    assert build(backbone).prompt.num_context == backbone.num_tokens("a photo of a")
    assert build(backbone, num_context=12).prompt.num_context == 12
    assert build(backbone, init_text="").prompt.num_context == 16


def test_sites_without_images_do_not_make_the_divisor_zero(backbone):
    assert build(backbone, sizes=(0, 0)).privacy.nominal_site_size == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "x"},
        {"trust": "x"},
        {"mechanism": "x"},
        {"rank": 0},
        {"rank": 99},
        {"epsilon": 0.0},
        {"epsilon": float("nan")},
        {"delta": 0.0},
        {"sample_rate": 1.5},
        {"clipping_norm": -1.0},
        {"learning_rate": float("inf")},
        {"num_context": -1},
    ],
)
def test_impossible_values_are_refused(backbone, wrong):
    with pytest.raises(ConfigError) as caught:
        build(backbone, **wrong)
    assert caught.value.code == "IMPOSSIBLE_VALUE"
