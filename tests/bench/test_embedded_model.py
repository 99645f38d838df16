"""The embedded model: it loads without our code, its card tells the truth, and its script runs."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPImageProcessor, CLIPModel

from dpfpl_bench.demo import drawing
from dpfpl_client.models.loader import load_backbone
from dpfpl_models import embedded_model_path
from dpfpl_server.runs.plan import KNOWN_SIZES
from research.embedded_models import clip_evaluate as evaluate
from research.embedded_models import clip_pictures as augment
from research.embedded_models import clip_scenes as captions
from research.embedded_models import clip_scenes as scenes
from research.embedded_models import clip_train as train
from research.embedded_models.clip_pictures import Pool
from research.embedded_models.clip_scenes import FILLER_WORDS
from research.embedded_models.clip_train import CONTEXT_LENGTH


@pytest.fixture(scope="module")
def model() -> CLIPModel:
    return CLIPModel.from_pretrained(embedded_model_path()).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded_model_path())


@pytest.fixture(scope="module")
def digit_features(model):
    images, labels = evaluate.digit_images()
    processor = CLIPImageProcessor.from_pretrained(embedded_model_path())
    return evaluate.image_features(model, processor, images), labels


@pytest.fixture(scope="module")
def small_pool() -> Pool:
    """A few masks per group, no fonts needed: letters borrow pen digits."""
    rng = np.random.default_rng(5)
    groups = {("digit", str(d), "handwritten"): [drawing.draw_pen_digit(d, rng) for _ in range(3)] for d in range(10)}
    groups |= {("digit", str(d), "printed"): [drawing.draw_pen_digit(d, rng)] for d in range(10)}
    groups |= {
        ("letter", chr(97 + i), style): [drawing.draw_pen_digit(i % 10, rng)]
        for i in range(26)
        for style in ("uppercase", "lowercase")
    }
    groups |= {("shape", name, ""): [drawing.shape_mask(name, rng)] for name in drawing.SHAPES}
    groups |= {("texture", name, ""): [drawing.draw_texture_mask(name, rng)] for name in drawing.TEXTURES}
    rows, start = {}, 0
    for group, masks in groups.items():
        rows[group] = np.arange(start, start + len(masks))
        start += len(masks)
    return Pool(np.stack([mask for masks in groups.values() for mask in masks]), rows, 0)


def card_figure(label: str) -> float:
    """The percentage in the card's table row that starts with `label`."""
    card = (embedded_model_path() / "MODEL_CARD.md").read_text()
    found = re.search(rf"^\| {re.escape(label)} \| ([0-9.]+) % \|", card, re.MULTILINE)
    assert found, f"no row {label!r} in the model card"
    return float(found[1]) / 100


def test_loads_with_the_generic_classes_and_agrees_with_the_plain_ones(model, tokenizer):
    path = embedded_model_path()
    generic = AutoModel.from_pretrained(path).eval()
    processor = AutoImageProcessor.from_pretrained(path)
    pixels = processor(images=[np.full((20, 30, 3), 200, np.uint8)], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    tokens = tokenizer(["a photo of a seven", "two red squares"], padding=True, return_tensors="pt")
    with torch.no_grad():
        one, other = (m(pixel_values=pixels, **tokens).logits_per_image for m in (model, generic))
    assert torch.isfinite(one).all()
    assert torch.equal(one, other)


def test_folder_is_at_most_eight_megabytes_and_holds_safetensors_only():
    files = [file for file in embedded_model_path().iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    assert not [file.name for file in files if file.suffix in (".bin", ".pt", ".pkl", ".py")]


@pytest.mark.parametrize("template", ["a photo of a {}", "a photo of the digit {}", "a photo of the number {}"])
def test_zero_shot_accuracy_is_what_the_card_says(model, tokenizer, digit_features, template):
    accuracy = evaluate.zero_shot_accuracy(model, tokenizer, *digit_features, template=template)
    assert abs(accuracy - card_figure(f'zero-shot, "{template}"')) <= 0.01


def test_linear_probe_is_good_and_what_the_card_says_and_above_zero_shot(model, tokenizer, digit_features):
    probe = evaluate.probe_accuracy(*digit_features)
    assert probe >= 0.95
    assert abs(probe - card_figure("linear probe")) <= 0.01
    assert evaluate.zero_shot_accuracy(model, tokenizer, *digit_features) <= probe - 0.05


def test_tokenizer_adds_begin_and_end_and_padding_is_harmless(model, tokenizer):
    text = model.config.text_config
    alone = tokenizer("seven", return_tensors="pt")["input_ids"]
    assert alone[0, 0] == tokenizer.bos_token_id == text.bos_token_id
    assert alone[0, -1] == tokenizer.eos_token_id == text.eos_token_id != 2
    padded = tokenizer(["seven", "a small blue diamond at the top left"], padding=True, return_tensors="pt")[
        "input_ids"
    ]
    with torch.no_grad():
        short = model.text_model(input_ids=alone).pooler_output[0]
        long = model.text_model(input_ids=padded).pooler_output[0]
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-4)


def test_sixteen_context_tokens_fit_before_any_class_name(model, tokenizer):
    longest = max(len(tokenizer(name)["input_ids"]) for name in FILLER_WORDS)
    assert 16 + longest + 1 <= model.config.text_config.max_position_embeddings == CONTEXT_LENGTH


@pytest.mark.parametrize(
    "name", ["Zygomatic 0x7F", "q", "Mass (benign) ~#1", "aé ß 7", "".join(map(chr, range(33, 127)))]
)
def test_any_class_name_tokenises_and_reads_back(tokenizer, name):
    ids = tokenizer(name, add_special_tokens=False)["input_ids"]
    assert tokenizer.eos_token_id not in ids  # EOS doubles as the unknown token
    assert "".join(tokenizer.decode(ids).split()) == "".join(name.lower().split())


def test_captions_tokenise_without_unknown_tokens_within_the_context(tokenizer):
    rng = np.random.default_rng(11)
    texts = [captions.write_caption(scenes.sample_scene(rng), rng)[0] for _ in range(2000)]
    assert len(set(texts)) > 1000
    for ids in tokenizer(texts)["input_ids"]:
        assert len(ids) <= CONTEXT_LENGTH
        assert ids.count(tokenizer.eos_token_id) == 1


def test_a_batch_is_decided_by_the_generator(small_pool):
    def draw(seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        return augment.draw_batch([scenes.sample_scene(rng) for _ in range(64)], small_pool, rng)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert 0 <= draw(1).min() <= draw(1).max() <= 1


def says(told_of: scenes.Scene, told: frozenset[str], shown: scenes.Scene) -> bool:
    stated = scenes.facts_of(told_of, told)
    return bool(((stated == -1) | (stated == scenes.facts_of(shown))).all())


def test_a_caption_is_true_of_its_own_scene_and_false_where_a_stated_field_differs():
    rng = np.random.default_rng(2)
    told_fields = set()
    for _ in range(300):
        scene = scenes.sample_scene(rng)
        _, told = captions.write_caption(scene, rng)
        assert says(scene, told, scene)
        colour = "red" if scene.colour != "red" else "blue"
        assert says(scene, told, replace(scene, colour=colour)) == ("colour" not in told)
        told_fields |= told
    assert told_fields == {field.name for field in fields(scenes.Scene)}


def test_one_caption_text_always_states_the_same_facts():
    rng = np.random.default_rng(8)
    facts: dict[str, bytes] = {}
    for _ in range(2000):
        scene = scenes.sample_scene(rng)
        text, told = captions.write_caption(scene, rng)
        assert facts.setdefault(text, scenes.facts_of(scene, told).tobytes()) == scenes.facts_of(scene, told).tobytes()


def test_a_training_batch_names_everything_and_has_no_caption_twice(small_pool, tokenizer):
    batch = train.draw_training_batch(small_pool, tokenizer, np.random.default_rng(2), 64)
    texts = [tuple(row) for piece in batch.input_ids for row in piece.tolist()]
    things = len(scenes.named_scenes())
    assert things < len(texts) == len(set(texts)) == batch.true.shape[1] <= things + 32
    assert batch.pixels.shape == (64, 3, 32, 32)
    assert (batch.true[::2].sum(dim=1) >= 1).all()  # every second picture has a caption of its own


def test_simple_scenes_are_simple():
    rng = np.random.default_rng(6)
    simple = [scenes.sample_scene(rng, ease=1.0) for _ in range(50)]
    assert {(scene.colour, scene.background, scene.quality, scene.count) for scene in simple} == {
        ("white", "black", "plain", "1")
    }


def test_contrastive_loss_does_not_push_any_true_caption_away():
    true = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    logits = torch.zeros(2, 3, requires_grad=True)
    train.contrastive_loss(logits, true).backward()
    assert ((logits.grad < 0) == (true > 0)).all()


def test_training_runs_end_to_end_and_the_result_loads(small_pool, tokenizer, tmp_path, monkeypatch):
    """With one tokenizer for all: its learner breaks ties by chance."""
    monkeypatch.setattr(train, "build_pool", lambda *settings: small_pool)
    monkeypatch.setattr(train, "train_tokenizer", lambda *settings: tokenizer)
    lines: list[str] = []
    for name, seed in (("a", 1), ("again", 1), ("b", 2)):
        plan = train.TrainingPlan(seed=seed, steps=2, stop_after=2, batch_size=16, captions=10)
        train.train(plan, tmp_path / name, lines.append)
    assert sum(line.startswith("step 2/2") for line in lines) == 3
    first, again, other = (
        torch.cat([w.flatten() for w in CLIPModel.from_pretrained(tmp_path / name).state_dict().values()])
        for name in ("a", "again", "b")
    )
    # Where a gradient is rounding error alone, Adam makes a full step of it: hence the median.
    assert (first - again).abs().median() < 1e-6
    assert (first - other).abs().median() > 1e-3
    assert AutoTokenizer.from_pretrained(tmp_path / "a").get_vocab() == tokenizer.get_vocab()
    assert CLIPImageProcessor.from_pretrained(tmp_path / "a").crop_size["height"] == 32


def test_a_tokenizer_learns_words_and_knows_every_byte():
    learned = train.train_tokenizer(["a photo of a seven", "a photo of a six"] * 20, 600, CONTEXT_LENGTH)
    ids = learned("a photo of a seven")["input_ids"]
    assert (ids[0], ids[-1]) == (learned.bos_token_id, learned.eos_token_id)
    assert len(ids) == 7  # each word has become one token
    assert learned.eos_token_id not in learned("é ß 7 #~", add_special_tokens=False)["input_ids"]


def test_a_plan_knows_its_feature_size(model):
    assert {load_backbone("embedded").fingerprint: model.config.projection_dim} == KNOWN_SIZES
