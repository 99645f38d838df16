"""The learned prompt in use: what it says are probabilities, and what is missing is said."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from dpfpl_client.agent.store import DiskStore
from dpfpl_client.models.class_scorer import class_probabilities
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.use.prompt import list_prompts, load_prompt
from dpfpl_common.errors import ConfigError, ModelError, StateError


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("embedded")


@pytest.fixture
def state(trained_site):
    return trained_site.parent / "state"


def test_the_final_global_context_is_used_and_the_rounds_until_there_is_one(state):
    store = DiskStore(state)
    final, record = store.read_final("pilot"), store.read("pilot", 1)
    np.testing.assert_array_equal(load_prompt(state).global_context, final)
    (state / "experiments/pilot/final.safetensors").unlink()
    with pytest.raises(StateError, match=r"round 1 of 1.*--unfinished.*none yet.*HALF_FINISHED"):
        load_prompt(state)
    prompt = load_prompt(state, unfinished=True)
    assert not prompt.finished
    np.testing.assert_array_equal(prompt.global_context, record.global_context)
    np.testing.assert_array_equal(prompt.personal_context, record.state.context)
    assert not np.array_equal(final, record.global_context)


def test_predictions_are_probabilities_best_first(state, backbone):
    images = [Image.new("RGB", (20, 30), (level,) * 3) for level in (0, 128, 255)]
    for top, shown in ((1, 1), (2, 2), (9, 2)):
        predictions = load_prompt(state).predict(backbone, iter(images), top)
        assert len(predictions) == 3
        for prediction in predictions:
            assert len(prediction.classes) == len(prediction.probabilities) == shown
            assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
            assert set(prediction.classes) <= {"bright", "dark"}
            if shown == 2:
                assert sum(prediction.probabilities) == pytest.approx(1.0, abs=1e-5)
    assert load_prompt(state).predict(backbone, [], 1) == []


def test_text_features_are_computed_once_for_many_images(state, backbone, monkeypatch):
    calls = []
    original = type(backbone).text_features
    monkeypatch.setattr(type(backbone), "text_features", lambda *a: calls.append(1) or original(*a))
    classifier = load_prompt(state).classifier(backbone)
    image = Image.new("RGB", (20, 30), (200, 10, 10))
    first = list(classifier.classify([image] * 70, 2))
    assert first == list(classifier.classify([image] * 70, 2))
    assert len(calls) == 1


def test_the_classifier_is_the_evaluations_own_arithmetic(state, backbone):
    prompt = load_prompt(state)
    images = [Image.new("RGB", (20, 30), (level, 90, 255 - level)) for level in (0, 128, 255)]
    tokens = backbone.class_tokens(prompt.experiment.classes, prompt.experiment.prompt.num_context)
    features = torch.stack(list(backbone.image_features(images)))
    expected = class_probabilities(backbone, prompt.context(backbone), tokens, features)
    for row, prediction in zip(expected.tolist(), prompt.predict(backbone, images, 2), strict=True):
        found = dict(zip(prediction.classes, prediction.probabilities, strict=True))
        assert [found[name] for name in prompt.experiment.classes] == pytest.approx(row, abs=2e-6)


def test_the_strength_weighs_the_personal_part_alone(state, backbone):
    prompt = load_prompt(state)
    plain, weak, strong = (prompt.with_strength(alpha).context(backbone) for alpha in (0.0, 0.5, 2.0))
    personal = torch.from_numpy(prompt.personal_context.astype(np.float32))
    assert personal.abs().max() > 0
    torch.testing.assert_close(prompt.context(backbone), plain + personal)
    torch.testing.assert_close(weak, plain + 0.5 * personal)
    torch.testing.assert_close(strong, plain + 2 * personal)
    with pytest.raises(ConfigError, match="personal_strength"):
        prompt.with_strength(-0.1)


def test_a_name_that_is_added_is_one_more_class_and_the_others_stand_to_one_another_as_before(state, backbone):
    prompt, image = load_prompt(state), Image.new("RGB", (20, 20), (100, 90, 80))
    more = prompt.with_names("zebra").with_names("grey wall", "sky")
    assert more.classes == ("bright", "dark", "zebra", "grey wall", "sky")
    assert more.experiment == prompt.experiment

    def said(prompt):
        (found,) = prompt.predict(backbone, [image], 9)
        return dict(zip(found.classes, found.probabilities, strict=True))

    before, after = said(prompt), said(more)
    assert set(after) == set(more.classes)
    assert sum(after.values()) == pytest.approx(1.0, abs=1e-5)
    assert after["bright"] / after["dark"] == pytest.approx(before["bright"] / before["dark"], rel=1e-3)
    assert set(said(more.with_strength(0.0))) == set(more.classes)
    assert said(prompt.with_names()) == before


@pytest.mark.parametrize("name", ["", "  ", "bright", "a\nb", "x" * 201])
def test_a_name_that_is_no_new_one_is_refused(state, name):
    with pytest.raises(ConfigError, match="BAD_NAME"):
        load_prompt(state).with_names("zebra", name)
    with pytest.raises(ConfigError, match="BAD_NAME"):
        load_prompt(state).with_names("zebra", "zebra")


@pytest.mark.parametrize(
    ("name", "code"), [("Bright", "CLASSES_READ_ALIKE"), ("an endless name " * 12, "PROMPT_TOO_LONG")]
)
def test_a_name_that_the_model_cannot_take_is_refused(state, backbone, name, code):
    with pytest.raises(ModelError, match=code):
        load_prompt(state).with_names(name).classifier(backbone)


def test_names_are_added_on_the_command_line(command, trained_site, image_folder, tmp_path):
    image = next((image_folder / "test" / "bright").iterdir())
    also = ("--also", "zebra", "--also", "sky", "--site", trained_site)
    code, out, _ = command("predict", image, "--top-k", 9, "--json", *also)
    assert code == 0
    assert set(json.loads(out)[0]["classes"]) == {"bright", "dark", "zebra", "sky"}
    assert command("export", "--out", tmp_path / "out", *also)[0] == 0
    assert load_prompt(tmp_path / "out").classes == ("bright", "dark", "zebra", "sky")
    assert "learned from no image: zebra, sky." in (tmp_path / "out/README.md").read_text()
    code, _, error = command("predict", image, "--also", "dark", "--site", trained_site)
    assert code == 2
    assert "BAD_NAME" in error
    assert command("predict", image, "--also", "sky", "--served", "http://127.0.0.1:1")[0] == 2


def test_a_prompt_is_found_by_the_sites_folder_too(state):
    by_site, by_state = load_prompt(str(state.parent)), load_prompt(state)
    np.testing.assert_array_equal(by_site.personal_context, by_state.personal_context)
    assert by_site.experiment == by_state.experiment


def test_the_personal_part_matters(state, backbone):
    image = Image.new("RGB", (20, 20), (100, 90, 80))
    prompt = load_prompt(state)
    without = dataclasses.replace(prompt, personal_context=np.zeros_like(prompt.personal_context))
    assert prompt.predict(backbone, [image], 2) != without.predict(backbone, [image], 2)


def test_another_model_is_refused(state, backbone):
    prompt = load_prompt(state)
    model = dataclasses.replace(prompt.experiment.model, fingerprint="0" * 64)
    other = dataclasses.replace(prompt, experiment=dataclasses.replace(prompt.experiment, model=model))
    with pytest.raises(ModelError, match="OTHER_MODEL"):
        other.predict(backbone, [Image.new("RGB", (8, 8))], 1)


def test_nothing_learned_yet(tmp_path):
    with pytest.raises(StateError) as error:
        load_prompt(tmp_path / "state")
    assert (error.value.code, bool(error.value.advice)) == ("NO_PROMPT", True)
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_without_a_round_does_not_hide_a_learned_prompt(state):
    store = DiskStore(state)
    newer = dataclasses.replace(store.experiment("pilot"), name="newer")
    store.remember(newer)
    assert load_prompt(state).experiment.name == "pilot"
    with pytest.raises(StateError, match="NO_PROMPT"):
        load_prompt(state, "newer")


def test_the_one_finished_last_is_used_and_every_one_has_a_name(state):
    store = DiskStore(state)
    old = load_prompt(state)
    store.remember(dataclasses.replace(store.experiment("pilot"), name="newer"))
    store.write("newer", 1, store.read("pilot", 1))
    assert str(load_prompt(state)) == str(old)
    assert load_prompt(state, unfinished=True).experiment.name == "newer"
    with pytest.raises(StateError, match="Finished: pilot"):
        load_prompt(state, "newer")
    found = [(row["experiment"], row["finished"], row["default"]) for row in list_prompts(state)]
    assert found == [("newer", False, False), ("pilot", True, True)]
    store.write_final("newer", old.global_context + 1)
    os.utime(state / "experiments/pilot/final.safetensors", (86400, 86400))
    again = load_prompt(state)
    assert again.experiment.name == "newer"
    assert again.version != old.version
    assert load_prompt(state, "pilot").learned == "1970-01-02 00:00 UTC"
    (state / "experiments/newer/round-00001.safetensors").write_bytes(b"x")
    assert "damaged" in list_prompts(state)[0]


def test_an_unknown_experiment_is_named_with_the_known_ones(state):
    with pytest.raises(StateError) as error:
        load_prompt(state, "other")
    assert error.value.code == "NO_EXPERIMENT"
    assert "pilot" in error.value.advice


def test_a_damaged_round_is_an_error(state):
    (state / "experiments/pilot/round-00001.safetensors").write_bytes(b"x")
    with pytest.raises(StateError, match="RECORD_DAMAGED"):
        load_prompt(state)
