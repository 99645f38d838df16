"""Random text models of the CLIP family, and random problems for them."""

import random

import torch
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

from dpfpl_client.models.text_tower.fast import MemoryPlan
from dpfpl_client.models.text_tower.states import ClassTokens

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
