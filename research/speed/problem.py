"""What the contestants compute: a CLIP of ViT-B/16 shapes with random weights, class prompts, a batch of images.

Random weights do the same arithmetic as trained ones; nothing has to be downloaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from dpfpl_client.models.text_tower.states import ClassTokens

__all__ = ["BOS", "EOS", "NAME_LENGTHS", "Problem", "fill_randomly", "make_model", "make_problem"]

BOS, EOS, POSITIONS = 49406, 49407, 77
NUM_CONTEXT: Final = 16
NAME_LENGTHS: Final = (3, 4, 5)
"""Tokens of a class name with full stop and EOS, in turn: most names in common data sets have one to three."""


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

    def residual(self, unit: Tensor) -> Tensor:
        """tau (softmax - onehot) [batch, classes] for unit text features [classes, feature size]."""
        residual = torch.softmax(self.scale * self.features @ unit.T, dim=1)
        residual[torch.arange(self.batch), self.labels] -= 1.0
        return self.scale * residual


def make_model(device: str = "cpu", vision: bool = True) -> Any:
    """A CLIP ViT-B/16 (or its text half with projection), frozen, random."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

    text = {
        "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
        "num_hidden_layers": 12, "projection_dim": 512, "bos_token_id": BOS, "eos_token_id": EOS,
    }  # fmt: skip
    if vision:
        image = {
            "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
            "image_size": 224, "patch_size": 16,
        }  # fmt: skip
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=512))
    else:
        model = CLIPTextModelWithProjection(CLIPTextConfig(**text))
    fill_randomly(model)
    return model.eval().requires_grad_(False).to(device)


def fill_randomly(model: Any) -> None:
    """Weights with which every layer passes on about as much as it gets."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "logit" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)


def make_problem(classes: int, batch: int, device: str = "cpu", lengths: Sequence[int] = NAME_LENGTHS) -> Problem:
    """Random classes of those lengths in turn, random images."""
    generator = torch.Generator().manual_seed(classes)
    names = [
        torch.randint(1000, 40000, (lengths[index % len(lengths)] - 1,), generator=generator).tolist()
        for index in range(classes)
    ]
    tokens = ClassTokens.build([[*name, EOS] for name in names], BOS)
    tokens = ClassTokens(tokens.ids.to(device), tokens.lengths.to(device), BOS)
    features = torch.nn.functional.normalize(torch.randn(batch, 512, generator=generator), dim=1)
    return Problem(
        context=(0.02 * torch.randn(NUM_CONTEXT, 512, generator=generator)).to(device),
        tokens=tokens,
        features=features.to(device),
        labels=torch.randint(classes, (batch,), generator=generator).to(device),
        scale=100.0,
    )
