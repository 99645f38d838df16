"""The fast tower against Hugging Face's own forward and a loop of single-example gradients, on random problems."""

import dataclasses
import logging
import random

import pytest
import torch
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

from dpfpl_client.learning.fast_tower import FastTextTower, MemoryPlan
from dpfpl_client.learning.plain_tower import PlainTextTower
from dpfpl_client.learning.text_tower import ClassTokens, SharedPrefixTextTower
from dpfpl_client.learning.tower_choice import text_tower_of

VOCABULARY, BOS, EOS = 120, 118, 119
TINY = MemoryPlan(chunk_rows=1, state_bytes=1, gradient_bytes=1, row_length=1)
FAMILY = [
    {"hidden_act": "quick_gelu", "num_hidden_layers": 1, "num_attention_heads": 1},
    {"hidden_act": "gelu", "num_hidden_layers": 2, "num_attention_heads": 4},
    {"hidden_act": "quick_gelu", "num_hidden_layers": 4, "num_attention_heads": 8, "projection_dim": 7},
    {"hidden_act": "gelu", "num_hidden_layers": 3, "num_attention_heads": 2, "eos_token_id": 2},
    {"hidden_act": "quick_gelu", "num_hidden_layers": 2, "hidden_size": 96, "intermediate_size": 56},
]
TOLERANCES = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-5, 1e-4)}


def text_model(dtype=torch.float64, seed=0, **settings):
    """A random model; legacy configurations (eos_token_id 2) take the largest id for the end of a prompt."""
    generator = torch.Generator().manual_seed(seed)
    chosen = {"eos_token_id": EOS, "projection_dim": 24, "hidden_size": 32, "intermediate_size": 48,
              "num_attention_heads": 4, "num_hidden_layers": 2, **settings}  # fmt: skip
    model = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=VOCABULARY, max_position_embeddings=60, bos_token_id=BOS, pad_token_id=EOS,
            attn_implementation="sdpa", **chosen,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 0.3 if "weight" in name else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size + ("norm" in name))
    return model.to(dtype).eval().requires_grad_(False)


def class_tokens(generator, count, longest=20):
    names = [[generator.randrange(3, BOS) for _ in range(generator.randint(1, longest))] for _ in range(count)]
    return ClassTokens.build([[*name, EOS] for name in names], BOS)


def relative(ours, theirs):
    """Largest relative error of the first axis' rows."""
    return float(((ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)).max())


def problem(seed, model, *, classes=None, batch=None):
    """Context, classes, and rank-one cotangents of a batch of examples."""
    generator = random.Random(seed)
    dtype = model.text_projection.weight.dtype
    torch_generator = torch.Generator().manual_seed(seed)
    count = classes or generator.choice([1, 2, 3, 5, 10, 40])
    tokens = class_tokens(generator, count, generator.choice([1, 3, 20]))
    m = generator.choice([1, 2, 4, 16])
    context = torch.randn((m, model.config.hidden_size), generator=torch_generator).to(dtype)
    batch = batch or generator.choice([1, 2, 5])
    scales = torch.randn((batch, count), generator=torch_generator).to(dtype)
    directions = torch.randn((batch, model.config.projection_dim), generator=torch_generator).to(dtype)
    return context, tokens, scales, directions


def check(model, tower, context, tokens, scales, directions):
    """Features and gradients, both pullbacks, against one autograd call for each example through the plain model."""
    of_features, of_gradients = TOLERANCES[context.dtype]
    plain = PlainTextTower(model.text_model, model.text_projection)
    ours, theirs = tower.run(context, tokens), plain.run(context, tokens)
    assert relative(ours.features, theirs.features) < of_features
    assert torch.equal(tower(context, tokens), ours.features)
    exact = theirs.rank_one_pullback(scales, directions)
    assert relative(ours.rank_one_pullback(scales, directions), exact) < of_gradients
    assert relative(ours.pullback(scales[:, :, None] * directions[:, None]), exact) < of_gradients
    few = max(1, scales.shape[1] // 3)
    exact = theirs.rank_one_pullback(scales, directions, few=few)
    one_by_one = tower.run(context, tokens, singly=True)
    assert relative(one_by_one.rank_one_pullback(scales, directions, few=few), exact) < of_gradients
    assert relative(ours.rank_one_pullback(scales, directions, few=few), exact) < of_gradients


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("config", FAMILY, ids=str)
@pytest.mark.parametrize("seed", range(6))
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
@pytest.mark.parametrize("seed", range(3))
def test_bounds_on_memory_change_no_result(plan, seed):
    model = text_model(seed=seed, num_hidden_layers=3)
    tower = FastTextTower(model.text_model, model.text_projection, BOS, plan=plan)
    check(model, tower, *problem(seed, model, classes=11, batch=5))


@pytest.mark.parametrize(("dtype", "classes"), [(torch.float64, 1000), (torch.float32, 1000), (torch.float64, 333)])
def test_many_classes(dtype, classes):
    model = text_model(dtype)
    tower = FastTextTower(model.text_model, model.text_projection, BOS, plan=MemoryPlan(state_bytes=2**22))
    check(model, tower, *problem(5, model, classes=classes, batch=3))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("seed", range(100, 300))
def test_many_random_problems(seed, dtype):
    generator = random.Random(seed)
    model = text_model(dtype, seed, **generator.choice(FAMILY))
    plan = MemoryPlan(
        chunk_rows=generator.choice([1, 64, 512]),
        state_bytes=2 ** generator.choice([10, 20, 27]),
        gradient_bytes=2 ** generator.choice([10, 16, 26]),
        row_length=generator.choice([1, 8, 16, 40]),
    )
    tower = FastTextTower(model.text_model, model.text_projection, BOS, plan=plan)
    check(model, tower, *problem(seed, model, classes=generator.choice([1, 4, 30, 100, 1000])))


def test_the_readable_tower_is_the_same_function():
    model = text_model(num_hidden_layers=3)
    context, tokens, scales, directions = problem(1, model)
    leaf = context.clone().requires_grad_(True)
    unit = torch.nn.functional.normalize(
        SharedPrefixTextTower(model.text_model, model.text_projection)(leaf, tokens), dim=-1
    )
    (theirs,) = torch.autograd.grad(unit, leaf, scales[:, :, None] * directions[:, None], is_grads_batched=True)
    ours = FastTextTower(model.text_model, model.text_projection, BOS).run(context, tokens)
    assert relative(ours.rank_one_pullback(scales, directions), theirs) < 1e-10


def test_coarse_products_stay_within_a_few_percent():
    model = text_model(torch.float32, num_hidden_layers=4)
    tower = FastTextTower(model.text_model, model.text_projection, BOS, coarse=True)
    context, tokens, scales, directions = problem(2, model)
    text = tower.run(context, tokens)
    exact = text.rank_one_pullback(scales, directions)
    rounded = text.rank_one_pullback(scales, directions, coarse=True)
    assert 1e-6 < relative(rounded, exact) < 0.03


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
