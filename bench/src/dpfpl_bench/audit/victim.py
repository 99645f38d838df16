"""The training that is attacked: one site alone, and everything that it releases.

A federation of one is the worst case for the site: no other site's data or noise hides its own. Under ``local`` trust
its messages carry their whole noise, so the same claim holds for readers of the messages and recipients of the prompt.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.step import RandomnessSource
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.class_scorer import class_probabilities, per_example_gradients
from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_common.experiment import Experiment
from dpfpl_common.optimizer import OptimizerState, descend

__all__ = ["Released", "Victim", "confidences", "log_odds", "without_noise"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Released:
    """What a training let out.

    Attributes:
        messages: the update of every round towards the server, each [num_context, width].
        contexts: the whole context [num_context, width] with which the round's first step was made, one a round.
        prompt: the personalised context after the last round, [num_context, width].
        displacement: the same without the initial text, [num_context, width].
    """

    messages: tuple[Floats, ...]
    contexts: tuple[torch.Tensor, ...]
    prompt: torch.Tensor
    displacement: Floats


class Victim:
    """Trains one site on a chosen part of a pool, as often as asked.

    Args:
        backbone: the frozen model.
        experiment: of one site, noise level resolved; its nominal site size is public and never the real one.
        pool: all examples that may be trained on.
    """

    def __init__(self, backbone: DualEncoder, experiment: Experiment, pool: LabelledFeatures) -> None:
        self.backbone = backbone
        self.experiment = experiment
        self.pool = pool
        self.tokens = backbone.class_tokens(experiment.classes, experiment.prompt.num_context)
        self._empty = LabelledFeatures(pool.features[:0], pool.labels[:0])

    def train(self, members: npt.NDArray[np.bool_], randomness: RandomnessSource, name: str = "victim") -> Released:
        """One whole training on the members of the pool; the source draws for a site of this name."""
        learner = self._learner(members)
        state = PersonalState.initial(self.experiment)
        shared = np.zeros(self.experiment.context_shape)
        optimizer = OptimizerState.zeros(self.experiment.context_shape)
        settings = self.experiment.optimizer
        messages, contexts = [], []
        for number in range(1, self.experiment.rounds.number + 1):
            contexts.append(learner.context(shared.astype(np.float32), state.context))
            result = learner.train_round(shared.astype(np.float32), state, randomness.for_round(name, number))
            state = result.state
            messages.append(result.update)
            shared, optimizer = descend(settings, settings.global_learning_rate, shared, result.update, optimizer)
        return Released(
            messages=tuple(messages),
            contexts=tuple(contexts),
            prompt=learner.context(shared.astype(np.float32), state.context),
            displacement=shared + state.context,
        )

    def gradients(self, context: torch.Tensor, chosen: npt.NDArray[np.int64]) -> Floats:
        """Un-clipped gradients [chosen, num_context, width] of examples of the pool at a context."""
        examples = self.pool.take(chosen)
        found = per_example_gradients(self.backbone, context, self.tokens, examples.features, examples.labels)
        return np.asarray(found.double().numpy())

    def _learner(self, members: npt.NDArray[np.bool_]) -> PromptLearner:
        train = self.pool.take(np.flatnonzero(members))
        features = SiteFeatures(train, self._empty, self._empty, self.experiment.classes)
        return PromptLearner(self.backbone, self.experiment, features)


def confidences(victim: Victim, prompt: torch.Tensor, chosen: npt.NDArray[np.int64]) -> Floats:
    """Log-odds of the labels of examples of the pool under a prompt, [chosen]: what membership attacks look at."""
    examples = victim.pool.take(chosen)
    return log_odds(class_probabilities(victim.backbone, prompt, victim.tokens, examples.features), examples.labels)


def log_odds(probabilities: torch.Tensor, labels: torch.Tensor) -> Floats:
    """Log-odds of the labels [n] under probabilities [n, classes]."""
    right = probabilities.double().numpy()[np.arange(len(labels)), labels.numpy()]
    right = np.clip(right, 1e-9, 1 - 1e-9)
    odds: Floats = np.log(right) - np.log1p(-right)
    return odds


def without_noise(experiment: Experiment) -> Experiment:
    """The same training with the noise off: what an attack must succeed against to be worth anything."""
    privacy = dataclasses.replace(experiment.privacy, noise_multiplier=0.0, target_epsilon=None)
    return dataclasses.replace(experiment, privacy=privacy)
