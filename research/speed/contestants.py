"""One training step in every way that is compared, and what the step is of: a CLIP of ViT-B/16 shapes, random weights.

Random weights do the same arithmetic as trained ones; nothing has to be downloaded. Every contestant is made once and
then called: without privacy it gives the gradient of the context [m, width], with it those of single examples.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from dpfpl_client.models.class_scorer import label_against_rivals, loss_scales
from dpfpl_client.models.text_tower.fast import FastTextTower
from dpfpl_client.models.text_tower.plain import PlainPass, PlainTextTower
from dpfpl_client.models.text_tower.states import ClassTokens

__all__ = [
    "BOS",
    "EOS",
    "AutogradTower",
    "Problem",
    "SharedPrefixTextTower",
    "autograd",
    "expanded",
    "expanded_opacus",
    "fast",
    "make_problem",
    "padded",
    "private",
    "published_replica",
    "vit_b16",
]

BOS, EOS, POSITIONS = 49406, 49407, 77
NUM_CONTEXT: Final = 16
NAME_LENGTHS: Final = (3, 4, 5)
"""Tokens of a class name with full stop and EOS, in turn: most names in common data sets have one to three."""
AT_ONCE: Final = 64
Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Problem:
    """One step's input.

    Attributes:
        context: [16, width].
        tokens: the classes.
        features: unit image features [batch, feature size].
        labels: [batch].
        scale: the model's tau.
    """

    context: Tensor
    tokens: ClassTokens
    features: Tensor
    labels: Tensor
    scale: float

    @property
    def batch(self) -> int:
        """Number of examples."""
        return len(self.labels)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.tokens.lengths)

    @property
    def rows(self) -> int:
        """Tokens that any exact way must compute: the context once, every class's own."""
        return len(self.context) + int(self.tokens.lengths.sum())


def vit_b16(layers: int = 12, vocabulary: int = 49408, bos: int = BOS, eos: int = EOS) -> Any:
    """A CLIP with ViT-B/16's image tower, frozen, random; of its text tower so many layers."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": vocabulary, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
        "num_hidden_layers": layers, "projection_dim": 512, "bos_token_id": bos, "eos_token_id": eos,
    }  # fmt: skip
    image = {
        "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
        "image_size": 224, "patch_size": 16,
    }  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=512))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "logit" not in name:  # every layer passes on about as much as it gets
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    return model.eval().requires_grad_(False)


def make_problem(classes: int, batch: int, device: str = "cpu", lengths: Sequence[int] = NAME_LENGTHS) -> Problem:
    """Random classes of those lengths in turn, random images."""
    generator = torch.Generator().manual_seed(classes)
    names = [
        torch.randint(1000, 40000, (lengths[index % len(lengths)] - 1,), generator=generator).tolist()
        for index in range(classes)
    ]
    tokens = ClassTokens.build([[*name, EOS] for name in names], BOS)
    features = functional.normalize(torch.randn(batch, 512, generator=generator), dim=1)
    return Problem(
        context=(0.02 * torch.randn(NUM_CONTEXT, 512, generator=generator)).to(device),
        tokens=ClassTokens(tokens.ids.to(device), tokens.lengths.to(device), BOS),
        features=features.to(device),
        labels=torch.randint(classes, (batch,), generator=generator).to(device),
        scale=100.0,
    )


def published_replica(model: Any, problem: Problem) -> Step:
    """What the published code pays for: image tower at every step, prompts of 77 tokens, a copy of the model's state.

    Written by us after its description; a replica of the cost, not its code.
    """
    images = torch.zeros(problem.batch, 3, 224, 224, device=problem.context.device)
    text = autograd(PlainTextTower(model.text_model, model.text_projection), problem, padded(problem.tokens))

    def step() -> Tensor:
        model.get_image_features(pixel_values=images)
        gradient = text()
        copy.deepcopy(model.state_dict())
        return gradient

    return step


def padded(tokens: ClassTokens) -> ClassTokens:
    """The class prompts filled up to 77 tokens, as the library's tokenizer does it."""
    missing = POSITIONS - 1 - NUM_CONTEXT - tokens.ids.shape[1]
    ids = functional.pad(tokens.ids, (0, missing), value=int(tokens.ids[0, -1]))
    return ClassTokens(ids, tokens.lengths, tokens.bos_id)


def autograd(
    tower: Callable[[Tensor, ClassTokens], Tensor], problem: Problem, tokens: ClassTokens | None = None
) -> Step:
    """Without privacy, under autograd. Through ``SharedPrefixTextTower`` it is D, the unit of all ratios."""
    tokens = tokens or problem.tokens

    def step() -> Tensor:
        leaf = problem.context.clone().requires_grad_(True)
        unit = functional.normalize(tower(leaf, tokens), dim=-1)
        logits = problem.scale * problem.features @ unit.T
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, problem.labels, reduction="sum"), leaf)
        return gradient

    return step


def fast(tower: FastTextTower, problem: Problem) -> Step:
    """Ours without privacy: written out by hand."""

    def step() -> Tensor:
        text = tower.run(problem.context, problem.tokens)
        scales = loss_scales(text, problem.scale, problem.features, problem.labels)
        return text.pullback((scales.T @ problem.features)[None])[0]

    return step


def private(tower: Any, problem: Problem, *, coarse: bool = False, classes: int = 0) -> Step:
    """Single examples' gradients as in training, ours through ``FastTextTower``.

    Args:
        tower: what ``run``s a context and classes.
        problem: the step.
        coarse: round products to bfloat16.
        classes: take only so many of each example; 0 = all.
    """

    def step() -> Tensor:
        text = tower.run(problem.context, problem.tokens, singly=classes > 0)
        scales = loss_scales(text, problem.scale, problem.features, problem.labels)
        if 0 < classes < problem.classes:
            scales = label_against_rivals(scales, problem.labels, classes - 1)
        gradients: Tensor = text.rank_one_pullback(scales, problem.features, coarse=coarse, few=classes)
        return gradients

    return step


class SharedPrefixTextTower:
    """Text features of class prompts from a context, through the weights of a loaded ``CLIPTextModel``.

    Under the causal mask nothing before a class name depends on it, so keys and values of begin token and context are
    computed once, and every class adds only its own few tokens. Exact up to rounding.
    """

    def __init__(self, text_model: Any, text_projection: Any) -> None:
        self._embeddings = text_model.embeddings
        self._layers = text_model.encoder.layers
        self._final_norm = text_model.final_layer_norm
        self._projection = text_projection

    def __call__(self, context: Tensor, tokens: ClassTokens) -> Tensor:
        """Projected, not normalised, features [classes, feature_size] of a context [num_context, width]."""
        embed, positions = self._embeddings.token_embedding, self._embeddings.position_embedding.weight
        begin = embed(torch.tensor([tokens.bos_id], device=context.device))
        prefix_length = context.shape[0] + 1
        suffix_length = tokens.ids.shape[1]
        prefix = (torch.cat([begin, context]) + positions[:prefix_length])[None]  # [1, 1 + m, d]
        suffix = embed(tokens.ids) + positions[prefix_length : prefix_length + suffix_length]  # [C, L, d]
        prefix_mask = _causal(prefix_length, 0, prefix)
        suffix_mask = _causal(suffix_length, prefix_length, prefix)
        for layer in self._layers:
            prefix, keys, values = _layer(layer, prefix, None, None, prefix_mask)
            suffix, _, _ = _layer(layer, suffix, keys, values, suffix_mask)
        ends = suffix[
            torch.arange(len(suffix), device=suffix.device), tokens.lengths - 1
        ]  # [C, d], hidden state at EOS
        features: Tensor = self._projection(self._final_norm(ends))
        return features


def _layer(
    layer: Any, hidden: Tensor, shared_keys: Tensor | None, shared_values: Tensor | None, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One encoder layer on ``hidden`` [C, L, d], attending also to shared keys and values [1, heads, P, d / heads]."""
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden)
    shape = (*hidden.shape[:-1], -1, attention.head_dim)
    query = attention.q_proj(normed).view(shape).transpose(1, 2)
    keys = attention.k_proj(normed).view(shape).transpose(1, 2)
    values = attention.v_proj(normed).view(shape).transpose(1, 2)
    all_keys, all_values = keys, values
    if shared_keys is not None and shared_values is not None:
        all_keys = torch.cat([shared_keys.expand(len(hidden), -1, -1, -1), keys], dim=2)
        all_values = torch.cat([shared_values.expand(len(hidden), -1, -1, -1), values], dim=2)
    weights = functional.softmax(query @ all_keys.transpose(-1, -2) * attention.scale + mask, dim=-1)
    attended = (weights @ all_values).transpose(1, 2).reshape(hidden.shape)
    hidden = hidden + attention.out_proj(attended)
    hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return hidden, keys, values


def _causal(length: int, before: int, like: Tensor) -> Tensor:
    """Additive mask [length, before + length]: every position sees all ``before`` shared ones and its own past."""
    mask = like.new_full((length, before + length), float("-inf"))
    return mask.triu(diagonal=before + 1)


class AutogradTower(SharedPrefixTextTower):
    """Begin token and context once for all classes, under autograd: as it was before it was written out by hand."""

    def run(self, context: Tensor, tokens: ClassTokens, *, singly: bool = False) -> "AutogradPass":
        """A forward pass that can be pulled back; ``singly`` means nothing here."""
        with torch.enable_grad():
            leaf = context.detach().requires_grad_(True)
            return AutogradPass(leaf, self(leaf, tokens))


class AutogradPass(PlainPass):
    """A finished forward pass with its graph, pulled back for some examples at a time."""

    def pullback(self, cotangents: Tensor) -> Tensor:
        """Gradients [B, m, d] of ``sum(cotangents * unit features)`` for cotangents [B, classes, feature size]."""
        parts: list[Tensor] = []
        for part in torch.split(cotangents, AT_ONCE):
            parts += torch.autograd.grad(self._unit, self._leaf, part, is_grads_batched=True, retain_graph=True)
        return torch.cat(parts)

    def rank_one_pullback(self, scales: Tensor, directions: Tensor, *, coarse: bool = False, few: int = 0) -> Tensor:
        """The same for cotangents ``scales[b, c] * directions[b]``; there were no estimates."""
        return self.pullback(scales[:, :, None] * directions[:, None])


def expanded(model: Any, problem: Problem, examples: int | None = None) -> Step:
    """The naive way: the context repeated for each example, so batch times classes prompts, cut at the longest.

    Args:
        model: its text tower does the work.
        problem: the step.
        examples: only so many of the batch.
    """
    count = examples or problem.batch
    features, labels, tokens = problem.features[:count], problem.labels[:count], problem.tokens

    def step() -> Tensor:
        contexts = problem.context.expand(count, -1, -1).clone().requires_grad_(True)
        ids = torch.cat([torch.full((problem.classes, 1 + len(problem.context)), tokens.bos_id), tokens.ids], dim=1)
        ids = ids.repeat(count, 1).to(contexts.device)
        each = contexts[:, None].expand(-1, problem.classes, -1, -1).flatten(0, 1)

        def put_in(module: Any, given: Any, embedded: Tensor) -> Tensor:
            return torch.cat([embedded[:, :1], each, embedded[:, 1 + each.shape[1] :]], dim=1)

        handle = model.text_model.embeddings.token_embedding.register_forward_hook(put_in)
        try:
            pooled = model.text_model(input_ids=ids).pooler_output
        finally:
            handle.remove()
        unit = functional.normalize(model.text_projection(pooled), dim=-1).view(count, problem.classes, -1)
        logits = problem.scale * (unit @ features[:, :, None])[..., 0]
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, labels, reduction="sum"), contexts)
        return gradient

    return step


def expanded_opacus(model: Any, problem: Problem) -> Step:
    """The naive gradients as Opacus takes them: in ``grad_sample``, clipped and noised by its own optimizer."""
    from opacus.optimizers import DPOptimizer

    gradients = expanded(model, problem)

    def step() -> Tensor:
        parameter: Any = torch.nn.Parameter(problem.context.clone())
        sgd = torch.optim.SGD([parameter], lr=1.0)
        optimizer = DPOptimizer(sgd, noise_multiplier=1.0, max_grad_norm=0.1, expected_batch_size=problem.batch)
        parameter.grad_sample = gradients()
        optimizer.step()
        result: Tensor = parameter.detach()
        return result

    return step
