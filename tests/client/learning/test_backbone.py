"""Loading a model: what is refused, what identifies it, and a full-size one."""

import json
import resource
import shutil
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.step import SystemRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.generative.template import FAMILIES, REFUSED
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import ModelError
from dpfpl_models import embedded_model_path

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "model"
    shutil.copytree(embedded_model_path(), target)
    return target


def refused(model, code):
    with pytest.raises(ModelError) as caught:
        load_backbone(str(model))
    assert caught.value.code == code
    assert caught.value.advice
    return str(caught.value)


def test_a_model_that_is_not_there(tmp_path):
    for name in (tmp_path / "nowhere", "no-such-owner/no-such-model", "::"):
        assert str(name) in refused(name, "MODEL_NOT_FOUND")


def test_a_folder_without_a_readable_config(folder):
    for content in (None, "", "[]", "{}", "\0"):
        (folder / "config.json").unlink(missing_ok=True)
        if content is not None:
            (folder / "config.json").write_text(content)
        refused(folder, "NO_MODEL_CONFIG")


def test_another_family(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    assert "'bert'" in refused(folder, "UNKNOWN_FAMILY")


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_family_that_cannot_be_used_is_refused_by_name_with_the_reason(folder, family):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": family}))
    message = refused(folder, "UNKNOWN_FAMILY")
    assert repr(family) in message
    assert REFUSED[family] in message


def test_the_reasons_are_about_families_of_the_installed_transformers():
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    assert set(REFUSED) <= set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    assert not set(REFUSED) & set(FAMILIES)


def test_pickled_weights_are_never_loaded(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder, "NO_SAFETENSORS")


def test_damaged_weights(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for damaged, code in (
        (b"", "MODEL_FILE_DAMAGED"),
        (b"\xff" * 100, "MODEL_FILE_DAMAGED"),
        (content[:1000], "MODEL_FILE_CUT"),
        (content[:-1000], "MODEL_FILE_CUT"),
    ):
        path.write_bytes(damaged)
        assert "model.safetensors" in refused(folder, code)


def test_missing_weights_are_not_replaced_by_random_ones(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "text_projection.weight" in refused(folder, "WEIGHTS_INCOMPLETE")


def test_weights_of_another_shape(folder):
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.weight"] = weights["text_projection.weight"][:-1].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "text_projection.weight is [95, " in refused(folder, "WEIGHTS_DO_NOT_FIT")


def test_one_byte_of_any_file_changes_the_fingerprint(folder, backbone):
    assert load_backbone(str(folder)).fingerprint == backbone.fingerprint
    seen = {backbone.fingerprint}
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    seen.add(load_backbone(str(folder)).fingerprint)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    seen.add(load_backbone(str(folder)).fingerprint)
    assert len(seen) == 3


def test_the_containers_simulation_names_the_embedded_model(backbone):
    table = tomllib.loads((ROOT / "deploy/simulation/experiment.toml").read_text(encoding="utf-8"))
    assert table["model"]["fingerprint"] == backbone.fingerprint


def test_texts_too_long_are_named(backbone):
    with pytest.raises(ModelError, match="a photo of a") as caught:
        backbone.text_embeddings("a photo of a", 3)
    assert caught.value.code == "INIT_TEXT_TOO_LONG"
    long = "cat " * 60
    with pytest.raises(ModelError, match="cat cat") as caught:
        backbone.class_tokens(["dog", long], 4)
    assert caught.value.code == "PROMPT_TOO_LONG"
    with pytest.raises(ModelError) as caught:
        backbone.class_tokens(["dog"], 62)
    assert caught.value.code == "PROMPT_TOO_LONG"


def test_exactly_as_many_positions_as_the_model_has(backbone):
    room = 64 - 1 - 3  # BOS, "dog", ".", EOS
    tokens = backbone.class_tokens(["dog"], room)
    assert tokens.ids.shape[1] == 3
    features = backbone.text_features(torch.zeros(room, backbone.width), tokens)
    assert torch.isfinite(features).all()
    with pytest.raises(ModelError):
        backbone.class_tokens(["dog"], room + 1)


def test_the_initial_text_is_repeated_to_the_left(backbone):
    four, seven = backbone.text_embeddings("a photo of a", 4), backbone.text_embeddings("a photo of a", 7)
    assert torch.equal(seven[3:], four)
    assert torch.equal(seven[:3], four[1:])
    assert backbone.text_embeddings("", 0).shape == (0, backbone.width)
    assert not four.requires_grad


def test_image_features_are_unit_and_do_not_depend_on_the_batch(backbone):
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(5)]
    together = torch.stack(list(backbone.image_features(images)))
    alone = torch.stack(list(backbone.image_features(iter(images), batch_size=2)))
    assert together.shape == (5, backbone.feature_size)
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together.norm(dim=1), torch.ones(5), atol=1e-5)
    assert list(backbone.image_features([])) == []
    assert not together.requires_grad


@pytest.mark.slow
def test_a_full_size_model_trains_one_step(tmp_path, make_experiment):
    """CLIP ViT-B/16's shapes with random weights: loads, encodes images and makes one noised step."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    config = CLIPConfig(
        text_config={
            "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
            "vocab_size": 49408, "max_position_embeddings": 77, "projection_dim": 512, "hidden_act": "quick_gelu",
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "patch_size": 16, "image_size": 224, "projection_dim": 512, "hidden_act": "quick_gelu",
        },
        projection_dim=512,
    )  # fmt: skip
    begin = time.monotonic()
    CLIPModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessor().save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    assert (backbone.width, backbone.feature_size) == (512, 512)
    images = [Image.new("RGB", (300, 200), colour) for colour in ("red", "blue")]
    features = torch.stack(list(backbone.image_features(images)))
    classes = tuple(f"class {i}" for i in range(10))
    labelled = LabelledFeatures(features, torch.tensor([0, 1]))
    experiment = make_experiment(width=512, num_context=16, rank=4, classes=classes, local_steps=1, sample_rate=1.0)
    learner = PromptLearner(backbone, experiment, SiteFeatures(labelled, labelled, labelled, classes))
    result = learner.train_round(
        np.zeros((16, 512), np.float32), PersonalState.initial(experiment), SystemRandomness().for_round("s0", 1)
    )
    assert np.isfinite(result.update).all()
    assert result.update.any()
    assert np.isfinite(result.state.context).all()
    assert time.monotonic() - begin < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 2**20  # KiB
