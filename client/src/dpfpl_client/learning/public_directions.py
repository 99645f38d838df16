"""Directions of the feature space that matter to a list of classes, from public facts alone.

An image's feature z acts on training only through its products with the class texts' features: the logits are
``z . T_c``, and the gradient is made of derivatives of T_c by the context. What z has outside the space that the T_c
sweep while the prompt moves does nothing. That space is found from the model, the class names and the initial text,
which are public, by looking at the text features under a few dozen random prompts around the initial one.
"""

import numpy as np
import numpy.typing as npt
import torch

from dpfpl_client.learning.dual_encoder import DualEncoder
from dpfpl_client.learning.text_tower import ClassTokens

__all__ = ["direction_count", "text_directions"]

Floats = npt.NDArray[np.float64]

SEED = 20240229
"""Of the public draw of prompts: the same directions at every site and after every restart."""

REACH = 2.0
"""How far the drawn prompts are from the initial one: standard deviation over the size of a token embedding's entry."""


def direction_count(num_classes: int, feature_size: int) -> int:
    """k: twice the classes, at least 16, at most the whole space."""
    return min(feature_size, max(16, 2 * num_classes))


def text_directions(backbone: DualEncoder, tokens: ClassTokens, initial: torch.Tensor, count: int) -> Floats:
    """The ``count`` leading directions of the class texts' features around the initial prompt.

    Args:
        backbone: the frozen model.
        tokens: the experiment's classes.
        initial: initial context, [num_context, width].
        count: k, at most the feature size.

    Returns:
        [count, feature_size], orthonormal rows; no image has any part in them.
    """
    generator = np.random.default_rng(SEED)
    size = float(initial.square().mean().sqrt())
    stddev = REACH * size if size > 0 else 0.02
    cloud = [backbone.text_features(initial, tokens)]
    rows = 0
    while rows < 4 * count:
        moved = torch.from_numpy(generator.normal(0.0, stddev, tuple(initial.shape))).to(initial)
        cloud.append(backbone.text_features(initial + moved, tokens))
        rows += len(cloud[-1])
    _, _, directions = np.linalg.svd(torch.cat(cloud).double().cpu().numpy(), full_matrices=False)
    return np.asarray(directions[:count])
