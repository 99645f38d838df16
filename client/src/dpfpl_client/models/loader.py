"""Loads a frozen model: which family serves it, by its own config.json, and where it computes.

Only the model is on another device. Image rows, contexts, gradients, clipping, noise and prompts are float32 or float64
on the processor whatever is chosen, so the choice changes neither sensitivity nor noise: rounding moves an example's
gradient before it is clipped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from dpfpl_client.models.backbone import Backbone
from dpfpl_client.models.files import does_not_load, model_folder
from dpfpl_client.models.folder import model_type, refuse_broken, stored_precision
from dpfpl_client.site.settings import ComputeSettings
from dpfpl_common.errors import DpfplError, ModelError
from dpfpl_common.ops.text import first_line

__all__ = ["CPU", "device_named", "load_backbone", "load_computing"]

CPU: Final = torch.device("cpu")


def load_backbone(
    model: str, *, offline: bool = True, dtype: torch.dtype = torch.float32, device: str | torch.device = CPU
) -> Backbone:
    """Load a model of any known family.

    Args:
        model: "embedded" or "embedded-vlm", a folder in Hugging Face format, or a Hugging Face id.
        offline: do not reach for the network; a hub id must then be in the local cache.
        dtype: in which to compute: float32; bfloat16, half the memory, for generative models; float64 for comparisons.
        device: where to compute: ``cpu``, ``cuda``, ``cuda:1``. What the backbone takes and gives is on the processor.

    Raises:
        ModelError: the model is missing, damaged, of an unknown family, or does not load; it cannot compute there or in
            that way; or what it computes of a few sentences is not what plain transformers computes.
    """
    # Imported here: transformers takes seconds, and most commands never load a model.
    from dpfpl_client.models.encoders import ENCODER_FAMILIES, load_clip, load_encoder, load_siglip
    from dpfpl_client.models.generative.backbone import load_generative
    from dpfpl_client.models.generative.template import FAMILIES, REFUSED

    loaders: dict[str, Callable[[Path, torch.dtype, torch.device], Backbone]] = {
        "clip": load_clip, "siglip": load_siglip, "siglip2": load_siglip,
        **dict.fromkeys(ENCODER_FAMILIES, load_encoder), **dict.fromkeys(FAMILIES, load_generative),
    }  # fmt: skip
    place = device_named(device)
    folder = model_folder(model, offline=offline)
    family = model_type(folder)  # judged first: files that a foreign model lacks are not worth fetching
    if family not in loaders:
        reason = REFUSED.get(family, "it is not among those whose gradients are known to be exact")
        raise ModelError(
            code="UNKNOWN_FAMILY",
            message=f"The model in {folder} is of the family {family!r}, which cannot be used: {reason}.",
            advice=f"Use a model whose config.json names one of: {', '.join(sorted(loaders))}.",
        )
    refuse_broken(folder)
    if dtype == torch.bfloat16 and family not in FAMILIES:
        raise ModelError(
            code="PRECISION_UNUSABLE",
            message=f"A model of the family {family!r} computes in float32 only.",
            advice="Leave the precision out; what rounding can save here is [gradients] precision in experiment.toml.",
        )
    try:
        backbone = loaders[family](folder, dtype, place)
    except DpfplError:
        raise
    except Exception as error:  # noqa: BLE001  parts that do not belong together make libraries raise anything
        raise does_not_load(folder, "weights, tokenizer and preprocessor, which do not go together", error) from None
    backbone.stored_precision = stored_precision(folder)
    return backbone


def load_computing(model: str, compute: ComputeSettings, *, offline: bool = True) -> Backbone:
    """A model of any known family, where and as ``compute`` says.

    Raises:
        ModelError: as ``load_backbone``.
    """
    backbone = load_backbone(model, offline=offline, dtype=getattr(torch, compute.precision), device=compute.device)
    if compute.picture_memory:
        backbone.hold(compute.picture_memory * 2**20)
    return backbone


def device_named(name: str | torch.device) -> torch.device:
    """The device ``cpu``, ``cuda`` or ``cuda:1``, ready to compute on.

    Raises:
        ModelError: DEVICE_NOT_THERE.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError) as error:  # torch without CUDA asserts, without a driver it raises
        reason = first_line(error).rstrip(".")
        raise ModelError(
            code="DEVICE_NOT_THERE",
            message=f"torch {torch.__version__} cannot compute on {str(name)!r}: {reason}.",
            advice='Use device = "cpu", or install a torch that was built for this machine\'s GPU and its driver.',
        ) from None
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # image towers begin with a convolution, which would round to ten bits
    return device
