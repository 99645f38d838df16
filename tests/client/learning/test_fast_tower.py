"""The fast tower against Hugging Face's own forward and a loop of single-example gradients, on random problems."""

import dataclasses
import logging
import random

import pytest
import torch
from text_models import BOS, EOS, FAMILY, TINY, TOLERANCES, problem, relative, text_model

from dpfpl_client.models.text_tower.choice import text_tower_of
from dpfpl_client.models.text_tower.fast import FastTextTower, MemoryPlan
from dpfpl_client.models.text_tower.plain import PlainTextTower
from dpfpl_client.models.text_tower.states import ClassTokens, pack


def check(model, tower, context, tokens, scales, directions):
    """Features and gradients, all pullbacks, against one autograd call for each example through the plain model.

    Returns the largest relative errors of features and of gradients.
    """
    of_features, of_gradients = TOLERANCES[context.dtype]
    plain = PlainTextTower(model.text_model, model.text_projection)
    ours, theirs = tower.run(context, tokens), plain.run(context, tokens)
    assert torch.equal(tower(context, tokens), ours.features)
    one_by_one = tower.run(context, tokens, singly=True)
    features = max(relative(each.features, theirs.features) for each in (ours, one_by_one))
    assert features < of_features
    exact = theirs.rank_one_pullback(scales, directions)
    errors = [
        relative(ours.rank_one_pullback(scales, directions), exact),
        relative(ours.pullback(scales[:, :, None] * directions[:, None]), exact),
    ]
    few = max(1, scales.shape[1] // 3)
    exact = theirs.rank_one_pullback(scales, directions, few=few)
    errors += [relative(each.rank_one_pullback(scales, directions, few=few), exact) for each in (ours, one_by_one)]
    assert max(errors) < of_gradients
    return features, max(errors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("config", FAMILY, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_random_models_equal_their_own_forward_and_a_loop_of_gradients(config, seed, dtype):
    model = text_model(dtype, seed, **config)
    tower = FastTextTower(model.text_model, model.text_projection, BOS)
    check(model, tower, *problem(seed, model))


@pytest.mark.parametrize(
    "plan",
    [
        TINY,
        dataclasses.replace(TINY, row_length=64),
        MemoryPlan(state_bytes=2**18, gradient_bytes=2**16, chunk_rows=50),
    ],
    ids=["one at a time", "long rows", "some at a time"],
)
def test_bounds_on_memory_change_no_result(plan):
    model = text_model(num_hidden_layers=3)
    tower = FastTextTower(model.text_model, model.text_projection, BOS, plan=plan)
    check(model, tower, *problem(0, model, classes=11, batch=5))


@pytest.mark.parametrize(("dtype", "classes"), [(torch.float32, 1000), (torch.float64, 333)])
def test_many_classes(dtype, classes):
    model = text_model(dtype)
    tower = FastTextTower(model.text_model, model.text_projection, BOS, plan=MemoryPlan(state_bytes=2**22))
    check(model, tower, *problem(5, model, classes=classes, batch=3))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("seed", range(100, 300))
def test_many_random_problems(seed, dtype, record_property):
    generator = random.Random(seed)
    model = text_model(dtype, seed, **generator.choice(FAMILY))
    plan = MemoryPlan(
        chunk_rows=generator.choice([1, 64, 512]),
        state_bytes=2 ** generator.choice([10, 20, 27]),
        gradient_bytes=2 ** generator.choice([10, 16, 26]),
        row_length=generator.choice([1, 8, 16, 40]),
    )
    tower = FastTextTower(model.text_model, model.text_projection, BOS, plan=plan)
    given = problem(seed, model, classes=generator.choice([1, 4, 30, 100, 1000]))
    features, gradients = check(model, tower, *given)
    record_property("errors", f"{features:.2e} {gradients:.2e}")  # pytest --junitxml shows them


NAMES = ["cat", "traffic light", "a", "the big brown old dog on a wet street", "x-ray 3", "Zürich"]


@pytest.mark.parametrize("text", ["a photo of a", "", "one two three four five six"])
@pytest.mark.parametrize(
    "names", [NAMES, ["cat"], [f"thing {i} of {i * 7}" for i in range(100)]], ids=["6", "1", "100"]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_embedded_model_equals_its_plain_forward(request, text, names, dtype, tolerance):
    """Whole sentences, as the tokenizer writes them, through the model's own ``get_text_features``."""
    backbone = request.getfixturevalue("double_backbone" if dtype == torch.float64 else "backbone")
    tokenizer = backbone.tokenizer
    prompts = [tokenizer(f"{text} {name}.".strip(), add_special_tokens=True)["input_ids"] for name in names]
    longest = max(map(len, prompts))
    ids = torch.tensor([p + [tokenizer.eos_token_id] * (longest - len(p)) for p in prompts])
    with torch.no_grad():
        theirs = backbone._model.get_text_features(input_ids=ids)
        theirs = torch.nn.functional.normalize(getattr(theirs, "pooler_output", theirs), dim=-1)
        count = backbone.num_tokens(text)
        context = backbone.text_embeddings(text, count)
        ours = backbone.text_features(context, backbone.class_tokens(names, count))
    assert ours.dtype == dtype
    assert relative(ours, theirs) < tolerance


def test_no_context_has_no_gradient():
    model = text_model()
    tower = FastTextTower(model.text_model, model.text_projection, BOS, plan=TINY)
    _, tokens, scales, directions = problem(3, model)
    text = tower.run(torch.zeros((0, 32), dtype=torch.float64), tokens)
    plain = PlainTextTower(model.text_model, model.text_projection)
    assert relative(text.features, plain(torch.zeros((0, 32), dtype=torch.float64), tokens)) < 1e-10
    assert text.rank_one_pullback(scales, directions).shape == (len(scales), 0, 32)


def choose(model):
    return text_tower_of(model.text_model, model.text_projection, BOS, EOS)


@pytest.mark.parametrize("config", FAMILY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_the_fast_tower_is_chosen_where_it_is_exact(config, dtype, caplog):
    assert isinstance(choose(text_model(dtype, **config)), FastTextTower)
    assert not caplog.records


def looks_ahead(model):
    """As SigLIP's text tower does: every token sees all others."""
    for layer in model.text_model.encoder.layers:
        forward = layer.self_attn.forward
        everything = {"attention_mask": None, "is_causal": False}
        layer.self_attn.forward = lambda *args, f=forward, e=everything, **kwargs: f(*args, **{**kwargs, **e})


def another_activation(model):
    model.text_model.config.hidden_act = "relu"
    for layer in model.text_model.encoder.layers:
        layer.mlp.activation_fn = torch.nn.ReLU()


def end_elsewhere(model):
    model.text_model.eos_token_id = 5


def doubled_attention(model):
    """A change that only shows in the numbers."""
    for layer in model.text_model.encoder.layers:
        layer.self_attn.register_forward_hook(lambda module, args, output: (2.0 * output[0], *output[1:]))


@pytest.mark.parametrize("change", [looks_ahead, another_activation, end_elsewhere, doubled_attention])
def test_other_models_are_run_as_they_are_with_a_line_in_the_log(change, caplog):
    model = text_model()
    change(model)
    with caplog.at_level(logging.WARNING):
        tower = choose(model)
    assert isinstance(tower, PlainTextTower)
    assert "not exact for this model" in caplog.text
    context, tokens, scales, directions = problem(4, model)
    assert tower.run(context, tokens).rank_one_pullback(scales, directions).shape == (len(scales), *context.shape)


# Packed rows hold every class once, whole, and let no token see another class.


@pytest.mark.parametrize("seed", range(20))
def test_every_class_once_whole_and_alone(seed):
    generator = random.Random(seed)
    suffixes = [
        [*(generator.randrange(3, 90) for _ in range(generator.randint(0, 20))), 99]
        for _ in range(generator.choice([1, 2, 7, 100]))
    ]
    packed = pack(ClassTokens.build(suffixes, 98), generator.choice([1, 16, 64]))
    rows = len(packed.ids)
    seen = []
    for row in range(rows):
        for place, index in enumerate(packed.class_of_end[row].tolist()):
            if index < 0:
                continue
            end = int(packed.ends[row, place])
            start = end + 1 - len(suffixes[index])
            seen.append(index)
            assert packed.ids[row, start : end + 1].tolist() == suffixes[index]
            assert packed.places[row, start : end + 1].tolist() == list(range(len(suffixes[index])))
            for query in range(start, end + 1):
                assert packed.allowed[row, query].nonzero().flatten().tolist() == list(range(start, query + 1))
    assert sorted(seen) == list(range(len(suffixes)))
    assert torch.all(packed.allowed.any(dim=2))


def test_little_room_is_wasted():
    suffixes = [[7] * (2 + index % 3) for index in range(100)]
    packed = pack(ClassTokens.build(suffixes, 98))
    assert packed.ids.numel() < 1.1 * sum(map(len, suffixes))


def test_rows_are_of_the_length_that_leaves_the_least_unfilled():
    suffixes = [[7] * (3 + index % 3) for index in range(10)]  # 39 tokens: three rows of 13, not of 16
    assert tuple(pack(ClassTokens.build(suffixes, 98)).ids.shape) == (3, 13)


def test_some_rows_know_how_they_were_laid_out():
    packed = pack(ClassTokens.build([[7] * (2 + index % 3) for index in range(9)], 98), singly=True)
    assert packed.part(slice(2, 5)).singly
    chosen = packed.of_rows(torch.tensor([3, 3, 1]))
    assert chosen.class_of_end.flatten().tolist() == [3, 3, 1]
    assert packed.classes == packed.part(slice(0, 1)).classes == chosen.classes == 9


def test_a_layout_serves_other_tokens_of_the_same_lengths():
    for token in (7, 8):
        packed = pack(ClassTokens.build([[token] * 3, [token]], 98))
        assert set(packed.ids.flatten().tolist()) == {token}


def test_tokens_are_padded_with_eos():
    tokens = ClassTokens.build([[5, 9], [5, 6, 7, 9]], 8)
    assert tokens.ids.tolist() == [[5, 9, 9, 9], [5, 6, 7, 9]]
    assert (tokens.lengths.tolist(), tokens.bos_id) == ([2, 4], 8)
