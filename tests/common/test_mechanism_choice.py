"""A file that leaves mechanism and trust out gets the recommended ones where they can serve; what it names, stays."""

import itertools
from typing import get_args

import pytest

from dpfpl_common.config import build
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import (
    MECHANISMS,
    Experiment,
    PrivacySettings,
    PromptSettings,
    TaskSettings,
    Trust,
    choose_mechanism,
    parse_experiment,
    with_secure,
)

BARE = {"name": "pilot", "classes": ["cat", "dog"], "sites": ["a", "b", "c"], "model": {"width": 8}}


def chosen(privacy, **parts):
    """Mechanism and trust of an experiment that must be a sound one."""
    table = {**BARE, **parts, "privacy": {"noise_multiplier": 1.0, **privacy}}
    experiment = build(Experiment, table, "pilot.toml")
    return experiment.privacy.mechanism, experiment.privacy.trust


@pytest.mark.parametrize(
    ("privacy", "parts", "expected"),
    [
        ({}, {}, ("one_shot", "local")),
        ({"trust": "local"}, {}, ("one_shot", "local")),
        ({"projection": "text"}, {}, ("one_shot", "local")),
        ({"mechanism": "one_shot"}, {}, ("one_shot", "local")),
        ({"mechanism": "per_step"}, {}, ("per_step", "distributed")),
        ({"trust": "distributed"}, {}, ("per_step", "distributed")),
        ({"trust": "central"}, {}, ("per_step", "central")),
        ({"unit": "site"}, {}, ("per_step", "distributed")),
        ({"unit": "site", "trust": "central"}, {}, ("per_step", "central")),
        ({"clipping": "separate"}, {}, ("per_step", "distributed")),
        ({"accounting": "paper"}, {}, ("per_step", "distributed")),
        ({}, {"task": {"kind": "vqa"}, "classes": []}, ("per_step", "distributed")),
        ({}, {"task": {"kind": "classify", "question": "what is it?"}}, ("per_step", "distributed")),
        ({}, {"prompt": {"retention": 1.0}}, ("per_step", "distributed")),
        ({}, {"prompt": {"method": "fedpgp", "contrast": 1.0}}, ("per_step", "distributed")),
    ],
    ids=str,
)
def test_one_release_where_no_setting_rules_it_out_else_noise_at_every_step(privacy, parts, expected):
    assert chosen(privacy, **parts) == expected


@pytest.mark.parametrize(("mechanism", "trust"), list(itertools.product(MECHANISMS, get_args(Trust))))
def test_what_is_named_is_never_replaced(mechanism, trust):
    """Not even where it has no sound analysis: then it is refused."""
    named = {"mechanism": mechanism, "trust": trust}
    if (mechanism, trust) in {("one_shot", "distributed"), ("one_shot", "central"), ("per_step", "secure")}:
        with pytest.raises(ConfigError) as caught:
            chosen(named)
        assert caught.value.code == "NO_SOUND_ANALYSIS"
    else:
        assert chosen(named) == (mechanism, trust)


def test_the_choice_says_why():
    asked, prompt, task = PrivacySettings(noise_multiplier=1.0), PromptSettings(), TaskSettings()
    assert "one charge" in choose_mechanism(asked, prompt, task).reason
    assert "class features" in choose_mechanism(asked, prompt, task, served=("per_step",)).reason
    assert choose_mechanism(asked, prompt, task, served=("per_step",)).mechanism == "per_step"
    assert "vqa" in choose_mechanism(asked, prompt, TaskSettings(kind="vqa")).reason
    assert "retention" in choose_mechanism(asked, PromptSettings(retention=1.0), task).reason
    named = PrivacySettings(mechanism="per_step", noise_multiplier=1.0)
    assert "names it" in choose_mechanism(named, prompt, task).reason


@pytest.mark.parametrize(
    ("parts", "enrolled", "trust", "why"),
    [
        ({}, "abc", "secure", "all 3 sites enrolled"),
        ({}, "abcd", "secure", "all 3 sites enrolled"),
        ({}, "ac", "local", "1 of 3 sites enrolled no keys of their own, b among them"),
        ({"sites": ["a", "b"]}, "ab", "local", "3 to 2000 sites"),
        ({"prompt": {"evidence": False}}, "abc", "local", "prompt.evidence true"),
        ({"rounds": {"number": 1}}, "abc", "local", "two rounds"),
        ({"aggregation": {"rule": "median"}}, "abc", "local", "median"),
        ({"prompt": {"retention": 1.0}}, "abc", "distributed", "per_step"),
    ],
    ids=str,
)
def test_secure_is_taken_where_every_site_enrolled_and_a_sum_can_be_made(parts, enrolled, trust, why):
    table = {**BARE, "privacy": {"noise_multiplier": 1.0}, **parts}
    found, reason = with_secure(build(Experiment, table, "pilot.toml"), set(enrolled))
    assert (found.privacy.trust, why in reason) == (trust, True), reason


@pytest.mark.parametrize("unit", ["example", "site"])
def test_what_is_rounded_at_each_site_is_not_summed_in_secret_and_it_says_what_to_use(unit):
    asked = {"mechanism": "per_step", "trust": "secure", "unit": unit, "noise_multiplier": 1.0}
    with pytest.raises(ConfigError, match="rounded at each site") as refusal:
        build(Experiment, {**BARE, "privacy": asked}, "pilot.toml")
    assert "for secure trust the mechanism to one_shot" in refusal.value.advice
    assert "distributed to a larger one" in refusal.value.advice


def test_what_crosses_the_wire_says_both_and_is_not_filled_in():
    experiment = build(Experiment, {**BARE, "privacy": {"noise_multiplier": 1}}, "pilot.toml")
    assert '"mechanism":"one_shot"' in experiment.to_json()
    assert '"trust":"local"' in experiment.to_json()
    assert parse_experiment(experiment.to_json()) == experiment
