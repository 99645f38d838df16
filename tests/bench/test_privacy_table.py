"""The tables of docs/results/accuracy.md: every number comes from a run that is kept beside it and can be repeated."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from featured_sites import drawn, experiment_of

from dpfpl_bench.simulation.in_process import SimulatedSite
from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.class_scorer import class_probabilities, per_example_gradients
from research.tables import privacy as privacy_runs
from research.tables.privacy import (
    TABLES,
    PrivacyRun,
    done,
    lifted_backbone,
    lifted_features,
    limited,
    markdown,
    runs_of,
    settings_of,
    simulated,
    with_tables,
)

CLASSES = ("cat", "dog", "tree")
DOCS = Path(__file__).resolve().parents[2] / "docs/results"
KEPT = json.loads((DOCS / "privacy-runs.json").read_text(encoding="utf-8"))


def test_the_document_shows_the_kept_runs_and_no_others():
    document = (DOCS / "accuracy.md").read_text(encoding="utf-8")
    assert [document.count(f"<!-- table: {name} -->") for name in TABLES] == [1] * len(TABLES)
    assert with_tables(document, KEPT) == document, "run python -m research.tables.privacy --docs docs/results"
    runs = {run.name for run in runs_of(tuple(TABLES))}
    assert len(runs) == len(runs_of(tuple(TABLES))), "two runs of one name"
    assert {name.split()[0] for name in KEPT} <= runs


@pytest.mark.parametrize(
    "run",
    [
        PrivacyRun("dpfpl", "one_shot", "local", epsilon=2.0, per_class=30),
        PrivacyRun("fedpgp", "one_shot", "local", "text", epsilon=1.0),
        PrivacyRun("dpfpl", "per_step", "distributed", epsilon=8.0, per_class=5),
    ],
    ids=lambda run: run.name,
)
def test_a_kept_run_can_be_made_again(run):
    """On another processor the last bits differ, and after forty steps a few images of a thousand with them."""
    torch.set_num_threads(1)
    again = simulated(run)["accuracy"]
    assert [100 * again["local"], 100 * again["neighbour"]] == pytest.approx(KEPT[run.name], abs=1.0)


def test_a_row_is_of_all_seeds():
    everything = {run.name: [90.0, 80.0 + run.seed] for run in runs_of(["ranks"])}
    lines = markdown("ranks", everything).splitlines()
    assert len(lines) == 2 + len(TABLES["ranks"].rows)
    assert all(line.count("90.0 ± 0.0 / 81.0 ± 1.0") == 6 for line in lines[2:])
    assert all("| 3 | 90.0" in line for line in lines[2:])


def test_what_a_run_is_reaches_its_settings():
    run = PrivacyRun("fedotp", "one_shot", "local", "text", epsilon=4.0, rank=3)
    settings = settings_of(run)
    prompt, privacy = settings.prompt, settings.privacy
    assert (prompt.method, privacy.mechanism, privacy.trust, privacy.projection) == (
        "fedotp", "one_shot", "local", "text",
    )  # fmt: skip
    assert (privacy.target_epsilon, privacy.noise_multiplier, prompt.rank) == (4.0, None, 3)
    assert PrivacyRun("dpfpl", "per_step", "central").stands_for.trust == "distributed"
    assert PrivacyRun("dpfpl", "per_step", "central", epsilon=1.0).stands_for.trust == "central"


def test_a_run_is_made_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(privacy_runs, "simulated", lambda run: made.append(run) or {"accuracy": {}})
    run = PrivacyRun("dpfpl", "per_step", "local")
    assert done(run, tmp_path) == done(run, tmp_path) == {"accuracy": {}}
    assert made == [run]


# A model in a larger feature space is the same model, but for the coordinates that class sums have.


CLASSES = ("cat", "dog", "tree")


@pytest.fixture(scope="module")
def features(backbone):
    images = drawn(backbone.feature_size, np.arange(30) % 3, 0)
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
    experiment = experiment_of(
        backbone, CLASSES, ["one"], rounds=1, local_steps=2, noise_multiplier=0.2, nominal_site_size=30
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
