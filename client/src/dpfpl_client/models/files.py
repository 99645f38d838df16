"""A model's files: where they are, what they say they are, what identifies them, and loading them safely."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from dpfpl_client.embedded import EMBEDDED, embedded_model_path
from dpfpl_common.errors import ModelError

__all__ = ["feature_identity", "load_image_processor", "load_parts", "model_fingerprint", "model_folder", "model_type"]

WEIGHT_FILES = ("*.safetensors",)
CONFIG_FILES = ("*.json", "*.txt", "*.jinja", "*.model")
IDENTIFYING = (*WEIGHT_FILES, *CONFIG_FILES)

T = TypeVar("T")


def model_folder(model: str, *, offline: bool) -> Path:
    """The folder of an embedded model, of a path, or of a hub id (from the local cache where ``offline``).

    Raises:
        ModelError: MODEL_NOT_FOUND.
    """
    if model in EMBEDDED:
        return embedded_model_path(model)
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=offline, allow_patterns=[*WEIGHT_FILES, *CONFIG_FILES]))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        raise ModelError(
            code="MODEL_NOT_FOUND",
            message=f"{model!r} is neither a folder nor a model that can be reached.",
            advice="Give a folder, or a hub id on a machine with a network (or with the model in its local cache).",
        ) from None


def model_type(folder: Path) -> str:
    """The family that the model's own config.json names.

    Raises:
        ModelError: NO_MODEL_CONFIG or NO_SAFETENSORS.
    """
    try:
        family = str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            code="NO_MODEL_CONFIG",
            message=f"{folder} holds no readable config.json ({type(error).__name__}).",
            advice="Give a folder in Hugging Face format: config.json, *.safetensors, tokenizer, preprocessor.",
        ) from None
    return family


def model_fingerprint(folder: Path) -> str:
    """sha256 over weights, configuration and tokenizer; two sites with the same one have the same model."""
    digest = hashlib.sha256()
    names = sorted(path for pattern in IDENTIFYING for path in folder.glob(pattern) if path.is_file())
    for path in names:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(path.name.encode() + b"\0" + content)
    return digest.hexdigest()


def feature_identity(fingerprint: str, image_processor: Any, *more: object) -> str:
    """sha256 over all that image features depend on beside the image: model, preprocessing, whatever else is named."""
    preprocessing = json.dumps(image_processor.to_dict(), sort_keys=True, default=str)
    parts = [fingerprint, preprocessing, *map(str, more)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def load_parts(
    folder: Path, model_class: Any, processor: Callable[[Path], T], device: torch.device, **options: Any
) -> tuple[Any, Any, T]:
    """Model, tokenizer and image processor of a folder; no code of the folder runs, no weight is made up.

    Args:
        folder: in Hugging Face format.
        model_class: of transformers, with ``from_pretrained``.
        processor: makes the image processor from the folder.
        device: where the model goes.
        options: for the model's ``from_pretrained``.

    Raises:
        ModelError: NO_SAFETENSORS, MODEL_DOES_NOT_LOAD or MODEL_TOO_LARGE.
    """
    from safetensors import SafetensorError
    from transformers import AutoTokenizer
    from transformers.utils import logging

    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            code="NO_SAFETENSORS",
            message=f"{folder} holds no .safetensors weights; other formats are never loaded.",
            advice="Convert the weights to safetensors.",
        )
    logging.disable_progress_bar()
    try:
        model, report = model_class.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        images = processor(folder)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        _does_not_load(
            f"The model in {folder} does not load: {reason}",
            "Check that weights, tokenizer and preprocessor belong together.",
        )
    if report["missing_keys"]:  # transformers would go on with random weights in their place
        _does_not_load(
            f"The weights in {folder} lack {len(report['missing_keys'])} tensors, for instance "
            f"{min(report['missing_keys'])}.",
            "Download or export the model again.",
        )
    try:
        return model.to(device), tokenizer, images
    except torch.OutOfMemoryError:
        raise ModelError(
            code="MODEL_TOO_LARGE",
            message=f"The model in {folder} does not fit the memory of {device}.",
            advice='Use a smaller model, precision = "bfloat16" for a generative one, or device = "cpu".',
        ) from None


def load_image_processor(folder: Path) -> Any:
    """The folder's own image processor, computed by PIL so that all sites get the same pixels."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False, backend="pil")


def _does_not_load(message: str, advice: str) -> NoReturn:
    raise ModelError(code="MODEL_DOES_NOT_LOAD", message=message, advice=advice) from None
