"""Two tiny models in Hugging Face format that ship with DP-FPL, for tests and demonstrations."""

from pathlib import Path

__all__ = ["EMBEDDED", "embedded_model_path"]

EMBEDDED = {"embedded": "clip", "embedded-vlm": "vlm"}
"""Names of models in settings, and their folders: a CLIP, and a LLaVA that answers questions about drawings."""


def embedded_model_path(name: str = "embedded") -> Path:
    """The folder inside the installed package that transformers loads; its MODEL_CARD.md says more."""
    return Path(__file__).resolve().parent / EMBEDDED[name]
