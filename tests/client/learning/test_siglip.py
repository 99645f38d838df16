"""SigLIP and SigLIP 2: the context in the padded text, the sigmoid head, exact gradients, whole rounds."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.class_scorer import EXACT
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import ModelError
from random_models.families import write_random_model

CLASSES = ("cat", "small red dog", "bird")
M = 4


@pytest.fixture(scope="module", params=["siglip", "siglip2"])
def folder(request, tmp_path_factory):
    return write_random_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def model(folder):
    return load_backbone(str(folder))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padding_is_on_the_side_that_the_tokenizer_says(folder, images, make_experiment, tmp_path, side):
    from transformers import AutoImageProcessor

    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps({**config, "padding_side": side}))
    theirs, tokenizer = stock(tmp_path / "model")
    model = load_backbone(str(tmp_path / "model"))
    m = model.num_tokens("a photo of a")
    context = model.text_embeddings("a photo of a", m)
    experiment = make_experiment(width=model.width, num_context=m, classes=CLASSES)
    ours = model.scorer(experiment).at(context).probabilities(torch.stack(list(model.image_features(images))))
    sentences = [f"a photo of a {name}." for name in CLASSES]
    ids = tokenizer(sentences, padding="max_length", max_length=16, return_tensors="pt")["input_ids"]
    inputs = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=images, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(input_ids=ids, **inputs).logits_per_image
    assert torch.allclose(ours, torch.sigmoid(logits), rtol=1e-4, atol=1e-6)


@pytest.fixture
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(6)]


@pytest.fixture
def examples(model, images):
    features = torch.stack(list(model.image_features(images)))
    return LabelledFeatures(features, torch.tensor([0, 1, 2, 0, 1, 2]))


def stock(folder):
    from transformers import AutoModel, AutoTokenizer

    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_a_context_of_words_gives_the_models_own_probabilities(folder, model, images, make_experiment):
    """The context filled with a text's embeddings is that text before the class name, as Hugging Face computes it."""
    from transformers import AutoImageProcessor

    theirs, tokenizer = stock(folder)
    experiment = make_experiment(width=model.width, num_context=model.num_tokens("photo of"), classes=CLASSES)
    context = model.text_embeddings("photo of", experiment.prompt.num_context)
    rows = torch.stack(list(model.image_features(images)))
    ours = model.scorer(experiment).at(context).probabilities(rows)

    sentences = [f"photo of {name}." for name in CLASSES]
    ids = tokenizer(sentences, padding="max_length", max_length=16, return_tensors="pt")["input_ids"]
    inputs = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=images, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(input_ids=ids, **inputs).logits_per_image
    assert torch.allclose(ours, torch.sigmoid(logits), rtol=1e-4, atol=1e-6)


def model_pads_right(tokens):
    return all(len(set(row[int(n) :].tolist())) <= 1 for row, n in zip(tokens.ids, tokens.lengths, strict=True))


def sigmoid_loss(stock, context, tokens, row, label):
    """The documented loss of one image against all classes, through Hugging Face's own text tower and autograd."""
    theirs, tokenizer = stock
    assert model_pads_right(tokens)
    whole, word = tokenizer("dog")["input_ids"], tokenizer("dog", add_special_tokens=False)["input_ids"]
    begin = torch.tensor(whole[: whole.index(word[0])], dtype=torch.long).expand(len(tokens.ids), -1)
    place = slice(begin.shape[1], begin.shape[1] + len(context))
    ids = torch.cat([begin, torch.zeros(len(tokens.ids), len(context), dtype=torch.long), tokens.ids], dim=1)
    embedding = theirs.text_model.embeddings.token_embedding
    handle = embedding.register_forward_hook(
        lambda module, given, out: torch.cat(
            [out[:, : place.start], context.expand(len(ids), -1, -1), out[:, place.stop :]], dim=1
        )
    )
    try:
        text = theirs.text_model(input_ids=ids).pooler_output
    finally:
        handle.remove()
    logits = theirs.logit_scale.exp() * torch.nn.functional.normalize(text, dim=-1) @ row + theirs.logit_bias
    signs = -torch.ones(len(ids))
    signs[label] = 1.0
    return -torch.nn.functional.logsigmoid(signs * logits).sum()


def test_gradients_are_those_of_single_examples(folder, model, examples, make_experiment):
    theirs = stock(folder)
    experiment = make_experiment(width=model.width, num_context=M, classes=CLASSES)
    context = 0.3 * torch.randn(M, model.width, generator=torch.Generator().manual_seed(1))
    scorer = model.scorer(experiment)
    ours = scorer.gradients(context, examples, EXACT)
    total = scorer.total_gradient(context, examples, torch.tensor([1.0, 0.5, 0.0, 1.0, 1.0, 1.0]))
    tokens = model.class_tokens(CLASSES, M)
    singles = []
    for row, label in zip(examples.features, examples.labels, strict=True):
        leaf = context.clone().requires_grad_(True)
        singles.append(torch.autograd.grad(sigmoid_loss(theirs, leaf, tokens, row, int(label)), leaf)[0])
    for mine, single in zip(ours, singles, strict=True):
        assert float((mine - single).norm() / single.norm()) < 1e-4
    weighted = sum(w * g for w, g in zip([1.0, 0.5, 0.0, 1.0, 1.0, 1.0], singles, strict=True))
    assert torch.allclose(total, weighted, rtol=1e-3, atol=1e-4 * float(weighted.norm()))
    assert scorer.gradients(context, examples.take(np.array([], dtype=np.int64)), EXACT).shape == (0, M, model.width)


def test_padding_takes_part(model):
    """The tower looks both ways and is read at its last position: cutting or sharing would not be the same function."""
    context = model.text_embeddings("photo of", M)
    whole = model.class_tokens(CLASSES, M)
    cut = dataclasses.replace(whole, ids=whole.ids[:, :-3])
    assert not torch.allclose(model.text_features(context, whole), model.text_features(context, cut), atol=1e-3)


@pytest.mark.parametrize("privacy", [{}, {"mechanism": "one_shot", "trust": "local"}])
def test_whole_rounds_move_both_parts(model, examples, make_experiment, privacy):
    experiment = make_experiment(width=model.width, num_context=M, classes=CLASSES, sites=2, **privacy)
    learner = PromptLearner(model, experiment, SiteFeatures(examples, examples, examples, CLASSES))
    state, shared = PersonalState.initial(experiment), np.zeros((M, model.width), np.float32)
    for number in (1, 2):
        result = learner.train_round(shared, state, SeededRandomness(0).for_round("s0", number))
        state = result.state
        assert result.update.shape == (M, model.width)
        assert np.isfinite(result.update).all()
    assert np.isfinite(state.context).all()
    metrics = learner.evaluate(shared, state.context)
    assert set(metrics) == {
        f"{who}_{where}" for who in ("personal", "global", "zero_shot") for where in ("local", "neighbour", "all")
    }
    assert all(0 <= value <= 1 for value in metrics.values())


def test_a_prompt_too_long_is_named(model):
    with pytest.raises(ModelError, match="small red dog") as caught:
        model.class_tokens(CLASSES, 14)
    assert caught.value.code == "PROMPT_TOO_LONG"


def test_the_head_is_not_a_softmax(model, examples, make_experiment):
    experiment = make_experiment(width=model.width, num_context=M, classes=CLASSES)
    found = model.scorer(experiment).at(model.text_embeddings("photo of", M)).probabilities(examples.features)
    assert not any(math.isclose(total, 1.0, abs_tol=1e-3) for total in found.sum(dim=1).tolist())
