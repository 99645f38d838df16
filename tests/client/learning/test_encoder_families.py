"""CLIP's relatives: other vision towers, other text towers; the context in the text, exact gradients, whole rounds."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from card_code import run_card
from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.class_scorer import EXACT
from dpfpl_client.models.encoders import ENCODER_FAMILIES, ClipBackbone
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.use.exporting.card import Facts
from dpfpl_client.use.exporting.export import write_export
from dpfpl_client.use.prompt import SitePrompt
from dpfpl_common.errors import ModelError
from random_models.families import Sizes, write_random_model
from random_models.parts import bert_tokenizer, square, text_sizes, vision_sizes

torch.set_num_threads(1)

CLASSES = ("cat", "small red dog", "bird")
M = 4
FAMILIES = (
    "metaclip_2",
    "altclip",
    "chinese_clip",
    "aimv2",
    "vision-text-dual-encoder/dinov2+clip",
    "vision-text-dual-encoder/vit+bert",
    "vision-text-dual-encoder/swin+roberta",
)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return write_random_model(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return load_backbone(str(folder))


@pytest.fixture(scope="module")
def stock(folder):
    """The same folder as a user of plain transformers loads it."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval().requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder, backend="pil")


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(5)]


@pytest.fixture(scope="module")
def examples(model, images):
    return LabelledFeatures(torch.stack(list(model.image_features(images))), torch.tensor([0, 1, 2, 0, 1]))


def test_every_family_is_tried():
    assert {name.partition("/")[0] for name in FAMILIES} == set(ENCODER_FAMILIES)


def test_a_clip_text_tower_is_served_as_clips_whatever_stands_beside_it(model, request):
    name = request.node.callspec.params["folder"]
    assert isinstance(model, ClipBackbone) == (name == "metaclip_2" or name.endswith("+clip"))
    assert type(model._tower).__name__ == ("FastTextTower" if isinstance(model, ClipBackbone) else "WholeTextTower")


def test_a_context_of_words_gives_the_models_own_probabilities(stock, model, images, examples, make_experiment):
    """As a user of transformers gets them: whole sentences, padded together, with the padding masked."""
    theirs, tokenizer, processor = stock
    experiment = make_experiment(width=model.width, num_context=model.num_tokens("a photo of a"), classes=CLASSES)
    context = model.text_embeddings("a photo of a", experiment.prompt.num_context)
    ours = model.scorer(experiment).at(context).probabilities(examples.features)
    text = tokenizer([f"a photo of a {name}." for name in CLASSES], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(**text, **processor(images=images, return_tensors="pt")).logits_per_image
    assert torch.allclose(ours, torch.softmax(logits, dim=1), rtol=1e-4, atol=1e-6)


def plain_loss(stock, model, context, image, label):
    """The cross-entropy of one image through Hugging Face's own forward, the context in the embeddings' place."""
    theirs, tokenizer, processor = stock
    words = tokenizer("a", add_special_tokens=False)["input_ids"] * len(context)
    tokens = model.class_tokens(CLASSES, M)
    suffixes = [row[:length].tolist() for row, length in zip(tokens.ids, tokens.lengths, strict=True)]
    begin = tokenizer("a")["input_ids"][:1]
    pixels = processor(images=[image], return_tensors="pt")
    logits = []
    for suffix in suffixes:
        ids = torch.tensor([[*begin, *words, *suffix]])
        handle = theirs.text_model.get_input_embeddings().register_forward_hook(
            lambda module, given, out: torch.cat([out[:, :1], context[None], out[:, 1 + len(context) :]], dim=1)
        )
        try:
            logits.append(theirs(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels).logits_per_image)
        finally:
            handle.remove()
    return functional.cross_entropy(torch.cat(logits, dim=1), torch.tensor([label]))


def test_gradients_are_those_of_single_examples(stock, model, images, examples, make_experiment):
    experiment = make_experiment(width=model.width, num_context=M, classes=CLASSES)
    generator = torch.Generator().manual_seed(1)
    context = float(model.token_embedding.weight.std()) * torch.randn(M, model.width, generator=generator)
    scorer, weights = model.scorer(experiment), torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0])
    ours = scorer.gradients(context, examples, EXACT)
    total = torch.zeros_like(context)
    for image, label, mine, weight in zip(images, examples.labels.tolist(), ours, weights, strict=True):
        leaf = context.clone().requires_grad_(True)
        single = torch.autograd.grad(plain_loss(stock, model, leaf, image, label), leaf)[0]
        assert float((mine - single).norm() / single.norm()) < 1e-4
        total += weight * single
    found = scorer.total_gradient(context, examples, weights)
    assert float((found - total).norm() / total.norm()) < 1e-4


@pytest.mark.parametrize("privacy", [{}, {"mechanism": "one_shot", "trust": "local", "noise_multiplier": 0.02}])
def test_whole_rounds_move_both_parts(model, examples, make_experiment, privacy):
    experiment = make_experiment(width=model.width, num_context=M, classes=CLASSES, sites=2, **privacy)
    learner = PromptLearner(model, experiment, SiteFeatures(examples, examples, examples, CLASSES))
    state, shared = PersonalState.initial(experiment), np.zeros((M, model.width), np.float32)
    for number in (1, 2):
        result = learner.train_round(shared, state, SeededRandomness(0).for_round("s0", number))
        state, shared = result.state, shared - 0.1 * result.update
    for moved in (shared, state.context):
        assert np.isfinite(moved).all()
        assert moved.any()


def test_exactly_as_many_positions_as_the_model_has(model):
    longest = 64
    while True:
        longest -= 1
        try:
            model.class_tokens(["cat"], longest)
            break
        except ModelError:
            assert longest > 20
    features = model.text_features(torch.zeros(longest, model.width), model.class_tokens(["cat"], longest))
    assert torch.isfinite(features).all()
    with pytest.raises((IndexError, RuntimeError, ValueError)):  # one more, and the model itself has no place for it
        model.text_features(torch.zeros(longest + 1, model.width), model.class_tokens(["cat"], longest))


def test_the_exported_prompt_gives_our_probabilities_by_its_own_code(folder, model, images, make_experiment, tmp_path):
    experiment = make_experiment(width=model.width, num_context=M, classes=CLASSES, method="promptfl")
    named = dataclasses.replace(experiment.model, id=str(folder), fingerprint=model.fingerprint)
    experiment = dataclasses.replace(experiment, model=named)
    shared = np.random.default_rng(0).normal(0, 0.3, experiment.context_shape).astype(np.float32)
    prompt = SitePrompt(experiment, shared, np.zeros_like(shared), 1)
    written = write_export(prompt, model, tmp_path / "out", Facts(site="s0"))
    images[0].save(tmp_path / "out/photo.png")
    spoken, *by_pipeline = run_card(tmp_path / "out")
    context = prompt.context(model)
    expected = model.scorer(experiment).at(context).probabilities(torch.stack(list(model.image_features(images[:1]))))
    assert list(spoken.values()) == pytest.approx(expected[0].tolist(), abs=1e-4)
    for rows in by_pipeline:
        assert {row["label"]: row["score"] for row in rows} == pytest.approx(spoken, abs=1e-4)
    has_adapter = (tmp_path / "out/adapter_model.safetensors").exists()
    assert has_adapter == (not written.no_adapter) == bool(by_pipeline)
    byte_pairs = isinstance(model, ClipBackbone) and model.family != "metaclip_2"
    assert has_adapter == byte_pairs, written.no_adapter


def beside_a_vit(text, folder, **options):
    """A random model with this text tower."""
    from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel, ViTConfig, ViTImageProcessorPil

    vision = ViTConfig(**vision_sizes(Sizes()))
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, **options)
    VisionTextDualEncoderModel(config).save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    ViTImageProcessorPil(size=square(Sizes())).save_pretrained(folder)
    return str(folder)


def test_a_text_tower_without_a_pooled_output_is_refused(tmp_path):
    from transformers import DistilBertConfig

    text = DistilBertConfig(vocab_size=len(bert_tokenizer()), dim=32, n_layers=1, n_heads=2, hidden_dim=32)
    with pytest.raises(ModelError, match="distilbert") as caught:
        load_backbone(beside_a_vit(text, tmp_path, projection_dim=16))
    assert caught.value.code == "TEXT_TOWER_UNUSABLE"


def test_context_vectors_may_be_narrower_than_the_towers_states(tmp_path, make_experiment, images):
    """ALBERT widens its embeddings before the first layer: the context has the embeddings' width."""
    from transformers import AlbertConfig

    sizes = text_sizes(Sizes(), len(bert_tokenizer()), embedding_size=8, max_position_embeddings=32)
    model = load_backbone(beside_a_vit(AlbertConfig(**sizes), tmp_path))
    assert model.width == 8
    experiment = make_experiment(width=8, num_context=M, classes=CLASSES)
    examples = LabelledFeatures(torch.stack(list(model.image_features(images[:2]))), torch.tensor([0, 1]))
    assert model.scorer(experiment).gradients(torch.zeros(M, 8), examples, EXACT).any()
