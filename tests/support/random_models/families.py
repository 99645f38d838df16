"""A model of every known family with random weights, made on the spot: to prove loading, gradients and export offline.

The architectures are the installed transformers' own; only sizes are chosen here. Tokenizers are the embedded model's
with each family's special tokens added, or the family's own class learned from a few words; image processors are the
families' own with small images.
"""

from pathlib import Path
from typing import Any, Final

import torch

from random_models.encoders import ENCODERS
from random_models.generative import GENERATIVE
from random_models.parts import Sizes

__all__ = ["FAMILIES", "Sizes", "fill_randomly", "write_random_model"]

FAMILIES: Final = {**ENCODERS, **GENERATIVE}
"""By the model type of their config.json; behind a slash what their towers are, where a type says nothing of them."""

HEADS: Final = {"logit_scale": 2.0, "logit_bias": -3.0}
"""Of models that compare; published ones have about 4.6 and -16, which would leave probabilities of 0 and 1 only."""


def write_random_model(
    family: str, folder: Path, sizes: Sizes | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """A model of that family with random weights, stored as ``dtype``, in Hugging Face format; the folder again."""
    model, tokenizer, processor = FAMILIES[family](sizes or Sizes())
    fill_randomly(model, seed)
    for part in (model.to(dtype), tokenizer, processor):
        part.save_pretrained(folder)
    return folder


def fill_randomly(model: Any, seed: int) -> None:
    """Weights with which nothing of a model can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in HEADS:
                weight.fill_(HEADS[name])
            elif weight.ndim >= 2:
                weight.normal_(0.0, 1.5 * weight[0].numel() ** -0.5, generator=generator)
            else:  # biases and norms begin as zeros and ones, which hide what is left out
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
