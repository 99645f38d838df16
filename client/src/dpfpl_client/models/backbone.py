"""What prompt learning needs of a frozen vision-language model, whatever its family.

``Backbone`` is a loaded model: image rows, initial texts, identity. ``Scorer`` is a backbone joined to one experiment's
task: gradients of the context, one per example. ``Predictor`` is a scorer joined to one context: answers.
:mod:`dpfpl_client.models.loader` decides which family serves a model; nobody above asks.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dpfpl_client.models.words import Words
from dpfpl_common.errors import ModelError
from dpfpl_common.experiment import Experiment, GradientSettings, TaskSettings


@dataclass(frozen=True)
class LabelledFeatures:
    """Image rows [n, feature_size] (unit features, where the model compares) and class indices [n].

    ``asked``, where questions are to be answered: question and right answer of every example; labels then mean nothing.
    """

    features: Tensor
    labels: Tensor
    asked: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def none(self) -> "LabelledFeatures":
        """An empty set of the same kind of rows."""
        return LabelledFeatures(self.features[:0], self.labels[:0])

    def take(self, indices: npt.NDArray[np.int64]) -> "LabelledFeatures":
        """Those of these indices."""
        chosen = torch.from_numpy(indices)
        asked = tuple(self.asked[int(index)] for index in indices) if self.asked else ()
        return LabelledFeatures(self.features[chosen], self.labels[chosen], asked)


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

    def agreement(self, examples: LabelledFeatures) -> Tensor:
        """How right each answer is, [n]: 1 or 0, of captions the overlap of words."""
        ...


class Scorer(Protocol):
    """A backbone joined to one experiment's task.

    Families that do not compare pictures with class names have no class features: what is asked of them raises
    ModelError NO_CLASS_FEATURES.
    """

    def gradients(self, context: Tensor, examples: LabelledFeatures, estimate: GradientSettings) -> Tensor:
        """d loss_x / d context for every example x, [batch, num_context, width]; row x depends on example x alone."""
        ...

    def total_gradient(self, context: Tensor, examples: LabelledFeatures, weights: Tensor) -> Tensor:
        """``sum_x weights_x g_x`` [num_context, width], where nothing is clipped; weight 0 counts as absent."""
        ...

    def at(self, context: Tensor) -> Predictor:
        """The task under a context [num_context, width]."""
        ...

    def too_long(self, num_context: int, question: str, answer: str) -> bool:
        """Whether a turn has more tokens than the model was made for; such an example teaches nothing."""
        return False

    def cut_off(self, answers: Sequence[str]) -> int:
        """How many of these right answers no prompt can say, because an answer ends before."""
        return 0

    @property
    def logit_scale(self) -> float:
        """What cosines of image rows and class features are multiplied with."""
        raise _no_class_features()

    def class_features(self, context: Tensor) -> Tensor:
        """Unit features [classes, feature_size] in the space of the image rows."""
        raise _no_class_features()

    def feature_gradient(self, context: Tensor, cotangents: Tensor) -> Tensor:
        """Gradient [num_context, width] of ``sum(cotangents * class features)`` by the context."""
        raise _no_class_features()

    def public_directions(self, initial: Tensor, count: int) -> npt.NDArray[np.float64]:
        """[count, feature_size] orthonormal rows that the class features sweep around the initial context."""
        raise _no_class_features()


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
        stored_precision: in which its checkpoint holds the weights (``float16``), whatever it computes in.
        tokenizer: the model's own Hugging Face tokenizer.
        words: how people's words become tokens.
    """

    tasks: tuple[str, ...]
    mechanisms: tuple[str, ...]
    family: str
    fingerprint: str
    feature_identity: str
    width: int
    feature_size: int
    stored_precision: str = "float32"
    tokenizer: Any
    words: Words

    @property
    def shortcuts(self) -> str:
        """See above."""
        ...

    def num_tokens(self, text: str) -> int:
        """How many context vectors a text fills."""
        return len(self.words.ids(text))

    def text_embeddings(self, text: str, num_context: int) -> Tensor:
        """Token embeddings [num_context, width] of a text, repeated to the left until they fill the context.

        The text itself always stands whole at the end. A text longer than the context is an error.
        """
        ...

    def check_words(self, *texts: str) -> None:
        """Refuse texts that spell a token that controls the model, and cannot be read as plain words.

        Raises:
            ModelError: SPECIAL_TOKEN.
        """
        ...

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Refuse class names that the model reads as the same tokens, or cannot take.

        Raises:
            ModelError: CLASSES_READ_ALIKE, SPECIAL_TOKEN or NAME_JOINS_TEXT.
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

    def scorer(self, experiment: Experiment) -> Scorer:
        """The model joined to an experiment's task.

        Raises:
            ModelError: the model cannot serve it; the message says why.
        """
        ...


def no_answers(family: str) -> ModelError:
    """NO_ANSWERS: the task is to answer questions, and the model only compares."""
    return ModelError(
        code="NO_ANSWERS",
        message=f"A model of the family {family!r} answers no questions (task vqa).",
        advice="Use a generative vision-language model, or the task classify.",
    )


def too_long_answers(scorer: Scorer, task: TaskSettings, answers: Sequence[str]) -> str:
    """What a site should know about its right answers, with a code; empty where all can be said."""
    count = scorer.cut_off(answers) if task.in_words else 0
    if not count:
        return ""
    return (
        f"{count} of {len(answers)} answers can never be right: what the model says ends after "
        f"{task.max_answer_tokens} tokens. Shorten them, or have the experiment's task.max_answer_tokens raised. "
        "[ANSWERS_TOO_LONG]"
    )


def _no_class_features() -> ModelError:
    return ModelError(
        code="NO_CLASS_FEATURES",
        message="A generative model has no features of classes in the pictures' space.",
        advice="Use the mechanism per_step.",
    )
