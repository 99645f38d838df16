"""Models with one tower for images and one for texts: both become unit rows, scores are products.

What CLIP and SigLIP share. A family adds how a class prompt is laid out, its text tower, and its head.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from dpfpl_client.models.backbone import Backbone, no_answers
from dpfpl_client.models.class_scorer import ClassScorer
from dpfpl_client.models.files import feature_identity
from dpfpl_client.models.placement import batches
from dpfpl_client.models.text_tower.choice import TextPass, TextTower
from dpfpl_client.models.text_tower.shared_prefix import ClassTokens
from dpfpl_client.models.words import Words, repeated_to_the_left
from dpfpl_common.errors import ModelError
from dpfpl_common.experiment import MECHANISMS, Experiment

__all__ = ["DualEncoder", "as_dual_encoder"]


class DualEncoder:
    """A frozen pair of towers: images to unit features, class prompts to unit features.

    Attributes:
        family: the model type of its config.json.
        fingerprint: sha256 over the model's files; two sites with the same fingerprint have the same model.
        feature_identity: sha256 over what image features depend on beside the images: fingerprint and preprocessing.
        width: width d of token embeddings and context vectors.
        feature_size: size e of the shared image-text space.
        logit_scale: the model's own tau, multiplying cosine similarities.
        logit_bias: added to the logits of a sigmoid head; None for a softmax head.
        device: where the towers compute. Image features and token embeddings are given on the processor all the same.
        context_follows: where the context stands and what comes after it, for whoever uses an exported prompt.
        shortcuts: in words, what is computed once, exactly.
        tasks: what it can be asked: classes alone.
        mechanisms: under which it can learn: all.
        adapter_obstacle: why a PEFT adapter of trained tokens cannot express a prompt; empty where it can.
    """

    tasks: tuple[str, ...] = ("classify",)
    mechanisms: tuple[str, ...] = MECHANISMS
    context_follows = ""
    adapter_obstacle = ""
    shortcuts = "image features once"

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, fingerprint: str, feature_size: int) -> None:
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._image_processor = image_processor
        self._words = Words(tokenizer, len(self.token_embedding.weight))
        self.device: torch.device = model.logit_scale.device
        self._tower = self._make_tower(coarse=False)
        self._is_coarse = False
        self.family = str(model.config.model_type)
        self.fingerprint = fingerprint
        self.feature_identity = feature_identity(fingerprint, image_processor)
        self.width = int(model.config.text_config.hidden_size)
        self.feature_size = feature_size
        self.logit_scale = float(model.logit_scale.exp())
        self.logit_bias: float | None = None

    @property
    def tokenizer(self) -> Any:
        """The model's own Hugging Face tokenizer."""
        return self._tokenizer

    @property
    def token_embedding(self) -> torch.nn.Embedding:
        """The text tower's frozen token embedding, [vocabulary, width]."""
        embedding: torch.nn.Embedding = self._model.text_model.embeddings.token_embedding
        return embedding

    def scorer(self, experiment: Experiment) -> ClassScorer:
        """The model joined to an experiment's classes.

        Raises:
            ModelError: NO_ANSWERS, the task is to answer questions; SPECIAL_TOKEN, a class name spells one; or a prompt
                is too long.
        """
        if experiment.task.kind != "classify":
            raise no_answers(self.family)
        return ClassScorer(self, self.class_tokens(experiment.classes, experiment.prompt.num_context))

    def class_tokens(self, class_names: Sequence[str], num_context: int) -> ClassTokens:
        """Token ids of what follows the context, for every class.

        Raises:
            ModelError: with this many context vectors the longest class name does not fit the model's positions.
        """
        raise NotImplementedError

    def _suffixes(self, class_names: Sequence[str], num_context: int, positions: int) -> list[list[int]]:
        """Ids of ``<class name>.<EOS>``; PROMPT_TOO_LONG where context and the longest need more than ``positions``."""
        suffixes = [self._suffix(name) for name in class_names]
        longest = max(range(len(suffixes)), key=lambda index: len(suffixes[index]))
        needed = num_context + len(suffixes[longest])
        if needed > positions:
            raise ModelError(
                code="PROMPT_TOO_LONG",
                message=f"{num_context} context vectors and the class name {class_names[longest]!r} need {needed} "
                f"positions; the model has {positions} for them.",
                advice="Use fewer context vectors or a shorter class name.",
            )
        return suffixes

    def _suffix(self, name: str) -> list[int]:
        """Ids of ``<class name>.<EOS>``."""
        return [*self._plain_ids(f"{name}."), self._eos_id]

    def _plain_ids(self, text: str) -> list[int]:
        """A text's ids, and nothing around them; none of them ends a text or controls the model otherwise."""
        return self._words.ids(text)

    def text_embeddings(self, text: str, num_context: int) -> torch.Tensor:
        """Token embeddings [num_context, width] of ``text``, repeated to the left until they fill the context.

        The text itself always stands whole right before the class name. A text longer than the context is an error.
        """
        filled = repeated_to_the_left(self._plain_ids(text), text, num_context)
        embedding: torch.Tensor = self.token_embedding(torch.tensor(filled, dtype=torch.long, device=self.device))
        return embedding.detach().reshape(len(filled), self.width).cpu()

    def hold(self, size: int) -> None:
        """Nothing but image features is computed of images, so nothing is held."""

    def num_tokens(self, text: str) -> int:
        """How many context vectors a text fills."""
        return len(self._plain_ids(text))

    def check_words(self, *texts: str) -> None:
        """Refuse texts that spell a token that controls the model.

        Raises:
            ModelError: SPECIAL_TOKEN.
        """
        for text in texts:
            self._plain_ids(text)

    @torch.no_grad()
    def text_features(self, context: torch.Tensor, tokens: ClassTokens) -> torch.Tensor:
        """Unit text features [classes, feature_size] of a context [num_context, width], both on the model's device."""
        return torch.nn.functional.normalize(self._tower(context, tokens), dim=-1)

    def text_pass(
        self, context: torch.Tensor, tokens: ClassTokens, *, coarse: bool = False, singly: bool = False
    ) -> TextPass:
        """A forward pass of the text tower, to be pulled back to the context.

        Args:
            context: [num_context, width], on the model's device as everything here.
            tokens: the classes.
            coarse: the pullback will be asked to round to bfloat16; the weights for it are made when first needed.
            singly: the pullback will be asked for a few classes of each example.
        """
        if coarse and not self._is_coarse:
            self._tower, self._is_coarse = self._make_tower(coarse=True), True
        return self._tower.run(context, tokens, singly=singly)

    def _make_tower(self, *, coarse: bool) -> TextTower:
        raise NotImplementedError

    @torch.no_grad()
    def image_features(self, images: Iterable[Image.Image], batch_size: int = 64) -> Iterator[torch.Tensor]:
        """Unit image features, one [feature_size] tensor per image, computed in batches."""
        for batch in batches(images, batch_size):
            inputs = self._image_processor(images=batch, return_tensors="pt")
            features = self._model.get_image_features(**inputs.to(self.device))
            features = getattr(features, "pooler_output", features)
            yield from torch.nn.functional.normalize(features, dim=-1).cpu().clone()

    @property
    def _eos_id(self) -> int:
        return int(self._tokenizer.eos_token_id)


def as_dual_encoder(backbone: Backbone) -> DualEncoder:
    """The backbone, where what is to be done needs classes as features.

    Raises:
        ModelError: NO_CLASS_FEATURES.
    """
    if not isinstance(backbone, DualEncoder):
        raise ModelError(
            code="NO_CLASS_FEATURES",
            message=f"A model of the family {backbone.family!r} has no features of classes in the images' space.",
            advice="Use a model of the CLIP or SigLIP family for this.",
        )
    return backbone
