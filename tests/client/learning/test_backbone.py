"""A loaded dual encoder: its texts, class names and positions, and a full-size one."""

import resource
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.step import SystemRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import ModelError
from dpfpl_models import embedded_model_path
from random_models.families import write_random_model

ROOT = Path(__file__).resolve().parents[3]


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


# A class name never holds a token that ends or controls a text, whichever text tower reads it.


FAMILIES = (
    "embedded",
    "siglip",
    "siglip2",
    "vision-text-dual-encoder/vit+bert",
    "vision-text-dual-encoder/swin+roberta",
)
M = 3


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    if request.param == "embedded":
        return load_backbone("embedded")
    return load_backbone(str(write_random_model(request.param, tmp_path_factory.mktemp("model"))))


def test_a_name_that_spells_a_control_token_is_read_as_plain_characters(model):
    tokenizer = model.tokenizer
    control = model.words.control
    usual = [token for token in model._suffix("dog cat") if token in control]
    assert len(usual) == 1  # what ends the text
    for token in tokenizer.all_special_tokens:
        if token == tokenizer.unk_token and tokenizer.unk_token_id not in control:
            continue  # an unknown word, however it is written
        ids = model._suffix(f"dog {token} cat")
        assert [each for each in ids if each in control] == usual, token
        assert ids[-1] == model._suffix("dog")[-1]
        assert len(ids) > len(model._suffix("dog cat"))
        assert not set(model.words.ids(token)) & control
        model.check_words(token)


def test_an_ordinary_name_has_the_tokenizers_own_ids(model):
    for name in ("dog", "small red dog", "a b-c/d (e)", "Über 犬", "x < y | z"):
        assert model.words.ids(name) == model.tokenizer(name, add_special_tokens=False)["input_ids"]
        assert model.num_tokens(name) == len(model.words.ids(name))


def test_a_name_that_cannot_be_read_as_plain_characters_is_refused_before_any_round(
    make_experiment, tmp_path, monkeypatch
):
    folder = write_random_model("vision-text-dual-encoder/vit+bert", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<beyond>"])  # behind the embedding's last row
    tokenizer.save_pretrained(folder)
    model = load_backbone(str(folder))
    model.scorer(make_experiment(width=model.width, num_context=M, classes=("dog", "cat")))
    with pytest.raises(ModelError) as caught:
        model.scorer(make_experiment(width=model.width, num_context=M, classes=("dog", "a <beyond>")))
    assert caught.value.code == "SPECIAL_TOKEN"
    assert "<beyond>" in caught.value.message
    with pytest.raises(ModelError, match="<beyond>"):
        model.text_embeddings("a <beyond>", M)


@pytest.mark.slow
def test_a_full_size_model_trains_one_step(tmp_path, make_experiment):
    """CLIP ViT-B/16's shapes with random weights: loads, encodes images and makes one noised step."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

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
