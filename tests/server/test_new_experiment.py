"""experiment.toml from a pilot, from what sites told, or from flags: what is written, plan can read."""

import json
import tomllib

import pytest
from server_samples import provisioned

from dpfpl_common.config import build, to_table
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings, SiteDescription
from dpfpl_server.runs.new import experiment_text
from dpfpl_server.sites.register import save_sites

MODEL = ModelSettings(512, "clip", "abc")


@pytest.fixture
def told(tmp_path):
    """Descriptions of two sites and of one with another model, and a pilot's folder."""
    pilot = Experiment(
        name="pilot",
        classes=("cat", "dog"),
        sites=("north", "south"),
        model=MODEL,
        privacy=PrivacySettings(
            mechanism="one_shot", trust="local", target_epsilon=2.0, noise_multiplier=3.3, nominal_site_size=372
        ),
        rounds=RoundSettings(number=7),
    )
    (tmp_path / "result.json").write_text(json.dumps({"config": to_table(pilot), "accuracy": {}}))
    for name, model, classes in (
        ("a", MODEL, ("dog",)),
        ("b", MODEL, ("cat",)),
        ("c", ModelSettings(512, "x", "d"), ()),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(to_table(SiteDescription(name, model, classes))))
    (tmp_path / "bad.json").write_text("[]")
    return tmp_path


def written(*arguments, **more):
    return build(Experiment, tomllib.loads(experiment_text("xrays-1", *arguments, **more)), "")


def test_sites_tell_model_and_classes(told):
    found = written([told / "b.json", told / "a.json"], ["b", "a"])
    assert (found.model, found.classes, found.sites) == (MODEL, ("cat", "dog"), ("a", "b"))
    assert found == Experiment(
        "xrays-1", found.classes, found.sites, MODEL, privacy=PrivacySettings(target_epsilon=8.0)
    )


def test_a_pilots_settings_are_taken_but_its_sites_and_its_noise(told):
    found = written([told], ["a", "b", "c"], epsilon=None)
    assert (found.sites, found.rounds, found.classes) == (("a", "b", "c"), RoundSettings(number=7), ("cat", "dog"))
    assert found.privacy == PrivacySettings(
        mechanism="one_shot", trust="local", target_epsilon=2.0, nominal_site_size=400
    )
    assert written([told], ["a", "b"], epsilon=1.0).privacy.target_epsilon == 1.0


@pytest.mark.parametrize(
    ("files", "more", "said"),
    [
        (["a.json", "c.json"], {}, "OTHER_MODEL"),
        (["c.json"], {}, "No class is known"),
        ([], {"classes": ["cat", "dog"]}, "The model is not known"),
        (["bad.json"], {}, "NOT_TOLD"),
        (["none.json"], {}, "FILE_UNREADABLE"),
        (["a.json"], {"epsilon": 0.0}, "target_epsilon"),
    ],
)
def test_what_is_missing_or_wrong_is_said(told, files, more, said):
    with pytest.raises(ConfigError, match=said):
        experiment_text("x", [told / name for name in files], ["a", "b"], **more)


def test_the_command_writes_what_plan_reads_and_replaces_nothing(told, dpfpl_server):
    save_sites(told, provisioned("a", "b"))

    def call(*arguments):
        code, out, err = dpfpl_server(*arguments, "--server", told)
        return code, out + err

    typed = ("new-experiment", "pets", "--from", told / "a.json", "--class", "cat", "--class", "dog")
    out = told / "experiment.toml"
    assert call(*typed, "--out", out)[0] == 0
    code, said = call("plan", out)
    assert (code, "pets: 2 sites" in said) == (0, True), said
    assert "FILE_EXISTS" in call(*typed, "--out", out)[1]
    save_sites(told, {})
    assert "NO_SITES" in call(*typed, "--out", told / "other.toml")[1]
