"""The agent itself: policy, ledger and learner around one site's data.

Release protocol: validate, lock, RESERVE (durable), compute and noise, write the record (durable), COMMIT (durable),
return. The same request again gets the same bytes at no cost; another request for the same round is refused.
"""

import math
import threading
import time

import numpy as np

from dpfpl_client.agent.budget import check_budget
from dpfpl_client.agent.ledger import Ledger
from dpfpl_client.agent.policy import Policy, permit
from dpfpl_client.agent.store import Record, Store
from dpfpl_client.learning.backbone import ClipBackbone
from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.randomness import RandomnessSource
from dpfpl_common.accounting import PrivacyEvent
from dpfpl_common.errors import ConfigError, DataError, ModelError, RefusedError, StateError
from dpfpl_common.experiment import Experiment
from dpfpl_common.payload import EvaluateRequest, SiteReply, TrainRequest, request_digest
from dpfpl_common.trust import planned_events

__all__ = ["SiteAgent"]


class SiteAgent:
    """Answers the data-plane calls of ``dpfpl_client.agent.endpoint.Agent`` for one site.

    Args:
        name: the site's name, as provisioned.
        backbone: the frozen model.
        features: the site's image features, with the class names that their labels index.
        policy: the site's rules; None only for simulations, where no site exists whose policy could be broken.
        ledger: what the data has paid.
        store: prompts and releases.
        randomness: real, or seeded for tests and simulations.
    """

    def __init__(
        self,
        name: str,
        backbone: ClipBackbone,
        features: SiteFeatures,
        policy: Policy | None,
        ledger: Ledger,
        store: Store,
        randomness: RandomnessSource,
    ) -> None:
        self._name = name
        self._backbone = backbone
        self._features = features
        self._policy = policy
        self._ledger = ledger
        self._store = store
        self._randomness = randomness
        self._learners: dict[str, PromptLearner] = {}
        self._lock = threading.Lock()

    def train(self, request: TrainRequest) -> SiteReply:
        """Take part in one round; see the module's release protocol.

        Raises:
            RefusedError: policy, budget or protocol forbids it; nothing was computed and nothing charged.
        """
        with self._lock:
            experiment = request.experiment
            learner = self._admit(experiment)
            digest = request_digest(request)
            known = self._known_release(request, digest)
            if known is not None:
                return known
            events = self._cost(experiment)
            if self._policy is not None:
                check_budget(self._policy, self._ledger, experiment, events)
            sequence = self._ledger.reserve(experiment.name, request.round, digest, events)
            record = self._compute(learner, request, digest)
            self._store.write(experiment.name, request.round, record)
            self._ledger.commit(sequence, record.digest())
            return record.reply

    def evaluate(self, request: EvaluateRequest) -> SiteReply:
        """Keep the final global context and report what the policy lets out of the accuracies."""
        with self._lock:
            started = time.monotonic()
            learner = self._admit(request.experiment)
            self._store.write_final(request.experiment.name, request.global_context)
            state = self._state(request.experiment)
            metrics = self._metrics(learner, request.global_context, state)
            return SiteReply(self._name, request.round, None, metrics, _seconds(started))

    def _admit(self, experiment: Experiment) -> PromptLearner:
        self._store.check_kept(experiment.name)
        known = self._learners.get(experiment.digest())
        if known is not None:
            return known
        if self._name not in experiment.sites:
            raise RefusedError(
                code="NOT_A_MEMBER",
                message="This site is not on the experiment's list (rule sites).",
                advice="Add the site to the experiment, under a new experiment name.",
            )
        if experiment.privacy.noise_multiplier is None:
            raise RefusedError(
                code="NOISE_NOT_RESOLVED",
                message="The experiment names no noise_multiplier (rule noise_multiplier).",
                advice="Let the server calibrate it from target_epsilon before the run.",
            )
        if experiment.model.fingerprint not in ("", self._backbone.fingerprint):
            raise RefusedError(
                code="OTHER_MODEL",
                message="The site has another model than the experiment asks for (rule model.fingerprint).",
                advice=f"The site's model has the fingerprint {self._backbone.fingerprint}.",
            )
        if self._policy is not None:
            permit(self._policy, experiment)
        try:
            features = self._features.relabelled(experiment.classes)
            learner = PromptLearner(self._backbone, experiment, features)
        except (ModelError, ConfigError, DataError) as error:
            raise RefusedError(code=error.code, message=error.message, advice=error.advice) from None
        # Only now: a configuration that this site cannot run does not use up the experiment's name.
        self._ledger.bind(experiment.name, experiment.digest())
        self._store.remember(experiment)
        self._learners[experiment.digest()] = learner
        return learner

    def _known_release(self, request: TrainRequest, digest: str) -> SiteReply | None:
        """What an earlier, equal request released; None if this round has released nothing and may do so now."""
        name, number = request.experiment.name, request.round
        charge = self._ledger.find(name, number)
        if charge is not None:
            if charge.request_digest != digest:
                raise RefusedError(
                    code="KEY_REUSED_OTHER_DIGEST",
                    message="This round was already asked for with other content (rule one release per round).",
                    advice="Repeat the first request unchanged, or go on to the next round.",
                )
            record = self._record(name, number)
            if record is not None and record.request_digest == digest:
                if not charge.release_digest:
                    self._ledger.commit(charge.sequence, record.digest())
                return record.reply
            # Reserved, then interrupted: the charge stays, computing anew is charged anew.
        # A ledger restored from an old backup may know less than the store.
        if number < self._ledger.last_round(name) or number <= self._store.last_round(name):
            raise RefusedError(
                code="ROUND_ORDER",
                message="This or a later round was already served (rule round order).",
                advice="Resume the experiment at the round after the last completed one.",
            )
        return None

    def _record(self, experiment: str, round_number: int) -> Record | None:
        """What the store keeps of a round, held against the ledger; None if it released nothing yet."""
        charge = self._ledger.find(experiment, round_number)
        record = self._store.read(experiment, round_number)
        committed = charge.release_digest if charge else ""
        if committed and (record is None or record.digest() != committed):
            raise StateError(
                code="RECORD_DAMAGED",
                message="A stored release is not the one that the ledger recorded.",
                advice="Restore the state folder from a backup.",
            )
        return record

    def _cost(self, experiment: Experiment) -> tuple[PrivacyEvent, ...]:
        """What the next round releases anew: its noised steps, or under ``one_shot`` one release, the first time.

        Where sites are sampled, the epsilon is about all rounds, those without this site too: all are charged with the
        first one that it takes part in.
        """
        if experiment.privacy.site_sample_rate < 1:
            return planned_events(experiment, 0 if self._ledger.events(experiment.name) else None)
        paid = experiment.privacy.mechanism == "one_shot" and self._state(experiment).class_sums is not None
        return planned_events(experiment, 0 if paid else experiment.rounds.local_steps)

    def _compute(self, learner: PromptLearner, request: TrainRequest, digest: str) -> Record:
        started = time.monotonic()
        state = self._state(request.experiment)
        metrics = self._metrics(learner, request.global_context, state) if request.evaluate else {}
        randomness = self._randomness.for_round(self._name, request.round)
        result = learner.train_round(request.global_context, state, randomness)
        update = np.ascontiguousarray(result.update, dtype="<f4")
        reply = SiteReply(self._name, request.round, update, metrics, _seconds(started))
        return Record(digest, reply, request.global_context, result.state)

    def _state(self, experiment: Experiment) -> PersonalState:
        last = self._store.last_round(experiment.name)
        record = self._record(experiment.name, last) if last else None
        return record.state if record else PersonalState.initial(experiment)

    def _metrics(
        self,
        learner: PromptLearner,
        global_context: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
        state: PersonalState,
    ) -> dict[str, float]:
        metrics = learner.evaluate(global_context, state.context)
        if self._policy is None:
            return metrics
        if learner.experiment.privacy.unit == "site":  # that prompt learned from training images without noise
            metrics = {name: value for name, value in metrics.items() if not name.startswith("personal")}
        return self._policy.released_metrics(metrics)


def _seconds(started: float) -> float:
    return math.ceil((time.monotonic() - started) * 10) / 10
