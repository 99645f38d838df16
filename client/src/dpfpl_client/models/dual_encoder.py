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
from dpfpl_client.models.image_tower import ImageTower, batches
from dpfpl_client.models.text_tower.choice import TextPass, TextTower
from dpfpl_client.models.text_tower.states import ClassTokens
from dpfpl_client.models.words import Words, frame_of, refuse_alike, repeated_to_the_left
from dpfpl_common.errors import ModelError
from dpfpl_common.experiment import MECHANISMS, Experiment

__all__ = ["DualEncoder", "as_dual_encoder"]


class DualEncoder(Backbone):
    """A frozen pair of towers: images to unit features, class prompts to unit features.

    Attributes:
        feature_size: size e of the shared image-text space.
        logit_scale: the model's own tau, multiplying cosine similarities.
        logit_bias: added to the logits of a sigmoid head; None for a softmax head.
        frame: what the tokenizer writes around a text.
        device: where the towers compute. Image features and token embeddings are always given on the processor.
        context_follows: where the context stands and what comes after it, for users of an exported prompt.
        adapter_obstacle: why a PEFT adapter of trained tokens cannot express a prompt; empty where it can.
    """

    tasks: tuple[str, ...] = ("classify",)
    mechanisms: tuple[str, ...] = MECHANISMS
    context_follows = ""
    adapter_obstacle = ""
    shortcuts = "image features once"

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, fingerprint: str) -> None:
        self._model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._image_processor = image_processor
        self.words = Words(tokenizer, len(self.token_embedding.weight))
        self.frame = frame_of(tokenizer)
        self.device: torch.device = model.logit_scale.device
        self._tower = self._make_tower(coarse=False)
        self._image_tower = ImageTower(model, self.prepared, self.device)
        self._is_coarse = False
        self.family = str(model.config.model_type)
        self.fingerprint = fingerprint
        self.feature_identity = feature_identity(fingerprint, image_processor)
        self.width = int(model.config.text_config.hidden_size)
        self.feature_size = self._shared_size
        self.logit_scale = float(model.logit_scale.exp())
        self.logit_bias: float | None = None

    @property
    def _shared_size(self) -> int:
        return int(self._model.config.projection_dim)

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
        prompt = experiment.prompt
        return ClassScorer(self, self.class_tokens(experiment.classes, prompt.num_context, prompt.init_text))

    def class_tokens(self, class_names: Sequence[str], num_context: int, text: str = "") -> ClassTokens:
        """Token ids of what follows the context, for every class.

        Args:
            class_names: one or more.
            num_context: vectors before them.
            text: what the context begins as; the names get the ids that they have behind it.

        Raises:
            ModelError: PROMPT_TOO_LONG, with this many context vectors the longest class name does not fit the model's
                positions; CLASSES_READ_ALIKE; or as ``Words.behind``.
        """
        suffixes = [self._suffix(name, text) for name in class_names]
        refuse_alike(class_names, suffixes)
        longest = max(range(len(suffixes)), key=lambda index: len(suffixes[index]))
        needed, room = num_context + len(suffixes[longest]), self.positions - len(self.frame.begin)
        if needed > room:
            raise ModelError(
                code="PROMPT_TOO_LONG",
                message=f"{num_context} context vectors and the class name {class_names[longest]!r} need {needed} "
                f"positions; the model has {room} for them.",
                advice="Use fewer context vectors or a shorter class name.",
            )
        return self.tokens_of(suffixes, num_context)

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Refuse class names that the model's tokenizer does not tell apart.

        Raises:
            ModelError: CLASSES_READ_ALIKE; or as ``Words.behind``.
        """
        refuse_alike(class_names, [self._suffix(name) for name in class_names])

    @property
    def positions(self) -> int:
        """How many tokens a text may have, the tokenizer's own included."""
        return int(self._model.config.text_config.max_position_embeddings)

    def tokens_of(self, suffixes: Sequence[Sequence[int]], num_context: int) -> ClassTokens:
        """Token ids ``<class name>.<end>`` as the text tower takes them."""
        raise NotImplementedError

    def _suffix(self, name: str, text: str = "") -> list[int]:
        """Ids of ``<class name>.`` behind a text, and of what ends it."""
        return [*self.words.behind(name, text), *self.frame.end]

    def text_embeddings(self, text: str, num_context: int) -> torch.Tensor:
        """As ``Backbone.text_embeddings``: the text stands right before the class name."""
        filled = repeated_to_the_left(self.words.ids(text), text, num_context)
        embedding: torch.Tensor = self.token_embedding(torch.tensor(filled, dtype=torch.long, device=self.device))
        return embedding.detach().reshape(len(filled), self.width).cpu()

    def hold(self, size: int) -> None:
        """Nothing but image features is computed of images, so nothing is held."""

    def check_words(self, *texts: str) -> None:
        """Refuse texts that spell a token that controls the model.

        Raises:
            ModelError: SPECIAL_TOKEN.
        """
        for text in texts:
            self.words.ids(text)

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

    def tokenized(self, sentence: str) -> list[int]:
        """A sentence's ids as plain transformers is told to make them for this model."""
        return [int(token) for token in self.tokenizer(sentence)["input_ids"]]

    def plain_features(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Text features [n, feature_size], not normalised, of whole texts' ids, by the model's own forward."""
        found = []
        for row in rows:
            ids = torch.tensor([list(row)], device=self.device)
            found.append(self._model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids)))
        return torch.cat([getattr(each, "pooler_output", each) for each in found])

    @property
    def text_tower(self) -> str:
        """What the text tower's configuration calls itself."""
        return str(self._model.config.text_config.model_type)

    @property
    def picture_size(self) -> int | None:
        """Edge of the square that the image tower takes, in pixels; None where the model's configuration names none."""
        size = getattr(self._model.config.vision_config, "image_size", None)
        return size if isinstance(size, int) else None

    def prepared(self, images: Sequence[Image.Image]) -> Any:
        """What the image tower takes of pictures."""
        return self._image_processor(images=list(images), return_tensors="pt")

    def image_features(self, images: Iterable[Image.Image], batch_size: int = 64) -> Iterator[torch.Tensor]:
        """Unit image features, one [feature_size] tensor per image; no other image changes a bit of it.

        At most ``batch_size`` images are held at once.
        """
        for batch in batches(images, batch_size):
            yield from self._image_tower.features(batch)


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
