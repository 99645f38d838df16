"""P12: nothing in the model or around it lets one example into another's gradient."""

import contextlib

import pytest
import torch

from dpfpl_client.models.class_scorer import per_example_gradients
from dpfpl_client.models.text_tower.plain import PlainTextTower

pytestmark = pytest.mark.privacy

NAMES = ("cat", "traffic light", "a very long class name", "dog")
MODES = {
    "plain": contextlib.nullcontext,
    "gradients on around it": torch.enable_grad,
    "without oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
}


def problem(backbone, batch=9):
    generator = torch.Generator().manual_seed(0)
    context = backbone.text_embeddings("a photo of a", 4)
    context = context + 0.1 * torch.randn(context.shape, generator=generator)
    features = torch.nn.functional.normalize(torch.randn(batch, backbone.feature_size, generator=generator), dim=1)
    return context, backbone.class_tokens(NAMES, 4), features, torch.randint(len(NAMES), (batch,), generator=generator)


def reference(backbone, context, tokens, features, labels):
    """One example at a time, by autograd on the loss itself, through Hugging Face's own forward."""
    leaf = context.detach().clone().requires_grad_(True)
    tower = PlainTextTower(backbone._model.text_model, backbone._model.text_projection)
    text = torch.nn.functional.normalize(tower(leaf, tokens), dim=-1)
    torch.nn.functional.cross_entropy(backbone.logit_scale * features @ text.T, labels, reduction="sum").backward()
    return leaf.grad


def test_P12_the_model_has_no_layer_that_mixes_examples_and_none_that_is_random(backbone):
    modules = list(backbone._model.modules())
    assert not any(isinstance(module, torch.nn.modules.batchnorm._NormBase) for module in modules)
    assert not any(module.training for module in modules), "dropout must be off"
    assert not any(parameter.requires_grad for parameter in backbone._model.parameters())


@pytest.mark.parametrize("batch", [1, 9, 64, 65])
@pytest.mark.parametrize("mode", MODES)
def test_P12_every_row_is_the_gradient_of_its_own_example(backbone, mode, batch):
    context, tokens, features, labels = problem(backbone, batch)
    with MODES[mode]():
        rows = per_example_gradients(backbone, context, tokens, features, labels)
    for i in {0, batch // 2, batch - 1}:
        expected = reference(backbone, context, tokens, features[i : i + 1], labels[i : i + 1])
        assert (rows[i] - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("mode", MODES)
def test_P12_another_examples_image_label_and_size_change_no_bit_of_a_row(backbone, mode):
    context, tokens, features, labels = problem(backbone)
    others = [i for i in range(len(labels)) if i != 3]
    with MODES[mode]():
        before = per_example_gradients(backbone, context, tokens, features, labels)
        for factor in (-1.0, 1e6, 0.0, float("nan"), float("inf")):
            changed, relabelled = features.clone(), labels.clone()
            changed[3] *= factor
            relabelled[3] = (relabelled[3] + 1) % len(NAMES)
            after = per_example_gradients(backbone, context, tokens, changed, relabelled)
            assert torch.equal(before[others], after[others]), factor


def test_P12_nothing_accumulates_from_call_to_call(backbone):
    given = problem(backbone)
    first = per_example_gradients(backbone, *given)
    assert torch.equal(first, per_example_gradients(backbone, *given))
    assert given[0].grad is None
