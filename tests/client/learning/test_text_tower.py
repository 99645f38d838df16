"""The shared prefix gives what Hugging Face's own forward gives for the whole prompts."""

import pytest
import torch
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

from dpfpl_client.models.text_tower.shared_prefix import ClassTokens, SharedPrefixTextTower


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


NAMES = ["cat", "traffic light", "a", "the big brown old dog on a wet street", "x-ray 3", "Zürich"]


@pytest.mark.parametrize("text", ["a photo of a", "", "one two three four five six"])
@pytest.mark.parametrize(
    "names", [NAMES, ["cat"], [f"thing {i} of {i * 7}" for i in range(100)]], ids=["6", "1", "100"]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_embedded_model_equals_its_plain_forward(request, text, names, dtype, tolerance):
    backbone = request.getfixturevalue("double_backbone" if dtype == torch.float64 else "backbone")
    tokenizer = backbone._tokenizer
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


CONFIGS = [
    {"hidden_act": "quick_gelu", "num_hidden_layers": 1, "num_attention_heads": 1},
    {"hidden_act": "gelu", "num_hidden_layers": 2, "num_attention_heads": 4},
    {"hidden_act": "quick_gelu", "num_hidden_layers": 4, "num_attention_heads": 8, "projection_dim": 7},
    {"hidden_act": "gelu", "num_hidden_layers": 3, "num_attention_heads": 2, "eos_token_id": 2},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(
    ("attention", "dtype", "tolerance"),
    # No eager in float64: Hugging Face's eager softmax is float32 always.
    [("sdpa", torch.float64, 1e-10), ("sdpa", torch.float32, 1e-5), ("eager", torch.float32, 1e-5)],
)
def test_random_models_equal_their_plain_forward(config, dtype, tolerance, attention):
    """Several depths, heads, activations, both ways Hugging Face finds EOS (2 stands for the largest id)."""
    generator = torch.Generator().manual_seed(4)
    settings = {"eos_token_id": 99, "projection_dim": 16, **config}
    model = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=100, hidden_size=32, intermediate_size=48, max_position_embeddings=40, bos_token_id=98,
            pad_token_id=99, attn_implementation=attention, **settings,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model = model.to(dtype).eval()
    lengths = [1, 2, 20, 7, 7, 1, 13]
    # EOS is the largest id whichever rule the model follows.
    names = [torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths]
    context_ids = torch.randint(3, 97, (5,), generator=generator).tolist()
    longest = max(lengths)
    ids = torch.tensor([[98, *context_ids, *name, *[99] * (longest - len(name) + 1)] for name in names])
    with torch.no_grad():
        theirs = model(input_ids=ids).text_embeds
        tower = SharedPrefixTextTower(model.text_model, model.text_projection)
        context = model.text_model.embeddings.token_embedding(torch.tensor(context_ids))
        ours = tower(context, ClassTokens.build([[*name, 99] for name in names], 98))
    assert relative(ours, theirs) < tolerance


def test_a_class_does_not_see_the_others(double_backbone):
    context = double_backbone.text_embeddings("a photo of a", 4)
    together = double_backbone.text_features(context, double_backbone.class_tokens(NAMES, 4))
    for i, name in enumerate(NAMES):
        alone = double_backbone.text_features(context, double_backbone.class_tokens([name], 4))
        assert relative(alone[0], together[i]) < 1e-12


def test_tokens_are_padded_with_eos():
    tokens = ClassTokens.build([[5, 9], [5, 6, 7, 9]], 8)
    assert tokens.ids.tolist() == [[5, 9, 9, 9], [5, 6, 7, 9]]
    assert (tokens.lengths.tolist(), tokens.bos_id) == ([2, 4], 8)
