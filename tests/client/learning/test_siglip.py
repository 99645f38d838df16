"""SigLIP and SigLIP 2: the context in the padded text, the sigmoid head, exact gradients, whole rounds."""

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


@pytest.fixture(scope="module")
def stock(folder):
    from transformers import AutoModel, AutoTokenizer

    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(6)]


@pytest.fixture(scope="module")
def examples(model, images):
    return LabelledFeatures(torch.stack(list(model.image_features(images))), torch.tensor([0, 1, 2, 0, 1, 2]))


def test_a_context_of_words_gives_the_models_own_probabilities(folder, stock, model, images, examples, make_experiment):
    """The context filled with a text's embeddings is that text before the class name, as Hugging Face computes it."""
    from transformers import AutoImageProcessor

    theirs, tokenizer = stock
    experiment = make_experiment(width=model.width, num_context=model.num_tokens("photo of"), classes=CLASSES)
    context = model.text_embeddings("photo of", experiment.prompt.num_context)
    ours = model.scorer(experiment).at(context).probabilities(examples.features)
    sentences = [f"photo of {name}." for name in CLASSES]
    ids = tokenizer(sentences, padding="max_length", max_length=16, return_tensors="pt")["input_ids"]
    inputs = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=images, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(input_ids=ids, **inputs).logits_per_image
    assert torch.allclose(ours, torch.sigmoid(logits), rtol=1e-4, atol=1e-6)
    with pytest.raises(ModelError, match="small red dog") as caught:
        model.class_tokens(CLASSES, 14)
    assert caught.value.code == "PROMPT_TOO_LONG"


def sigmoid_loss(stock, context, tokens, row, label):
    """The documented loss of one image against all classes, through Hugging Face's own text tower and autograd."""
    theirs, tokenizer = stock
    whole, word = tokenizer("dog")["input_ids"], tokenizer("dog", add_special_tokens=False)["input_ids"]
    begin = torch.tensor(whole[: whole.index(word[0])], dtype=torch.long).expand(len(tokens.ids), -1)
    place = slice(begin.shape[1], begin.shape[1] + len(context))
    ids = torch.cat([begin, torch.zeros(len(tokens.ids), len(context), dtype=torch.long), tokens.ids], dim=1)

    def put_in(module, given, out):
        return torch.cat([out[:, : place.start], context.expand(len(ids), -1, -1), out[:, place.stop :]], dim=1)

    handle = theirs.text_model.embeddings.token_embedding.register_forward_hook(put_in)
    try:
        text = theirs.text_model(input_ids=ids).pooler_output
    finally:
        handle.remove()
    logits = theirs.logit_scale.exp() * torch.nn.functional.normalize(text, dim=-1) @ row + theirs.logit_bias
    signs = -torch.ones(len(ids))
    signs[label] = 1.0
    return -torch.nn.functional.logsigmoid(signs * logits).sum()


def test_gradients_are_those_of_single_examples(stock, model, examples, make_experiment):
    scorer = model.scorer(make_experiment(width=model.width, num_context=M, classes=CLASSES))
    context = 0.3 * torch.randn(M, model.width, generator=torch.Generator().manual_seed(1))
    tokens, weights = model.class_tokens(CLASSES, M), torch.tensor([1.0, 0.5, 0.0, 1.0, 1.0, 1.0])
    total = torch.zeros_like(context)
    rows = scorer.gradients(context, examples, EXACT)
    for mine, row, label, weight in zip(rows, examples.features, examples.labels.tolist(), weights, strict=True):
        leaf = context.clone().requires_grad_(True)
        single = torch.autograd.grad(sigmoid_loss(stock, leaf, tokens, row, label), leaf)[0]
        assert float((mine - single).norm() / single.norm()) < 1e-4
        total += weight * single
    found = scorer.total_gradient(context, examples, weights)
    assert float((found - total).norm() / total.norm()) < 1e-4


@pytest.mark.parametrize("privacy", [{}, {"mechanism": "one_shot", "trust": "local"}])
def test_whole_rounds_have_finite_updates_and_accuracies_by_name(model, examples, make_experiment, privacy):
    experiment = make_experiment(width=model.width, num_context=M, classes=CLASSES, sites=2, **privacy)
    learner = PromptLearner(model, experiment, SiteFeatures(examples, examples, examples, CLASSES))
    state, shared = PersonalState.initial(experiment), np.zeros((M, model.width), np.float32)
    for number in (1, 2):
        result = learner.train_round(shared, state, SeededRandomness(0).for_round("s0", number))
        state = result.state
        assert np.isfinite(result.update).all()
    assert np.isfinite(state.context).all()
    metrics = learner.evaluate(shared, state.context)
    assert set(metrics) == {
        f"{who}_{where}" for who in ("personal", "global", "zero_shot") for where in ("local", "neighbour", "all")
    }
    assert all(0 <= value <= 1 for value in metrics.values())
