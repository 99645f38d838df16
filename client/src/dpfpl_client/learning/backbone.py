"""A frozen Hugging Face CLIP-family model, reduced to what prompt learning needs of it."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dpfpl_client.embedded import embedded_model_path
from dpfpl_client.learning.text_tower import ClassTokens
from dpfpl_client.learning.tower_choice import TextPass, TextTower, text_tower_of
from dpfpl_common.errors import ModelError

__all__ = ["ClipBackbone", "load_backbone"]

WEIGHT_FILES = ("*.safetensors",)
CONFIG_FILES = ("*.json", "*.txt")


class ClipBackbone:
    """A frozen CLIP: images to unit features, class prompts to unit features.

    Attributes:
        fingerprint: sha256 over the model's files; two sites with the same fingerprint have the same model.
        feature_identity: sha256 over what image features depend on beside the images: fingerprint and preprocessing.
        width: width d of token embeddings and context vectors.
        feature_size: size e of the shared image-text space.
        logit_scale: the model's own tau, multiplying cosine similarities.
    """

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, fingerprint: str) -> None:
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._image_processor = image_processor
        self._tower = self._make_tower(coarse=False)
        self._is_coarse = False
        self.fingerprint = fingerprint
        preprocessing = json.dumps(image_processor.to_dict(), sort_keys=True, default=str)
        self.feature_identity = hashlib.sha256(f"{fingerprint}\0{preprocessing}".encode()).hexdigest()
        self.width = int(model.config.text_config.hidden_size)
        self.feature_size = int(model.config.projection_dim)
        self.logit_scale = float(model.logit_scale.exp())

    @property
    def tokenizer(self) -> Any:
        """The model's own Hugging Face tokenizer."""
        return self._tokenizer

    @property
    def token_embedding(self) -> torch.nn.Embedding:
        """The text tower's frozen token embedding, [vocabulary, width]."""
        embedding: torch.nn.Embedding = self._model.text_model.embeddings.token_embedding
        return embedding

    def class_tokens(self, class_names: Sequence[str], num_context: int) -> ClassTokens:
        """Token ids of ``<class name>.<EOS>`` for every class.

        Raises:
            ModelError: with this many context vectors the longest class name does not fit the model's positions.
        """
        suffixes = [
            [*self._tokenizer(f"{name}.", add_special_tokens=False)["input_ids"], self._eos_id] for name in class_names
        ]
        longest = max(len(suffix) for suffix in suffixes)
        positions = int(self._model.config.text_config.max_position_embeddings)
        if 1 + num_context + longest > positions:
            name = class_names[max(range(len(suffixes)), key=lambda i: len(suffixes[i]))]
            raise ModelError(
                code="PROMPT_TOO_LONG",
                message=f"{num_context} context vectors and the class name {name!r} need {1 + num_context + longest} "
                f"positions; the model has {positions}.",
                advice="Use fewer context vectors or a shorter class name.",
            )
        return ClassTokens.build(suffixes, self._bos_id)

    def text_embeddings(self, text: str, num_context: int) -> torch.Tensor:
        """Token embeddings [num_context, width] of ``text``, repeated to the left until they fill the context.

        The text itself always stands whole right before the class name. A text longer than the context is an error.
        """
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) > num_context:
            raise ModelError(
                code="INIT_TEXT_TOO_LONG",
                message=f"The initial text {text!r} has {len(ids)} tokens, the context only {num_context} vectors.",
                advice="Raise prompt.num_context or shorten prompt.init_text.",
            )
        filled = [ids[-1 - i % len(ids)] for i in range(num_context)][::-1] if ids else []
        embedding: torch.Tensor = self._model.text_model.embeddings.token_embedding(
            torch.tensor(filled, dtype=torch.long)
        )
        return embedding.detach().reshape(len(filled), self.width)

    def num_tokens(self, text: str) -> int:
        """How many context vectors a text fills."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def text_features(self, context: torch.Tensor, tokens: ClassTokens) -> torch.Tensor:
        """Unit text features [classes, feature_size] of a context [num_context, width]."""
        return torch.nn.functional.normalize(self._tower(context, tokens), dim=-1)

    def text_pass(
        self, context: torch.Tensor, tokens: ClassTokens, *, coarse: bool = False, singly: bool = False
    ) -> TextPass:
        """A forward pass of the text tower, to be pulled back to the context.

        Args:
            context: [num_context, width].
            tokens: the classes.
            coarse: the pullback will be asked to round to bfloat16; the weights for it are made when first needed.
            singly: the pullback will be asked for a few classes of each example.
        """
        if coarse and not self._is_coarse:
            self._tower, self._is_coarse = self._make_tower(coarse=True), True
        return self._tower.run(context, tokens, singly=singly)

    def _make_tower(self, *, coarse: bool) -> TextTower:
        model = self._model
        return text_tower_of(model.text_model, model.text_projection, self._bos_id, self._eos_id, coarse=coarse)

    @torch.inference_mode()
    def image_features(self, images: Iterable[Image.Image], batch_size: int = 64) -> Iterator[torch.Tensor]:
        """Unit image features, one [feature_size] tensor per image, computed in batches."""
        stream = iter(images)
        while batch := list(islice(stream, batch_size)):
            pixels = self._image_processor(images=batch, return_tensors="pt")["pixel_values"]
            features = self._model.get_image_features(pixel_values=pixels)
            features = getattr(features, "pooler_output", features)
            yield from torch.nn.functional.normalize(features, dim=-1).clone()

    @property
    def _bos_id(self) -> int:
        return int(self._tokenizer.bos_token_id)

    @property
    def _eos_id(self) -> int:
        return int(self._tokenizer.eos_token_id)


def load_backbone(model: str, *, offline: bool = True, dtype: torch.dtype = torch.float32) -> ClipBackbone:
    """Load a CLIP-family model.

    Args:
        model: "embedded", a folder in Hugging Face format, or a Hugging Face id.
        offline: do not reach for the network; a hub id must then be in the local cache.
        dtype: in which to compute; float64 for comparisons.

    Raises:
        ModelError: the model is missing, has no safetensors weights, is of another family, or does not load.
    """
    folder = embedded_model_path() if model == "embedded" else _folder(model, offline)
    try:
        family = json.loads((folder / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            code="NO_MODEL_CONFIG",
            message=f"{folder} holds no readable config.json ({type(error).__name__}).",
            advice="Give a folder in Hugging Face format: config.json, *.safetensors, tokenizer, preprocessor.",
        ) from None
    if family != "clip":
        raise ModelError(
            code="UNKNOWN_FAMILY",
            message=f"The model in {folder} is of the family {family!r}, not of the CLIP family.",
            advice="Use a CLIP checkpoint (config.json with model_type clip).",
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            code="NO_SAFETENSORS",
            message=f"{folder} holds no .safetensors weights; other formats are never loaded.",
            advice="Convert the weights to safetensors.",
        )
    # Imported here: transformers takes seconds, and most commands never load a model.
    from safetensors import SafetensorError
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        loaded, report = CLIPModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            attn_implementation="sdpa",
            dtype=dtype,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ModelError(
            code="MODEL_DOES_NOT_LOAD",
            message=f"The model in {folder} does not load: {reason}",
            advice="Check that weights, tokenizer and preprocessor belong together.",
        ) from None
    if report["missing_keys"]:  # transformers would go on with random weights in their place
        raise ModelError(
            code="MODEL_DOES_NOT_LOAD",
            message=f"The weights in {folder} lack {len(report['missing_keys'])} tensors, for instance "
            f"{min(report['missing_keys'])}.",
            advice="Download or export the model again.",
        )
    return ClipBackbone(loaded, tokenizer, processor, _fingerprint(folder))


def _folder(model: str, offline: bool) -> Path:
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


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    names = sorted(
        path for pattern in (*WEIGHT_FILES, "*.json", "*.txt") for path in folder.glob(pattern) if path.is_file()
    )
    for path in names:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(path.name.encode() + b"\0" + content)
    return digest.hexdigest()
