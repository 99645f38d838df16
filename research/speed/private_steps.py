"""One example-level private step, per-example gradients of the context, in several ways."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dpfpl_client.models.class_scorer import label_against_rivals, loss_scales
from dpfpl_client.models.text_tower.fast import FastTextTower
from dpfpl_client.models.text_tower.plain import PlainTextTower
from research.speed.autograd_tower import SharedPrefixTextTower
from research.speed.problem import Problem

__all__ = ["batched_autograd", "expanded", "expanded_opacus", "fast_private"]

Step = Callable[[], Tensor]


def expanded(model: Any, problem: Problem, examples: int | None = None) -> Step:
    """The naive way: the context repeated for each example, so batch times classes prompts, cut at the longest.

    Args:
        model: its text tower does the work.
        problem: the step.
        examples: only so many of the batch.
    """
    tower = PlainTextTower(model.text_model, model.text_projection)
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
            pooled = tower._text_model(input_ids=ids).pooler_output
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
        optimizer = DPOptimizer(
            torch.optim.SGD([parameter], lr=1.0),
            noise_multiplier=1.0,
            max_grad_norm=0.1,
            expected_batch_size=problem.batch,
        )
        parameter.grad_sample = gradients()
        optimizer.step()
        result: Tensor = parameter.detach()
        return result

    return step


def batched_autograd(model: Any, problem: Problem, chunk: int = 32) -> Step:
    """Shared prefix under autograd, vector-Jacobian products of the batch at once."""
    tower = SharedPrefixTextTower(model.text_model, model.text_projection)

    def step() -> Tensor:
        leaf = problem.context.clone().requires_grad_(True)
        unit = functional.normalize(tower(leaf, problem.tokens), dim=-1)
        scaled = problem.residual(unit.detach())
        parts: list[Tensor] = []
        for start in range(0, problem.batch, chunk):
            part = slice(start, start + chunk)
            cotangents = scaled[part, :, None] * problem.features[part, None, :]
            parts += torch.autograd.grad(unit, leaf, cotangents, is_grads_batched=True, retain_graph=True)
        return torch.cat(parts)

    return step


def fast_private(tower: FastTextTower, problem: Problem, *, coarse: bool = False, classes: int = 0) -> Step:
    """Ours, as in training; ``coarse`` rounds products to bfloat16, ``classes`` takes so many of each example."""

    def step() -> Tensor:
        text = tower.run(problem.context, problem.tokens, singly=classes > 0)
        scales = loss_scales(text, problem.scale, problem.features, problem.labels)
        if 0 < classes < problem.classes:
            scales = label_against_rivals(scales, problem.labels, classes - 1)
        return text.rank_one_pullback(scales, problem.features, coarse=coarse, few=classes)

    return step
