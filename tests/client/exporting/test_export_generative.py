"""A prompt of a generative model, exported and used by the code of its own model card."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageOps
from safetensors.numpy import load_file

from card_code import code_blocks
from dpfpl_bench.demo.drawn_questions import QUESTIONS
from dpfpl_client.data.decode import PixelRules, decode_image
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.use.exporting import card as usage
from dpfpl_client.use.exporting.card import Facts
from dpfpl_client.use.exporting.export import write_export
from dpfpl_client.use.prompt import SitePrompt, load_prompt
from dpfpl_common.errors import ModelError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, TaskSettings
from random_models.families import write_random_model

QUESTION = QUESTIONS["colour"][0]


def prompt_for(backbone, model, kind="vqa"):
    classes = () if kind == "vqa" else ("red", "blue")
    experiment = Experiment(
        name="asked",
        classes=classes,
        sites=("north",),
        model=ModelSettings(width=backbone.width, id=model, fingerprint=backbone.fingerprint),
        prompt=PromptSettings(num_context=4, rank=2, init_text="the"),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0),
        task=TaskSettings(kind=kind, max_answer_tokens=4, question=QUESTION if kind == "classify" else ""),
    )
    generator = np.random.default_rng(0)
    moved = generator.normal(0, 0.05, experiment.context_shape)
    return SitePrompt(experiment, moved.astype(np.float32), moved[::-1].copy(), 3)


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8))


def here(code, folder):
    """What a card's code prints, in this process."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    return printed.getvalue().strip()


def code_of(folder, question=QUESTION):
    (code,) = code_blocks(folder)
    return code.replace(json.dumps("What is in the picture?"), json.dumps(question))


FAMILIES = (
    "embedded-vlm", "llava", "smolvlm", "qwen2_vl", "llava_next", "internvl", "mistral3", "gemma3", "paligemma/gemma2",
    "qwen3_vl",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_cards_own_code_gives_our_answers_and_refuses_control_tokens(family, picture, tmp_path):
    model = family if family == "embedded-vlm" else str(write_random_model(family, tmp_path / "base"))
    backbone = load_backbone(model)
    prompt = prompt_for(backbone, model)
    exported = write_export(prompt, backbone, tmp_path / "out", Facts(site="north"))
    assert "middle of a turn" in exported.no_adapter
    picture.save(tmp_path / "out" / "photo.png")
    (ours,) = prompt.classifier(backbone, QUESTION).classify([picture])
    assert here(code_of(tmp_path / "out"), tmp_path / "out") == ours.classes[0].strip() != ""
    assert 0 <= ours.probabilities[0] <= 1
    image = backbone.tokenizer.convert_ids_to_tokens(backbone._model.config.image_token_id)
    for token in (image, backbone.tokenizer.eos_token):
        with pytest.raises(SystemExit, match="spells a token"):
            here(code_of(tmp_path / "out", f"what {token} is it?"), tmp_path / "out")


def turned():
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    return image, {"exif": exif}


def transparent():
    pixels = np.random.default_rng(2).integers(0, 255, (40, 60, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA"), {}


def wide():
    return Image.fromarray(np.random.default_rng(3).integers(0, 65_535, (40, 60), dtype=np.uint16)), {}


def of_12_bits():
    return Image.fromarray(np.random.default_rng(4).integers(0, 4096, (40, 60), dtype=np.uint16)), {}


@pytest.mark.parametrize(("make", "bits"), [(turned, 16), (transparent, 16), (wide, 16), (of_12_bits, 12)])
def test_the_cards_code_reads_a_picture_as_the_site_does(make, bits, tmp_path):
    image, options = make()
    image.save(tmp_path / "photo.png", **options)
    names = {"Image": Image, "ImageOps": ImageOps, "np": np}
    exec(usage.picture_code(bits), names)
    ours, theirs = decode_image(tmp_path / "photo.png", PixelRules(bits)), names["opened"](tmp_path / "photo.png")
    assert theirs.mode == "RGB"
    assert theirs.size == ours.size
    assert theirs.tobytes() == ours.tobytes() != Image.open(tmp_path / "photo.png").convert("RGB").tobytes()
    for template in (usage.WITH_ADAPTER, usage.WITHOUT_ADAPTER, usage.GENERATIVE):
        assert template.count("{picture}") == 1 <= template.count("opened(")
        assert template.count("Image.open(") == 0


def unnamed(prompt):
    """The same, of an experiment whose model has only a width and a fingerprint."""
    settings = ModelSettings(width=prompt.experiment.model.width, fingerprint=prompt.experiment.model.fingerprint)
    return dataclasses.replace(prompt, experiment=dataclasses.replace(prompt.experiment, model=settings))


def test_an_embedded_model_comes_along_whatever_the_experiment_calls_it(picture, tmp_path):
    backbone = load_backbone("embedded-vlm")
    prompt = unnamed(prompt_for(backbone, "embedded-vlm"))
    assert prompt.experiment.model.id == "embedded"  # which would be another one
    exported = write_export(prompt, backbone, tmp_path / "out", Facts(site="north", model="embedded-vlm"))
    assert "base_model/model.safetensors" in exported.files
    picture.save(tmp_path / "out" / "photo.png")
    (ours,) = prompt.classifier(backbone, QUESTION).classify([picture])
    assert here(code_of(tmp_path / "out"), tmp_path / "out") == ours.classes[0]
    copied = json.loads((tmp_path / "out" / "base_model" / "config.json").read_text())
    assert copied["model_type"] == "llava"


@pytest.mark.parametrize(("site", "named"), [("org/model", "org/model"), ("embedded", "the-base-model"), ("", None)])
def test_a_model_that_the_experiment_does_not_name_is_called_as_the_site_calls_it(site, named, tmp_path):
    backbone = load_backbone(str(write_random_model("smolvlm", tmp_path / "base")))
    exported = write_export(
        unnamed(prompt_for(backbone, "embedded")), backbone, tmp_path / "out", Facts(site="north", model=site)
    )
    card, named = (tmp_path / "out" / "README.md").read_text(), named or "the-base-model"
    assert (f"base_model: {named}\n" in card) == (named == "org/model")  # a hub knows no other name
    assert f'base, question = "{named}"' in card
    assert backbone.fingerprint in card
    assert "embedded" not in card
    assert not [name for name in exported.files if name.startswith("base_model")]


def test_the_parts_add_up_and_are_read_back(picture, tmp_path):
    backbone = load_backbone("embedded-vlm")
    prompt = prompt_for(backbone, "embedded-vlm")
    write_export(prompt, backbone, tmp_path / "out", Facts(site="north"))
    parts = load_file(tmp_path / "out" / "prompt.safetensors")
    whole = prompt.context(backbone).numpy()
    np.testing.assert_allclose(parts["context"], whole, atol=1e-6)
    rebuilt = parts["left"] @ parts["right"] + parts["residual"]
    np.testing.assert_allclose(rebuilt, parts["personal_context"], atol=1e-5)
    again = load_prompt(tmp_path / "out")
    assert again.experiment == prompt.experiment
    (one,), (two,) = (p.classifier(backbone, QUESTION).classify([picture]) for p in (prompt, again))
    assert one == two
    assert not (tmp_path / "out" / "text_features.safetensors").exists()
    assert (tmp_path / "out" / "base_model" / "model.safetensors").is_file()


def test_a_question_is_asked_where_it_makes_sense(picture):
    backbone = load_backbone("embedded-vlm")
    with pytest.raises(ModelError, match="NO_QUESTION"):
        prompt_for(backbone, "embedded-vlm").classifier(backbone)
    classes = prompt_for(backbone, "embedded-vlm", kind="classify")
    with pytest.raises(ModelError, match="UNWANTED_QUESTION"):
        classes.classifier(backbone, "what is it?")
    (found,) = classes.classifier(backbone).classify([picture], 2)
    assert set(found.classes) == {"red", "blue"}
    assert sum(found.probabilities) == pytest.approx(1.0, abs=1e-4)
