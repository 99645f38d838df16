"""The flags of ``dpfpl-bench run`` become the experiment that they name."""

import dataclasses

import pytest
import torch

from dpfpl_bench.simulation.in_process import SimulatedSite
from dpfpl_bench.simulation.settings import RunSettings, build_experiment
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.config import build, set_keys
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy_plan import planned_events

SETTINGS = {
    "prompt": {"rank": 2},
    "optimizer": {"global_learning_rate": 0.01, "personal_learning_rate": 0.03},
    "privacy": {
        "mechanism": "per_step",
        "target_epsilon": 3.0,
        "target_delta": 1e-6,
        "sample_rate": 0.2,
        "clipping_norm": 0.3,
    },
    "rounds": {"number": 5, "local_steps": 2, "evaluate_every": 2},
}


def make_sites(*sizes):
    def part(count):
        return LabelledFeatures(torch.zeros((count, 4)), torch.zeros(count, dtype=torch.long))

    return [
        SimulatedSite(f"site-{k}", SiteFeatures(part(size), part(1), part(1), ("cat", "dog")), 1)
        for k, size in enumerate(sizes)
    ]


def made(backbone, *changes, sizes=(10, 21)):
    """The experiment of these settings with what ``--set`` is given."""
    run = build(RunSettings, set_keys(SETTINGS, changes), "")
    return build_experiment("bench", run, backbone, ("cat", "dog"), make_sites(*sizes))


def test_every_setting_arrives(backbone):
    experiment = made(backbone)

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


def test_every_table_of_an_experiment_can_be_set(backbone):
    """A setting that experiment.toml gains is one that a run can set, without a line here."""
    experiment = made(
        backbone,
        *("prompt.personal_strength=0.5", "gradients.classes=2", "aggregation.largest_site=7", "rounds.deadline=9"),
        *("privacy.tolerated_colluders=0", "privacy.nominal_site_size=50", "optimizer.name=sgd"),
    )
    assert experiment.prompt.personal_strength == 0.5
    assert (experiment.gradients.classes, experiment.aggregation.largest_site) == (2, 7.0)
    assert (experiment.rounds.deadline, experiment.optimizer.name) == (9.0, "sgd")
    assert (experiment.privacy.tolerated_colluders, experiment.privacy.nominal_site_size) == (0, 50)
    shared = {f.name for f in dataclasses.fields(Experiment)} - {"name", "classes", "sites", "model"}
    assert shared <= {f.name for f in dataclasses.fields(RunSettings)}


def test_a_model_without_class_features_gets_the_mechanism_that_serves_it(backbone):
    privacy = made(backbone, "privacy.mechanism=auto").privacy
    assert (privacy.mechanism, privacy.trust) == ("one_shot", "local")
    generative, turn = load_backbone("embedded-vlm"), ("prompt.num_context=4", "prompt.init_text=answer")
    privacy = made(generative, "privacy.mechanism=auto", *turn).privacy
    assert (privacy.mechanism, privacy.trust) == ("per_step", "distributed")
    named = made(generative, "privacy.mechanism=one_shot", *turn)
    assert named.privacy.mechanism == "one_shot"  # and refused by the model, which says what to write


@pytest.mark.privacy
@pytest.mark.parametrize("target", [1.0, 3.0])
def test_the_noise_is_calibrated_to_the_target(backbone, target):
    experiment = made(backbone, f"privacy.target_epsilon={target}")
    assert 0.98 * target < epsilon(planned_events(experiment)[:1], 1e-6) <= target


@pytest.mark.privacy
def test_no_noise_must_be_asked_for(backbone):
    experiment = made(backbone, "privacy.noise_multiplier=0")
    assert experiment.privacy.noise_multiplier == 0.0
    assert not experiment.is_private
    with pytest.raises(ConfigError, match="target_epsilon or noise_multiplier"):
        build_experiment("bench", RunSettings(), backbone, ("cat", "dog"), make_sites(5))


def test_the_context_is_as_long_as_the_text_unless_said(backbone):
    assert made(backbone).prompt.num_context == backbone.num_tokens("a photo of a")
    assert made(backbone, "prompt.num_context=12").prompt.num_context == 12
    assert made(backbone, "prompt.init_text=").prompt.num_context == 16


def test_sites_without_images_do_not_make_the_divisor_zero(backbone):
    assert made(backbone, sizes=(0, 0)).privacy.nominal_site_size == 1
