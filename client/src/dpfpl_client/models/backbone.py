"""What prompt learning needs of a frozen vision-language model, whatever its family.

``Backbone`` is a loaded model: image rows, initial texts, identity. ``Scorer`` is a backbone joined to one experiment's
task: gradients of the context, one per example. ``Predictor`` is a scorer joined to one context: answers. Which family
serves a model is decided here, from the model's own config.json; nobody above asks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from dpfpl_client.models.files import model_folder, model_type
from dpfpl_client.models.placement import CPU, device_named
from dpfpl_common.errors import ModelError

if TYPE_CHECKING:
    from dpfpl_client.models.evaluation import LabelledFeatures
    from dpfpl_client.site.settings import ComputeSettings
    from dpfpl_common.experiment import Experiment, GradientSettings

__all__ = ["Backbone", "Predictor", "Scorer", "load_backbone", "load_computing"]


class Predictor(Protocol):
    """A task with a context filled in."""

    def probabilities(self, features: Tensor) -> Tensor:
        """How probable the model finds every class, [n, classes], for image rows [n, feature_size].

        With a softmax head they add up to 1; with a sigmoid head each class has its own.
        """
        ...

    def reply(self, feature: Tensor, question: str) -> tuple[str, float]:
        """The answer to a question about one image row [feature_size], and how probable the model finds it.

        Raises:
            ModelError: NO_ANSWERS, the family answers no questions.
        """
        ...

    def agreement(self, examples: "LabelledFeatures") -> Tensor:
        """How right each answer is, [n]: 1 or 0, of captions the overlap of words."""
        ...


class Scorer(Protocol):
    """A backbone joined to one experiment's task."""

    def gradients(self, context: Tensor, examples: "LabelledFeatures", estimate: "GradientSettings") -> Tensor:
        """d loss_x / d context for every example x, [batch, num_context, width]; row x depends on example x alone."""
        ...

    def total_gradient(self, context: Tensor, examples: "LabelledFeatures", weights: Tensor) -> Tensor:
        """``sum_x weights_x g_x`` [num_context, width], where nothing is clipped; weight 0 counts as absent."""
        ...

    def at(self, context: Tensor) -> Predictor:
        """The task under a context [num_context, width]."""
        ...

    def too_long(self, num_context: int, question: str, answer: str) -> bool:
        """Whether a turn has more tokens than the model was made for; such an example teaches nothing."""
        ...

    def cut_off(self, answers: Sequence[str]) -> int:
        """How many of these right answers no prompt can say, because an answer ends before."""
        ...

    def class_features(self, context: Tensor) -> Tensor:
        """Unit features [classes, feature_size] in the space of the image rows.

        Raises:
            ModelError: NO_CLASS_FEATURES, the family has none.
        """
        ...

    def feature_gradient(self, context: Tensor, cotangents: Tensor) -> Tensor:
        """Gradient [num_context, width] of ``sum(cotangents * class features)`` by the context.

        Raises:
            ModelError: NO_CLASS_FEATURES.
        """
        ...

    def public_directions(self, initial: Tensor, count: int) -> Any:
        """[count, feature_size] orthonormal rows that the class features sweep around the initial context.

        Raises:
            ModelError: NO_CLASS_FEATURES.
        """
        ...


class Backbone(Protocol):
    """A frozen model.

    Attributes:
        family: the model type of its config.json.
        fingerprint: sha256 over the model's files; two sites with the same fingerprint have the same model.
        feature_identity: sha256 over what image rows depend on beside the images: fingerprint and preprocessing.
        width: width d of token embeddings and context vectors.
        feature_size: length of an image's row.
        shortcuts: in words, what is computed once instead of again and again, exactly.
        tasks: what it can be asked, as ``TaskSettings.kind`` calls it.
        mechanisms: under which it can learn.
    """

    tasks: tuple[str, ...]
    mechanisms: tuple[str, ...]
    family: str
    fingerprint: str
    feature_identity: str
    width: int
    feature_size: int

    @property
    def shortcuts(self) -> str:
        """See above."""
        ...

    def num_tokens(self, text: str) -> int:
        """How many context vectors a text fills."""
        ...

    def text_embeddings(self, text: str, num_context: int) -> Tensor:
        """Token embeddings [num_context, width] of a text, repeated to the left until they fill the context."""
        ...

    def check_words(self, *texts: str) -> None:
        """Refuse texts that spell a token that controls the model, and cannot be read as plain words.

        Raises:
            ModelError: SPECIAL_TOKEN.
        """
        ...

    def image_features(self, images: Iterable[Image.Image], batch_size: int = 64) -> Iterator[Tensor]:
        """What the model sees of every image whatever the prompt, one row [feature_size] each, computed in batches.

        Memory is bounded by the pixels of a batch, whatever the photographs' sizes.
        """
        ...

    def hold(self, size: int) -> None:
        """Hold at most ``size`` bytes of what is computed of images between steps; ignored where nothing is held."""
        ...

    def scorer(self, experiment: "Experiment") -> Scorer:
        """The model joined to an experiment's task.

        Raises:
            ModelError: the model cannot serve it; the message says why.
        """
        ...


def load_backbone(
    model: str,
    *,
    offline: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = CPU,
) -> Backbone:
    """Load a model of any known family.

    Args:
        model: "embedded" or "embedded-vlm", a folder in Hugging Face format, or a Hugging Face id.
        offline: do not reach for the network; a hub id must then be in the local cache.
        dtype: in which to compute: float32; bfloat16, half the memory, for generative models; float64 for comparisons.
        device: where to compute: ``cpu``, ``cuda``, ``cuda:1``. What the backbone takes and gives is on the processor.

    Raises:
        ModelError: the model is missing, has no safetensors weights, is of an unknown family, does not load, or cannot
            compute there or in that way.
    """
    # Imported here: transformers takes seconds, and most commands never load a model.
    from dpfpl_client.models.clip import load_clip
    from dpfpl_client.models.encoders import ENCODER_FAMILIES, load_encoder
    from dpfpl_client.models.generative.backbone import load_generative
    from dpfpl_client.models.generative.template import FAMILIES, REFUSED
    from dpfpl_client.models.siglip import load_siglip

    loaders: dict[str, Callable[[Path, torch.dtype, torch.device], Backbone]] = {
        "clip": load_clip, "siglip": load_siglip, "siglip2": load_siglip,
        **dict.fromkeys(ENCODER_FAMILIES, load_encoder), **dict.fromkeys(FAMILIES, load_generative),
    }  # fmt: skip
    place = device_named(device)
    folder = model_folder(model, offline=offline)
    family = model_type(folder)
    if family not in loaders:
        reason = REFUSED.get(family, "it is not among those whose gradients are known to be exact")
        raise ModelError(
            code="UNKNOWN_FAMILY",
            message=f"The model in {folder} is of the family {family!r}, which cannot be used: {reason}.",
            advice=f"Use a model whose config.json names one of: {', '.join(sorted(loaders))}.",
        )
    if dtype == torch.bfloat16 and family not in FAMILIES:
        raise ModelError(
            code="PRECISION_UNUSABLE",
            message=f"A model of the family {family!r} computes in float32 only.",
            advice="Leave the precision out; what rounding can save here is [gradients] precision in experiment.toml.",
        )
    return loaders[family](folder, dtype, place)


def load_computing(model: str, compute: "ComputeSettings", *, offline: bool = True) -> Backbone:
    """A model of any known family, where and as ``compute`` says.

    Raises:
        ModelError: as ``load_backbone``.
    """
    backbone = load_backbone(model, offline=offline, dtype=getattr(torch, compute.precision), device=compute.device)
    if compute.picture_memory:
        backbone.hold(compute.picture_memory * 2**20)
    return backbone
