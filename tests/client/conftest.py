"""A real site on disk: a few images, and one round learned with the embedded model."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dpfpl_client.agent.build import build_agent
from dpfpl_client.site.settings import load_site
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, RoundSettings
from dpfpl_common.wire.payloads import EvaluateRequest, TrainRequest

POLICY = """
experiments = ["*"]
max_epsilon_per_experiment = 50.0
max_epsilon_lifetime = 100.0
metrics = "exact"
"""


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Two classes: four images each to train on, two to test with."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name, level in (("bright", 180), ("dark", 20)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = (level + random.integers(0, 60, (24, 24, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def write_site(folder, images):
    folder.mkdir(exist_ok=True)
    (folder / "site.toml").write_text(
        f'name = "north"\nregistry = "registry"\n[data]\nsource = "folder"\npath = "{images}"\npublic = true\n'
    )
    (folder / "policy.toml").write_text(POLICY)
    (folder / "policy.toml").chmod(0o640)
    return folder / "site.toml"


@pytest.fixture
def fresh_site(tmp_path, image_folder):
    """The site.toml of a site that never took part in anything."""
    return write_site(tmp_path / "site", image_folder)


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory, image_folder):
    torch.set_num_threads(1)
    site_file = write_site(tmp_path_factory.mktemp("trained"), image_folder)
    built = build_agent(load_site(site_file))
    experiment = Experiment(
        name="pilot",
        classes=built.class_names,
        sites=("north", "south"),
        model=ModelSettings(width=built.backbone.width, fingerprint=built.backbone.fingerprint),
        prompt=PromptSettings(num_context=4, rank=2),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=2.0, nominal_site_size=8),
        rounds=RoundSettings(number=1, local_steps=2),
    )
    start = np.zeros(experiment.context_shape, "<f4")
    final = np.random.default_rng(1).normal(0, 0.02, experiment.context_shape).astype("<f4")
    built.agent.train(TrainRequest(experiment, 1, start, evaluate=False))
    built.agent.evaluate(EvaluateRequest(experiment, 1, final))
    built.lock.release()
    return site_file.parent


@pytest.fixture
def trained_site(trained_once, tmp_path):
    """The site.toml of a site that learned a prompt in the experiment ``pilot``; a copy, to be damaged freely."""
    shutil.copytree(trained_once, tmp_path / "trained")
    return tmp_path / "trained" / "site.toml"


@pytest.fixture
def command(monkeypatch, capsys):
    """Types ``dpfpl-client ...``; gives exit code, output and error output."""
    from dpfpl_client.cli.main import main

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["dpfpl-client", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run
