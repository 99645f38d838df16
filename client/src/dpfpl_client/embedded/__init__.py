"""The embedded model: a tiny CLIP in Hugging Face format that ships with this package, for tests and demonstrations."""

from __future__ import annotations

from pathlib import Path

__all__ = ["embedded_model_path"]


def embedded_model_path() -> Path:
    """The folder inside the installed package that `CLIPModel.from_pretrained` loads; its MODEL_CARD.md says more."""
    return Path(__file__).resolve().parent / "model"
