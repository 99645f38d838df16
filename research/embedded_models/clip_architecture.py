"""The shape of the embedded model: a CLIP of about a million parameters, and its seeded start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

__all__ = ["CONTEXT_LENGTH", "IMAGE_SIZE", "VOCAB_SIZE", "new_model", "save_model"]

IMAGE_SIZE = 32
CONTEXT_LENGTH = 64
VOCAB_SIZE = 1200


def new_model(tokenizer: Any, generator: torch.Generator) -> CLIPModel:
    """An untrained model for this tokenizer; all its randomness comes from `generator`."""
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "projection_dim": 96,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "hidden_act": "gelu",
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "hidden_act": "gelu",
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
            "projection_dim": 96,
        },
        projection_dim=96,
    )
    model = CLIPModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name == "logit_scale":
                continue
            if weight.ndim >= 2:
                fan_in = weight[0].numel()
                stddev = 0.02 if "embedding.weight" in name and "patch" not in name else fan_in**-0.5
                weight.normal_(0.0, stddev, generator=generator)
            elif name.endswith("class_embedding"):
                weight.normal_(0.0, 0.02, generator=generator)
    return model


def save_model(model: CLIPModel, tokenizer: Any, folder: Path) -> None:
    """Write config, weights, tokenizer and image processor, as plain transformers classes load them."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(folder)
