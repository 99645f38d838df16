"""Per-example gradients against a plain loop, and no example in another's row."""

import pytest
import torch

from dpfpl_client.models.class_scorer import label_against_rivals, per_example_gradients, total_gradient
from dpfpl_common.experiment import GradientSettings

NAMES = ("cat", "traffic light", "a very long class name", "dog")


def problem(backbone, dtype, batch=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    context = backbone.text_embeddings("a photo of a", 4)
    context = context + 0.1 * torch.randn(context.shape, generator=generator, dtype=torch.float64).to(dtype)
    features = torch.randn(batch, backbone.feature_size, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(len(NAMES), (batch,), generator=generator)
    return context, backbone.class_tokens(NAMES, 4), torch.nn.functional.normalize(features, dim=1), labels


def plain_gradient(backbone, context, features, labels):
    """Hugging Face's own forward on whole prompts, the context put in by a hook on the token embedding."""
    tokenizer = backbone._tokenizer
    prompts = [tokenizer(f"a photo of a {name}.")["input_ids"] for name in NAMES]
    longest = max(map(len, prompts))
    ids = torch.tensor([p + [tokenizer.eos_token_id] * (longest - len(p)) for p in prompts])
    leaf = context.clone().requires_grad_(True)

    def put_in(module, args, output):
        return torch.cat([output[:, :1], leaf.expand(len(output), -1, -1), output[:, 5:]], dim=1)

    handle = backbone._model.text_model.embeddings.token_embedding.register_forward_hook(put_in)
    try:
        text = backbone._model.get_text_features(input_ids=ids)
    finally:
        handle.remove()
    text = torch.nn.functional.normalize(getattr(text, "pooler_output", text), dim=-1)
    logits = backbone.logit_scale * features @ text.T
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    return leaf.grad


CASES = [("double_backbone", torch.float64, 1e-10), ("backbone", torch.float32, 1e-4)]


@pytest.fixture(params=CASES, ids=["float64", "float32"])
def case(request):
    name, dtype, tolerance = request.param
    return request.getfixturevalue(name), dtype, tolerance


def test_gradients_equal_a_loop_of_single_examples(case):
    backbone, dtype, tolerance = case
    context, tokens, features, labels = problem(backbone, dtype)
    ours = per_example_gradients(backbone, context, tokens, features, labels)
    assert ours.shape == (9, 4, backbone.width)
    assert ours.dtype == dtype
    for i in range(9):
        theirs = plain_gradient(backbone, context, features[i : i + 1], labels[i : i + 1])
        assert (ours[i] - theirs).norm() <= tolerance * theirs.norm()


def test_rows_sum_to_the_gradient_of_the_batch(case):
    backbone, dtype, tolerance = case
    context, tokens, features, labels = problem(backbone, dtype, batch=70)
    total = per_example_gradients(backbone, context, tokens, features, labels).sum(dim=0)
    theirs = plain_gradient(backbone, context, features, labels)
    assert (total - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.privacy
def test_changing_one_example_changes_its_own_row_only(case):
    backbone, dtype, _ = case
    context, tokens, features, labels = problem(backbone, dtype)
    before = per_example_gradients(backbone, context, tokens, features, labels)
    features[3], labels[3] = -features[3], (labels[3] + 1) % len(NAMES)
    after = per_example_gradients(backbone, context, tokens, features, labels)
    others = [i for i in range(9) if i != 3]
    assert torch.equal(before[others], after[others])
    assert not torch.allclose(before[3], after[3])


@pytest.mark.privacy
def test_leaving_one_example_out_leaves_the_other_rows(case):
    """Up to the rounding of another batch shape; docs/explanation/mechanism.md's note on rounding covers the rest."""
    backbone, dtype, tolerance = case
    context, tokens, features, labels = problem(backbone, dtype)
    whole = per_example_gradients(backbone, context, tokens, features, labels)
    without = per_example_gradients(backbone, context, tokens, features[1:], labels[1:])
    assert (whole[1:] - without).norm() <= tolerance / 10 * whole[1:].norm()


def test_an_empty_batch_gives_no_rows(backbone):
    context, tokens, features, labels = problem(backbone, torch.float32)
    result = per_example_gradients(backbone, context, tokens, features[:0], labels[:0])
    assert result.shape == (0, 4, backbone.width)


def test_the_models_weights_collect_no_gradient(backbone):
    per_example_gradients(backbone, *problem(backbone, torch.float32))
    assert all(p.grad is None and not p.requires_grad for p in backbone._model.parameters())


ESTIMATES = [
    GradientSettings(),
    GradientSettings(classes=2),
    GradientSettings(classes=3),
    GradientSettings(classes=2, precision="bfloat16"),
    GradientSettings(precision="bfloat16"),
]


def test_a_few_classes_are_the_label_and_its_strongest_rivals_and_still_sum_to_zero(double_backbone):
    backbone = double_backbone
    context, tokens, features, labels = problem(backbone, torch.float64)
    text = backbone.text_features(context, tokens)
    probabilities = torch.softmax(backbone.logit_scale * features @ text.T, dim=1)
    for count in (2, 3, len(NAMES), 7):
        kept = torch.zeros_like(probabilities)
        for row, label in enumerate(labels.tolist()):
            rivals = sorted(set(range(len(NAMES))) - {label}, key=lambda c: -float(probabilities[row, c]))
            for rival in rivals[: count - 1]:
                kept[row, rival] = backbone.logit_scale * probabilities[row, rival]
            kept[row, label] = -kept[row].sum()
        cotangents = kept[:, :, None] * features[:, None]
        theirs = backbone.text_pass(context, tokens).pullback(cotangents)
        ours = per_example_gradients(backbone, context, tokens, features, labels, GradientSettings(classes=count))
        assert ((ours - theirs).flatten(1).norm(dim=1) <= 1e-10 * theirs.flatten(1).norm(dim=1)).all()
    exact = per_example_gradients(backbone, context, tokens, features, labels)
    assert (ours - exact).norm() <= 1e-10 * exact.norm()


def test_rows_that_do_not_sum_to_zero_keep_the_labels_own_entry():
    """As a sigmoid's do, where every class is judged alone."""
    scales = torch.tensor([[0.1, -0.7, 0.3, 0.2], [-0.9, 0.4, 0.5, 0.6]])
    kept = label_against_rivals(scales, torch.tensor([1, 0]), 2, balanced=False)
    assert torch.equal(kept, torch.tensor([[0.0, -0.7, 0.3, 0.2], [-0.9, 0.0, 0.5, 0.6]]))


def test_two_of_many_classes_take_the_way_that_costs_two(double_backbone, monkeypatch):
    """The shortcut for a few classes is taken: it once was not, and the result was the same, only slower."""
    from dpfpl_client.models.text_tower import fast as text_pass

    taken = []
    shortcut = text_pass.few_classes_pullback
    monkeypatch.setattr(text_pass, "few_classes_pullback", lambda *a, **k: taken.append(1) or shortcut(*a, **k))
    given = problem(double_backbone, torch.float64)
    per_example_gradients(double_backbone, *given, GradientSettings(classes=2))
    assert taken
    per_example_gradients(double_backbone, *given)
    assert len(taken) == 1


def test_rounded_products_change_a_gradient_by_a_few_percent_at_most(backbone):
    given = problem(backbone, torch.float32, batch=40)
    exact = per_example_gradients(backbone, *given)
    for classes in (0, 4):
        rounded = per_example_gradients(backbone, *given, GradientSettings("bfloat16", classes))
        relative = (rounded - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
        assert relative.max() < 0.05
        assert relative.max() > 1e-6


@pytest.mark.privacy
@pytest.mark.parametrize("estimate", ESTIMATES, ids=str)
def test_an_estimate_is_a_function_of_its_own_example_alone(backbone, estimate):
    """What keeps the sensitivity of a sum of clipped rows: no row looks at another example."""
    context, tokens, features, labels = problem(backbone, torch.float32)
    before = per_example_gradients(backbone, context, tokens, features, labels, estimate)
    features[3], labels[3] = -features[3], (labels[3] + 1) % len(NAMES)
    after = per_example_gradients(backbone, context, tokens, features, labels, estimate)
    others = [i for i in range(9) if i != 3]
    assert torch.equal(before[others], after[others])
    assert not torch.allclose(before[3], after[3])
    without = per_example_gradients(backbone, context, tokens, features[:3], labels[:3], estimate)
    assert (without - before[:3]).norm() <= 1e-2 * before[:3].norm()


def test_the_total_is_the_weighted_sum_of_rows(case):
    backbone, dtype, tolerance = case
    context, tokens, features, labels = problem(backbone, dtype, batch=30)
    weights = torch.linspace(-1, 2, 30).to(dtype)
    weights[4] = 0.0
    rows = per_example_gradients(backbone, context, tokens, features, labels)
    features[4] = float("nan")  # of no weight, so absent
    total = total_gradient(backbone, context, tokens, features, labels, weights)
    expected = torch.tensordot(weights, rows, dims=1)
    assert (total - expected).norm() <= tolerance * expected.norm()


def test_a_total_of_nothing_is_zero(backbone):
    context, tokens, features, labels = problem(backbone, torch.float32)
    total = total_gradient(backbone, context, tokens, features[:0], labels[:0], torch.zeros(0))
    assert torch.equal(total, torch.zeros_like(context))
