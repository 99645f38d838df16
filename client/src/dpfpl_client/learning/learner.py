"""A site's prompt learner: the rounds of one experiment over cached image features."""

import dataclasses
import functools
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from dpfpl_client.data.records import left_out
from dpfpl_client.learning.evidence import (
    OwnRows,
    accuracies,
    alone_head,
    own_rows,
    pooled_head,
    prototypes_from,
    shares_from,
    site_head,
    unpacked,
)
from dpfpl_client.learning.methods import build_method
from dpfpl_client.learning.personal import PersonalState
from dpfpl_client.models.backbone import Backbone, LabelledFeatures, too_long_answers
from dpfpl_client.models.class_scorer import ClassScorer, direction_count
from dpfpl_common.errors import ModelError, RefusedError
from dpfpl_common.evidence import Head, Pool, own_head, prefers_own, residuals, text_head, votes
from dpfpl_common.experiment import Experiment
from dpfpl_common.optimizer import OptimizerState, descend
from dpfpl_common.privacy.counts import noised_counts
from dpfpl_common.privacy.noise import to_steps
from dpfpl_common.privacy.one_shot import bounded, noised_class_sums, noised_moment, noised_vote
from dpfpl_common.privacy.steps import ROUNDING_MARGIN, noised_update
from dpfpl_common.privacy_plan import (
    class_sums_multiplier,
    largest_signal,
    noise_share,
    score_noise_multiplier,
    scored,
    share_stddev,
    site_noise_stddev,
    vote_multiplier,
)

if TYPE_CHECKING:
    from dpfpl_client.learning.step import Randomness

__all__ = ["PersonalState", "PromptLearner", "RoundResult", "SiteFeatures", "initial_context"]

Floats = npt.NDArray[np.float64]
Sent = npt.NDArray[np.float32]
"""As the server sent it: a global context [num_context, width], or a packed pool."""


@dataclass(frozen=True)
class SiteFeatures:
    """Image features of a site.

    Attributes:
        train: for training.
        test: test images like the site's own.
        neighbour_test: test images of other sites, or of classes that the site does not train on.
        classes: the class names that all labels index.
    """

    train: LabelledFeatures
    test: LabelledFeatures
    neighbour_test: LabelledFeatures
    classes: tuple[str, ...]

    @classmethod
    def empty(cls, feature_size: int, classes: tuple[str, ...]) -> "SiteFeatures":
        """No image at all: enough to find out whether a model serves an experiment."""
        nothing = LabelledFeatures(torch.empty((0, feature_size)), torch.empty(0, dtype=torch.long))
        return cls(nothing, nothing, nothing, classes)

    def relabelled(self, classes: tuple[str, ...]) -> "SiteFeatures":
        """The same images with labels that index another list of classes; images of classes not on it are left out.

        There may be none left. A site then trains on nothing and sends noise: a refusal would tell its classes.
        """
        if classes == self.classes:
            return self
        if not self.classes or not classes:  # questions where classes are meant, or the other way round
            return SiteFeatures(self.train.none(), self.test.none(), self.neighbour_test.none(), classes)
        known = {unicodedata.normalize("NFC", name): number for number, name in enumerate(classes)}
        index = torch.tensor([known.get(unicodedata.normalize("NFC", name), -1) for name in self.classes])

        def mapped(images: LabelledFeatures) -> LabelledFeatures:
            labels = index[images.labels]
            return LabelledFeatures(images.features[labels >= 0], labels[labels >= 0])

        return SiteFeatures(mapped(self.train), mapped(self.test), mapped(self.neighbour_test), classes)

    def left_out_of(self, experiment: Experiment) -> str:
        """In words, for the site alone, which training images have a class that the experiment does not know."""
        if experiment.task.in_words or not self.classes:
            return ""
        counts = Counter(self.classes[label] for label in self.train.labels.tolist())
        problem = left_out(counts, experiment.classes, "training images")
        return "" if problem is None else problem.message


@dataclass(frozen=True)
class RoundResult:
    """What a round gives.

    Attributes:
        update: towards the server [num_context, width], noised as trust demands.
        state: the new one.
        evidence: what else is released: noised class sums, or a noised vote and moment [1, 1 + k (k + 1) / 2]; None
            where nothing is asked.
    """

    update: Floats
    state: PersonalState
    evidence: Floats | None = None


def initial_context(backbone: Backbone, experiment: Experiment) -> torch.Tensor:
    """The context [num_context, width] that zero displacement stands for: the initial text, or zero vectors.

    Raises:
        ModelError: the experiment's width is not the model's.
    """
    if backbone.width != experiment.model.width:
        raise ModelError(
            code="WRONG_WIDTH",
            message=f"The experiment expects context vectors of width {experiment.model.width}, the model has "
            f"{backbone.width}.",
            advice="Use the experiment's model, or correct model.width in experiment.toml.",
        )
    if not experiment.prompt.init_text:
        return torch.zeros(experiment.context_shape)
    return backbone.text_embeddings(experiment.prompt.init_text, experiment.prompt.num_context)


class PromptLearner:
    """Trains and evaluates one experiment's contexts on one site's features. Holds no state between calls.

    The context in use is ``initial + global_context + personal_context``: both learned parts are displacements from the
    initial text, so the server needs no model and zero means zero-shot.
    """

    def __init__(self, backbone: Backbone, experiment: Experiment, features: SiteFeatures) -> None:
        self._experiment = experiment
        self._features = features
        self._scorer = backbone.scorer(experiment)
        self._initial = initial_context(backbone, experiment)
        self._method = build_method(experiment.prompt.method, experiment.context_shape, experiment.prompt.rank)

    @property
    def experiment(self) -> Experiment:
        """What it learns for."""
        return self._experiment

    @property
    def too_long_answers(self) -> str:
        """A warning about answers that no prompt can say; empty where there are none."""
        asked = (*self._features.train.asked, *self._features.test.asked)
        return too_long_answers(self._scorer, self._experiment.task, [answer for _, answer in asked])

    @property
    def feature_size(self) -> int:
        """e, the length of an image's feature."""
        return int(self._features.train.features.shape[1])

    @functools.cached_property
    def label_shares(self) -> Floats:
        """[classes], the classes' shares of the site's training images, exact: for use at the site alone."""
        counts = np.bincount(self._features.train.labels.numpy(), minlength=len(self._experiment.classes))
        return np.asarray(counts / max(1.0, counts.sum()))

    def train_round(
        self,
        global_context: Sent,
        state: PersonalState,
        randomness: "Randomness",
        *,
        collect: bool = False,
        pool: Sent | None = None,
    ) -> RoundResult:
        """Make the round's local steps: the global context stays, the personal one moves with every noised step.

        Args:
            global_context: p_G as the server sent it, [num_context, width].
            state: what the site kept.
            randomness: sources for this round, used once.
            collect: whether the noised class sums are told, too; they are released once, however often they are told.
            pool: to vote on; None where no vote is wanted.
        """
        state = self._begun(state, randomness)
        if self._experiment.privacy.trust == "secure":
            assert pool is not None
            summed = dataclasses.replace(state, class_sums=self._unpacked(pool)[0].rows)
            return self._train_on_prototypes(global_context, summed, randomness, self._rows_noise(pool))
        if self._experiment.privacy.mechanism == "one_shot":
            noise_multiplier = class_sums_multiplier(self._experiment)
            result = self._train_on_prototypes(global_context, state, randomness, noise_multiplier)
            if collect:
                return dataclasses.replace(result, evidence=result.state.class_sums)
            return result if pool is None else self._with_vote(result, pool, randomness)
        if self._experiment.privacy.unit == "site":
            return self._train_as_a_whole(global_context, state, randomness)
        from dpfpl_client.learning.step import noised_step, public_pull  # Opacus; who only predicts starts without it

        experiment = self._experiment
        update = np.zeros(experiment.context_shape)
        for _ in range(experiment.rounds.local_steps):
            directions = self._method.directions(_trained(state), randomness.factors)
            chosen = randomness.sampler.draw(len(self._features.train), experiment.privacy.sample_rate)
            examples, whole = self._features.train.take(chosen), self.context(global_context, state.context)
            gradients = self._scorer.gradients(whole, examples, experiment.gradients).double().numpy()
            release = noised_step(experiment, directions, gradients, randomness.noise)
            update += release.shared / experiment.rounds.local_steps
            personal, shared = release.personal, self.context(global_context, 0.0)
            pull = public_pull(experiment, self._scorer, self._initial, shared, whole)
            if pull is not None:
                update += pull.shared / experiment.rounds.local_steps
                personal = personal + directions.merge([block[0] for block in directions.split(pull.personal[None])])
            state = self._moved(state, personal)
        return RoundResult(update=update, state=state)

    def _train_as_a_whole(self, global_context: Sent, state: PersonalState, randomness: "Randomness") -> RoundResult:
        """The round under the unit ``site``: steps without noise, then one release of the whole update."""
        from dpfpl_client.learning.step import batch_gradient  # as above

        privacy = self._experiment.privacy

        def gradient_at(context: Floats) -> Floats:
            chosen = randomness.sampler.draw(len(self._features.train), privacy.sample_rate)
            examples = self._features.train.take(chosen)
            finite = torch.isfinite(examples.features).all(dim=1)
            return batch_gradient(self._experiment, self._total(global_context, context, examples, finite)[None])

        update, state = self._unnoised_steps(state, randomness, gradient_at)
        released = noised_update(update, privacy.clipping_norm, site_noise_stddev(self._experiment), randomness.noise)
        return RoundResult(update=released, state=state)

    def _unnoised_steps(
        self, state: PersonalState, randomness: "Randomness", gradient_at: Callable[[Floats], Floats]
    ) -> tuple[Floats, PersonalState]:
        """The round's local steps along the gradient at each personal context: the mean gradient, and the state."""
        update, steps = np.zeros(self._experiment.context_shape), self._experiment.rounds.local_steps
        for _ in range(steps):
            directions = self._method.directions(_trained(state), randomness.factors)
            gradient = gradient_at(state.context)
            update += gradient / steps
            state = self._moved(state, directions.merge([block[0] for block in directions.split(gradient[None])]))
        return update, state

    def sum_part(
        self, name: str, state: PersonalState, randomness: "Randomness", pool: Sent | None, global_context: Sent | None
    ) -> npt.NDArray[np.int64]:
        """What the site adds to a secure sum, ``rows``, ``vote`` or ``scores``: noised, in grid steps.

        It carries the site's share of the noise only, so it may leave the site in a masked message alone.
        """
        stddev = share_stddev(self._experiment, name)
        if name == "rows":
            part = self._noised_class_sums(randomness, stddev)
        elif name == "vote":
            assert pool is not None
            part = self._noised_vote(pool, randomness, stddev)
        else:
            assert global_context is not None
            z = noise_share(self._experiment) * score_noise_multiplier(self._experiment)
            part = noised_counts(self._right(global_context, state, pool), randomness.noise, z)
        return to_steps(part.reshape(-1), stddev)

    def _noised_class_sums(self, randomness: "Randomness", noise_multiplier: float) -> Floats:
        train, count = self._features.train, len(self._experiment.classes)
        return noised_class_sums(
            train.features.numpy(), train.labels.numpy(), count, randomness.noise, noise_multiplier
        )

    def _train_on_prototypes(
        self, global_context: Sent, state: PersonalState, randomness: "Randomness", noise_multiplier: float
    ) -> RoundResult:
        """The round under ``one_shot``: the release where it was not made yet, then steps without noise."""
        experiment = self._experiment
        sums = state.class_sums
        if sums is None:
            sums = self._noised_class_sums(randomness, noise_multiplier)
            state = dataclasses.replace(state, class_sums=sums)
        prototypes = prototypes_from(
            sums, noise_multiplier, *self._public_facts, absent_weight=experiment.prompt.absent_weight
        )
        present = np.flatnonzero(prototypes.weights)
        pseudo = LabelledFeatures(
            torch.from_numpy(prototypes.features[present].astype(np.float32)), torch.from_numpy(present)
        )
        weights = torch.from_numpy(prototypes.weights[present])

        def gradient_at(context: Floats) -> Floats:
            return self._total(global_context, context, pseudo, weights)

        update, state = self._unnoised_steps(state, randomness, gradient_at)
        # Near a steep place one gradient may be hundreds of times as long as the others.
        longest, length = (1.0 - ROUNDING_MARGIN) * largest_signal(experiment), float(np.linalg.norm(update))
        return RoundResult(update=update * min(1.0, longest / max(length, 1e-300)), state=state)

    def _with_vote(self, result: RoundResult, pool: Sent, randomness: "Randomness") -> RoundResult:
        """The round's result with the site's noised vote on the pool, for once."""
        if result.state.vote is not None:
            raise RefusedError(
                code="VOTED_ALREADY",
                message="The site votes once in an experiment.",
                rule="one vote",
                advice="Go on without asking for its vote.",
            )
        told = self._noised_vote(pool, randomness, vote_multiplier(self._experiment))
        return RoundResult(result.update, dataclasses.replace(result.state, vote=told), told[None])

    def _noised_vote(self, pool: Sent, randomness: "Randomness", noise_multiplier: float) -> Floats:
        """The vote, and behind it, where the experiment has one, the packed moment around the class vectors that it is
        about: [1 + k (k + 1) / 2].
        """
        head, plain, noise = self.evidence_head(pool, None), self._plain_texts, randomness.noise
        shared, weights = self._unpacked(pool)
        bounds, usable = bounded(self._features.train.features.numpy())
        features, labels = bounds[usable], self._features.train.labels.numpy()[usable]
        each = votes(head, shared, plain, features, labels, weights)
        vote = noised_vote(each, noise, noise_multiplier)
        if not self._experiment.uses_moment:
            return np.array([vote])
        return np.array([vote, *noised_moment(residuals(head, features, labels), noise, noise_multiplier)])

    def _unpacked(self, pool: Sent) -> tuple[Pool, Floats]:
        return unpacked(pool, len(self._experiment.classes), self.feature_size)

    def _rows_noise(self, pool: Sent) -> float:
        """Noise deviation of the rows of a secure sum."""
        return float(np.sqrt(self._unpacked(pool)[0].variances.max()))

    @functools.cached_property
    def _plain_texts(self) -> Floats:
        """Unit text features [classes, feature_size] of the initial prompt."""
        texts: Floats = self._scorer.class_features(self._initial).double().numpy()
        return texts

    def evidence_head(
        self, pool: Sent, global_context: Sent | None, alone: Pool | None = None, own: OwnRows = None
    ) -> Head:
        """Class vectors from the pool, with the texts of the shared prompt as prior; without one, of the plain text.
        With what the site released ``alone`` they may be the site's own (``pooled_head``).

        Raises:
            ModelError: the pool is of another model's features.
        """
        context = None if global_context is None else self.context(global_context, 0.0)
        return pooled_head(self._scorer, self._initial, pool, context, alone, own)

    def alone(self, state: PersonalState) -> Pool | None:
        """What the site released by itself (``evidence.own_rows``)."""
        return own_rows(self._experiment, state.class_sums, state.vote)

    def own_moment(self, pool: Sent, alone: Pool | None, randomness: "Randomness") -> Floats | None:
        """For use at the site, whether it is better served by what it released ``alone`` than by the pool
        (``prefers_own``), and if so, what sharpens its own class vectors: a moment around them, with the noise that the
        released one has. [1 + k (k + 1) / 2], a vote's form with 0 for the vote, or [1] where the experiment has no
        moment; None: the pool. The answer is exact, so it never leaves the site.
        """
        if alone is None:
            return None
        shared, weights = self._unpacked(pool)
        bounds, usable = bounded(self._features.train.features.numpy())
        features, labels = bounds[usable], self._features.train.labels.numpy()[usable]
        known = (shared, alone, weights, self._plain_texts, self._scorer.logit_scale)
        made = np.zeros(1)
        if self._experiment.uses_moment:  # made in any case, so that how long it takes does not tell the answer
            around, multiplier = residuals(own_head(*known), features, labels), vote_multiplier(self._experiment)
            made = np.array([0.0, *noised_moment(around, randomness.noise, multiplier)])
        return made if prefers_own(*known, features, labels) else None

    @functools.cached_property
    def _public_facts(self) -> tuple[Floats, Floats | None]:
        """What ``prototypes_from`` may know beside the noised sums: the class texts' features, and directions."""
        expected = self._plain_texts
        if self._experiment.privacy.projection == "none":
            return expected, None
        count = direction_count(*expected.shape)
        return expected, self._scorer.public_directions(self._initial, count)

    def _begun(self, state: PersonalState, randomness: "Randomness") -> PersonalState:
        """The state with the parameters that the method begins with, at a site's first step."""
        if state.optimizer.steps > 0:
            return state
        parameters = self._method.begin(randomness.factors)
        if parameters is None:
            return state
        return dataclasses.replace(state, parameters=parameters, optimizer=OptimizerState.zeros(parameters.shape))

    def _moved(self, state: PersonalState, gradient: Floats) -> PersonalState:
        """The state after one step of the optimizer along a released gradient of the method's parameters."""
        settings = self._experiment.optimizer
        moved, optimizer = descend(
            settings, settings.personal_learning_rate, _trained(state), gradient, state.optimizer
        )
        parameters = self._method.settled(moved)
        return dataclasses.replace(
            state,
            context=self._method.context(parameters),
            optimizer=optimizer,
            parameters=None if state.parameters is None else parameters,
        )

    def evaluate(
        self,
        global_context: Sent,
        personal_context: Floats,
        pool: Sent | None = None,
        chosen: str = "",
        alone: Pool | None = None,
        own: OwnRows = None,
    ) -> dict[str, float]:
        """Exact accuracies, for public data and a site's own people, by the names of ``payloads.METRIC_NAMES``.

        A set without images has no entry. The personal context counts with the experiment's ``personal_strength``. Once
        votes have chosen, ``personal`` is what this site uses and ``prompt`` the personalised prompt. ``alone`` is what
        the site released by itself, ``own`` its own rows if it takes class vectors from them (``pooled_head``).
        """
        if not isinstance(self._scorer, ClassScorer):
            return self._answered(global_context, personal_context)
        shared = self.context(global_context, 0.0)
        whole = self.context(global_context, self._experiment.prompt.personal_strength * personal_context)
        scale, classes = self._scorer.logit_scale, len(self._experiment.classes)
        plain = text_head(self._plain_texts, scale)
        shares, nothing = self.label_shares, np.zeros(classes)
        texts = {"global": self._scorer.class_features(shared), "personal": self._scorer.class_features(whole)}
        heads = {name: site_head(text_head(of.double().numpy(), scale), nothing, 0.0) for name, of in texts.items()}
        heads["zero_shot"] = site_head(plain, nothing, 0.0)
        mix = self._experiment.prompt.usual_mix
        if pool is not None:
            heads["prompt"] = heads["personal"]
            heads["text"] = site_head(plain, shares, mix)
            heads["evidence"] = site_head(self.evidence_head(pool, None, alone), shares, mix)
            heads["both"] = site_head(self.evidence_head(pool, global_context, alone), shares, mix)
            if chosen == "evidence":
                used = self.evidence_head(pool, global_context, alone, own)
                heads["personal"] = site_head(used, shares, mix)
            elif chosen:
                heads["personal"] = heads["text"]
        found = {name: accuracies(head, self._features.test, self._features.neighbour_test, shares)
                 for name, head in heads.items()}  # fmt: skip
        return {f"{name}_{column}": value for name, columns in found.items() for column, value in columns.items()}

    def _answered(self, global_context: Sent, personal_context: Floats) -> dict[str, float]:
        """As ``evaluate``, of a model without class features."""
        contexts = self._contexts(global_context, personal_context)
        contexts["personal"] = contexts.pop("prompt")
        metrics: dict[str, float] = {}
        for name, context in contexts.items():
            predictor = self._scorer.at(context)
            for where, images in (("local", self._features.test), ("neighbour", self._features.neighbour_test)):
                if len(images):
                    metrics[f"{name}_{where}"] = float(predictor.agreement(images).mean())
        return metrics

    def scores(
        self, global_context: Sent, state: PersonalState, randomness: "Randomness", pool: Sent | None = None
    ) -> Floats:
        """The release of scores: noised counts of right answers on the held-back images, [candidates + 1].

        The candidates are ``privacy_plan.scored``, in that order, all functions of noised releases: the usual mix of
        classes comes from the site's noised class sums, not from its labels (``dpfpl_common.privacy.counts``). Without
        a pool the class vectors are the texts themselves, also those that the site would have alone.
        """
        right = self._right(global_context, state, pool)
        return noised_counts(right, randomness.noise, score_noise_multiplier(self._experiment))

    def _right(self, global_context: Sent, state: PersonalState, pool: Sent | None) -> Floats:
        """[n, candidates], how right each candidate is on each held-back image."""
        contexts, test = self._contexts(global_context, state.context), self._features.test
        right = {name: self._scorer.at(context).agreement(test).numpy() for name, context in contexts.items()}
        if pool is not None and state.class_sums is not None:
            secure = self._experiment.privacy.trust == "secure"
            noise_multiplier = self._rows_noise(pool) if secure else class_sums_multiplier(self._experiment)
            pooled, _ = self._unpacked(pool)
            alone = self.alone(state)
            heads = {
                "text": (text_head(self._plain_texts, self._scorer.logit_scale), pooled.total),
                "evidence": (self.evidence_head(pool, None, alone), pooled.total),
                "both": (self.evidence_head(pool, global_context, alone), pooled.total),
            }
            if alone is not None:
                head = alone_head(self._plain_texts, self._scorer.logit_scale, alone, pool)
                heads["alone"] = (head, alone.total)
            for name, (vectors, total) in heads.items():
                shares = shares_from(state.class_sums, total, noise_multiplier)
                used = site_head(vectors, shares, self._experiment.prompt.usual_mix)
                right[name] = (used.logits(test.features).argmax(dim=1) == test.labels).double().numpy()
        instead = {"text": "zero_shot", "alone": "zero_shot", "evidence": "zero_shot", "both": "global"}
        rows = [right.get(name, right[instead.get(name, "prompt")]) for name in scored(self._experiment)]
        return np.stack(rows, axis=1)

    def _contexts(self, global_context: Sent, personal_context: Floats) -> dict[str, torch.Tensor]:
        """The contexts [num_context, width] that are compared."""
        strength = self._experiment.prompt.personal_strength
        return {
            "prompt": self.context(global_context, strength * personal_context),
            "global": self.context(global_context, 0.0),
            "zero_shot": self._initial,
        }

    def context(self, global_context: npt.ArrayLike, personal_context: npt.ArrayLike) -> torch.Tensor:
        """The full context [num_context, width] for the text tower."""
        displacement = np.asarray(global_context, dtype=np.float64) + np.asarray(personal_context, dtype=np.float64)
        return self._initial + torch.from_numpy(displacement.astype(np.float32))

    def _total(
        self, global_context: Sent, personal_context: Floats, examples: LabelledFeatures, weights: torch.Tensor
    ) -> Floats:
        """The weighted sum of the examples' gradients, where none of them is to be clipped."""
        context = self.context(global_context, personal_context)
        total = self._scorer.total_gradient(context, examples, weights.float())
        return total.double().numpy()


def _trained(state: PersonalState) -> Floats:
    return state.context if state.parameters is None else state.parameters
