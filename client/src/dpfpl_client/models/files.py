"""A model's files: where they are, what they say they are, what identifies them, and loading them safely."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from dpfpl_client.models.folder import DESCRIPTIONS, WEIGHTS, identifying_files
from dpfpl_common.errors import ModelError
from dpfpl_common.ops.text import first_line
from dpfpl_models import EMBEDDED, embedded_model_path

__all__ = [
    "does_not_load", "feature_identity", "load_image_processor", "load_parts", "model_fingerprint", "model_folder",
]  # fmt: skip

T = TypeVar("T")

LAYER: Final = re.compile(r"\.layers?\.\d+\.|\.blocks\.\d+\.")
"""In the name of a tensor that belongs to a layer of a tower."""

PACKAGES: Final = {"SentencePiece": "sentencepiece", "protobuf": "protobuf", "tiktoken": "tiktoken"}
"""How transformers calls packages in its messages, and how they are installed."""


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
        return Path(snapshot_download(model, local_files_only=offline, allow_patterns=[*WEIGHTS, *DESCRIPTIONS]))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        raise ModelError(
            code="MODEL_NOT_FOUND",
            message=f"{model!r} is neither a folder nor a model that can be reached.",
            advice="Give a folder, or a hub id on a machine with a network (or with the model in its local cache).",
        ) from None


def model_fingerprint(folder: Path) -> str:
    """sha256 over weights, configuration and tokenizer; two sites with the same one have the same model."""
    digest = hashlib.sha256()
    for path in identifying_files(folder):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
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
        folder: in Hugging Face format, found sound by ``refuse_broken``.
        model_class: of transformers, with ``from_pretrained``.
        processor: makes the image processor from the folder.
        device: where the model goes.
        options: for the model's ``from_pretrained``.

    Raises:
        ModelError: PACKAGE_MISSING, MODEL_DOES_NOT_LOAD, TOKENIZER_DOES_NOT_LOAD, PREPROCESSOR_DOES_NOT_LOAD,
            WEIGHTS_INCOMPLETE, WEIGHTS_DO_NOT_FIT, WEIGHTS_NOT_FINITE or MODEL_TOO_LARGE.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    # Tensors of other shapes are reported, and refused below; left alone, transformers names none of them.
    options |= {"local_files_only": True, "use_safetensors": True, "ignore_mismatched_sizes": True}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what does not fit is said once, by us
    try:
        model, report = _part(
            folder,
            "config.json and the weights",
            "MODEL_DOES_NOT_LOAD",
            lambda: model_class.from_pretrained(folder, output_loading_info=True, **options),
        )
    finally:
        logging.set_verbosity(verbosity)
    _refuse_other_weights(folder, report)
    _refuse_not_finite(folder, model)
    tokenizer = _part(
        folder,
        "the tokenizer's files",
        "TOKENIZER_DOES_NOT_LOAD",
        lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
    )
    images = _part(folder, "preprocessor_config.json", "PREPROCESSOR_DOES_NOT_LOAD", lambda: processor(folder))
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


def does_not_load(folder: Path, files: str, error: Exception, code: str = "MODEL_DOES_NOT_LOAD") -> ModelError:
    """What a library raised over a folder, as an error of ours: it names the files in question, or the package."""
    if isinstance(error, ImportError):
        package = _package(error)
        return ModelError(
            code="PACKAGE_MISSING",
            message=f"The model in {folder} needs the package {package}, which is not installed.",
            advice=f"pip install {package}",
        )
    reason = first_line(error, 300).rstrip(".")
    return ModelError(
        code=code,
        message=f"The model in {folder} does not load, because of {files}: {reason}.",
        advice="Download these files again, or take those that belong to this model.",
    )


def _part(folder: Path, files: str, code: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # noqa: BLE001  a damaged file makes libraries raise anything
        raise does_not_load(folder, files, error, code) from None


def _package(error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.partition(".")[0]
    if isinstance(error.__cause__, ImportError):
        return _package(error.__cause__)
    text = str(error)
    found = re.search(r"requires the (\S+) library", text) or re.search(r"pip install (?:-\S+ )*([\w.-]+)", text)
    name = found[1] if found else text.strip().splitlines()[0][:100] if text.strip() else "that it asks for"
    return PACKAGES.get(name, name)


def _refuse_other_weights(folder: Path, report: dict[str, Any]) -> None:
    """Refuse weights that are not exactly those of the model that config.json describes."""
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, stored, expected = mismatched[0]
        raise ModelError(
            code="WEIGHTS_DO_NOT_FIT",
            message=f"In {folder} the weights have other shapes than config.json says: {name} is {list(stored)} in "
            f"the weights and {list(expected)} by config.json"
            f"{f', and {len(mismatched) - 1} more' if len(mismatched) > 1 else ''}.",
            advice="Take the config.json that belongs to these weights"
            f"{' (see projection_dim)' if 'projection' in name else ''}, or download the model again.",
        )
    if report["missing_keys"]:  # transformers would go on with random weights in their place
        raise ModelError(
            code="WEIGHTS_INCOMPLETE",
            message=f"The weights in {folder} lack {len(report['missing_keys'])} tensors that config.json asks for, "
            f"for instance {min(report['missing_keys'])}.",
            advice="Download or export the model again.",
        )
    unused = sorted(name for name in report["unexpected_keys"] if LAYER.search(f".{name}"))
    if unused:  # transformers would leave whole layers out
        raise ModelError(
            code="WEIGHTS_DO_NOT_FIT",
            message=f"The weights in {folder} have {len(unused)} tensors of layers that config.json does not know, for "
            f"instance {unused[0]}.",
            advice="Take the config.json that belongs to these weights, or download the model again.",
        )


def _refuse_not_finite(folder: Path, model: Any) -> None:
    """Refuse weights with NaN or infinity, also those that only overflow in the precision that is computed in."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        low, high = torch.aminmax(tensor)  # both are NaN where one value is
        if not (torch.isfinite(low) and torch.isfinite(high)):
            count = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                code="WEIGHTS_NOT_FINITE",
                message=f"In {folder} the tensor {name} has {count} of {tensor.numel()} values that are not finite "
                f"numbers (in {str(tensor.dtype).removeprefix('torch.')}).",
                advice="The checkpoint is damaged, or was saved in too small a precision: download or export it again.",
            )
