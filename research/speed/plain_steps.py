"""One step without privacy, forward and backward to the context, in five ways."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dpfpl_client.models.text_tower.fast import FastTextTower
from dpfpl_client.models.text_tower.plain import PlainTextTower
from dpfpl_client.models.text_tower.states import ClassTokens
from research.speed.autograd_tower import SharedPrefixTextTower
from research.speed.problem import POSITIONS, Problem

__all__ = ["fast", "hugging_face", "published_replica", "shared_prefix", "truncated"]

Step = Callable[[], Tensor]


def published_replica(model: Any, problem: Problem) -> Step:
    """What the published code pays for: image tower at every step, prompts of 77 tokens, a copy of the model's state.

    Written by us after its description; a replica of the cost, not its code.
    """
    images = torch.zeros(problem.batch, 3, 224, 224, device=problem.context.device)
    text = hugging_face(model, problem)

    def step() -> Tensor:
        features = model.get_image_features(pixel_values=images)
        getattr(features, "pooler_output", features)
        gradient = text()
        copy.deepcopy(model.state_dict())
        return gradient

    return step


def hugging_face(model: Any, problem: Problem) -> Step:
    """The library's text tower on prompts padded to 77 tokens; image features cached."""
    tokens = problem.tokens
    missing = POSITIONS - 1 - len(problem.context) - tokens.ids.shape[1]
    padded = functional.pad(tokens.ids, (0, missing), value=int(tokens.ids[0, -1]))
    return _autograd(
        PlainTextTower(model.text_model, model.text_projection),
        problem,
        ClassTokens(padded, tokens.lengths, tokens.bos_id),
    )


def truncated(model: Any, problem: Problem) -> Step:
    """The same, cut at the longest class prompt."""
    return _autograd(PlainTextTower(model.text_model, model.text_projection), problem, problem.tokens)


def shared_prefix(model: Any, problem: Problem) -> Step:
    """Begin token and context once for all classes, under autograd: the unit D of all ratios."""
    return _autograd(SharedPrefixTextTower(model.text_model, model.text_projection), problem, problem.tokens)


def fast(tower: FastTextTower, problem: Problem) -> Step:
    """Ours: written out by hand."""

    def step() -> Tensor:
        text = tower.run(problem.context, problem.tokens)
        unit = functional.normalize(text.features, dim=-1)
        return text.pullback((problem.residual(unit).T @ problem.features)[None])[0]

    return step


def _autograd(tower: Callable[[Tensor, ClassTokens], Tensor], problem: Problem, tokens: ClassTokens) -> Step:
    def step() -> Tensor:
        leaf = problem.context.clone().requires_grad_(True)
        unit = functional.normalize(tower(leaf, tokens), dim=-1)
        logits = problem.scale * problem.features @ unit.T
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, problem.labels, reduction="sum"), leaf)
        return gradient

    return step
