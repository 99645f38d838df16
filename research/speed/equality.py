"""How exactly the fast tower is the library's own, on one random model of ViT-B/16 shapes with few layers."""

from collections.abc import Callable
from typing import Any

import torch

from dpfpl_client.models.text_tower.fast import FastTextTower
from dpfpl_client.models.text_tower.plain import PlainTextTower
from research.speed.problem import BOS, make_model, make_problem

__all__ = ["measure_equality"]

LIMITS = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-5, 1e-4)}


def measure_equality(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Largest relative errors of features and single examples' gradients against a plain forward and a loop."""
    say("equality with the plain forward")
    rows = []
    for dtype, limits in LIMITS.items():
        model = make_model(vision=False).to(dtype)
        problem = make_problem(10, 4)
        context, features = problem.context.to(dtype), problem.features.to(dtype)
        ours = FastTextTower(model.text_model, model.text_projection, BOS).run(context, problem.tokens)
        theirs = PlainTextTower(model.text_model, model.text_projection).run(context, problem.tokens)
        unit = torch.nn.functional.normalize(theirs.features, dim=-1)
        scales = problem.scale * torch.softmax(problem.scale * features @ unit.T, dim=1)
        scales[torch.arange(4), problem.labels] -= problem.scale
        pairs = (
            ("features", ours.features, theirs.features),
            ("gradients", ours.rank_one_pullback(scales, features), theirs.rank_one_pullback(scales, features)),
        )
        for (what, a, b), limit in zip(pairs, limits, strict=True):
            error = float(((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max())
            rows.append({"name": f"{what} in {str(dtype).removeprefix('torch.')}", "error": error, "limit": limit})
    return rows
