"""Evaluate a trained model on scikit-learn's digits, which training never sees.

`python -m research.embedded_models.clip_evaluate DIR` prints the figures of the model card.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from torch.nn import functional
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from research.embedded_models.clip_scenes import NUMBER_WORDS

__all__ = ["digit_images", "image_features", "main", "probe_accuracy", "text_features", "zero_shot_accuracy"]


def digit_images() -> tuple[list[Image.Image], np.ndarray]:
    """scikit-learn's 1,797 digits as 8 by 8 grey pictures (white on black), and their labels [1797]."""
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return [Image.fromarray(picture) for picture in pixels], np.asarray(digits.target)


@torch.no_grad()
def image_features(model: Any, processor: Any, images: list[Image.Image]) -> torch.Tensor:
    """Unit features [n, 96] of the images."""
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    seen = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    return functional.normalize(seen, dim=1)


@torch.no_grad()
def text_features(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Unit features [n, 96] of the texts."""
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    read = model.text_projection(model.text_model(**tokens).pooler_output)
    return functional.normalize(read, dim=1)


def zero_shot_accuracy(
    model: Any, tokenizer: Any, features: torch.Tensor, labels: np.ndarray, template: str = "a photo of a {}"
) -> float:
    """The share of digits whose nearest prompt is the right one, for features [n, 96] and labels [n]."""
    prompts = text_features(model, tokenizer, [template.format(word) for word in NUMBER_WORDS])  # [10, 96]
    guesses = (features @ prompts.T).argmax(dim=1).numpy()
    return float((guesses == labels).mean())


def probe_accuracy(features: torch.Tensor, labels: np.ndarray) -> float:
    """Mean accuracy of a logistic regression on the features [n, 96], five stratified folds, shuffled with seed 0."""
    probe = LogisticRegression(max_iter=2000, C=100.0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(cross_val_score(probe, features.numpy(), labels, cv=folds).mean())


def main() -> None:
    """Print the figures of a model's folder as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    folder = parser.parse_args().model
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images, labels = digit_images()
    features = image_features(model, CLIPImageProcessorPil.from_pretrained(folder), images)
    figures = {
        template: zero_shot_accuracy(model, tokenizer, features, labels, template)
        for template in ("a photo of a {}", "a photo of the digit {}", "a photo of the number {}", "{}")
    }
    print(json.dumps({"zero_shot": figures, "probe": probe_accuracy(features, labels)}, indent=2))


if __name__ == "__main__":
    main()
