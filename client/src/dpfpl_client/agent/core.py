"""The agent itself: policy, ledger and learner around one site's data.

Release protocol: validate, lock, RESERVE (durable), compute and noise, write the record (durable), COMMIT (durable),
return. The same request again gets the same bytes at no cost; another request for the same round is refused.
"""

import contextlib
import dataclasses
import hashlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dpfpl_client.agent.audit import AuditLog
from dpfpl_client.agent.budget import Quotas, check_budget
from dpfpl_client.agent.keys import NO_KEYS, AggregationKeys
from dpfpl_client.agent.ledger.anchor import events_to_json
from dpfpl_client.agent.ledger.book import ROWS, SCORES, VOTE, Ledger
from dpfpl_client.agent.pace import Pace
from dpfpl_client.agent.policy_file import Rules
from dpfpl_client.agent.store import Choice, Record, Store
from dpfpl_client.agent.sums import KeptSum, next_step
from dpfpl_client.learning.evidence import rows_at_site
from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.step import RandomnessSource
from dpfpl_client.models.backbone import Backbone
from dpfpl_common.errors import ConfigError, DataError, DpfplError, ModelError, RefusedError, StateError
from dpfpl_common.experiment import Experiment
from dpfpl_common.policy import EXACT_METRICS, Policy, permit
from dpfpl_common.privacy.accounting import PrivacyEvent
from dpfpl_common.privacy_plan import planned_events, planned_score_events
from dpfpl_common.secure import STEPS
from dpfpl_common.wire.payloads import EvaluateRequest, SiteReply, SumReply, SumRequest, TrainRequest, request_digest

__all__ = ["SiteAgent", "evaluation_digest"]

_LOG = logging.getLogger(__name__)

Request = TrainRequest | EvaluateRequest | SumRequest
R = TypeVar("R", SiteReply, SumReply)

MOST_LEARNERS = 8


class SiteAgent:
    """Answers the data-plane calls of ``dpfpl_client.agent.endpoint.Agent`` for one site.

    Args:
        name: the site's name, as provisioned.
        backbone: the frozen model.
        features: the site's image features, with the class names that their labels index.
        policy: the site's rules, asked before every answer; None only for simulations, where no site exists whose
            policy could be broken.
        ledger: what the data has paid.
        store: prompts and releases.
        randomness: real, or seeded for tests and simulations.
        public: whether the data are public, so that exact accuracies may leave.
        audit: where every answer and refusal is recorded; None for simulations.
        quotas: how often may be computed; None for a fresh count.
        aggregation: keys of secure sums.
    """

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        features: SiteFeatures,
        policy: Rules | None,
        ledger: Ledger,
        store: Store,
        randomness: RandomnessSource,
        *,
        public: bool = False,
        audit: AuditLog | None = None,
        quotas: Quotas | None = None,
        aggregation: AggregationKeys = NO_KEYS,
    ) -> None:
        self._name = name
        self._backbone = backbone
        self._features = features
        self._rules = policy
        self._ledger = ledger
        self._store = store
        self._randomness = randomness
        self._public = public
        self._audit = audit or AuditLog(None)
        self._pace = Pace(store)
        self._quotas = quotas or Quotas()
        self._aggregation = aggregation
        self._learners: dict[str, PromptLearner] = {}
        self._left, self._again = "", False
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def train(self, request: TrainRequest) -> SiteReply:
        """Take part in one round; see the module's release protocol.

        Raises:
            RefusedError: policy, budget or protocol forbids it; nothing was computed and nothing charged.
        """
        reply = self._answer("train", request, lambda policy: self._train(request, policy))
        self._left = request_digest(request)
        return reply

    def evaluate(self, request: EvaluateRequest) -> SiteReply:
        """Keep the final global context; after the last round release scores, once for an experiment.

        The same request gets the same answer. Exact accuracies are told on public data alone, and not after the
        policy's number of different requests.
        """
        return self._answer("evaluate", request, lambda policy: self._evaluate(request, policy))

    def add_up(self, request: SumRequest) -> SumReply:
        """Take one step of a secure sum; see ``dpfpl_client.agent.sums``.

        Raises:
            RefusedError: policy, budget or protocol forbids it.
        """
        return self._answer("sum", request, lambda policy: self._add_up(request, policy))

    def _answer(self, kind: str, request: Request, act: Callable[[Policy | None], R]) -> R:
        """One request at a time, under the rules as they are now, answered in the experiment's fixed time.

        A refusal takes ``reply_slot``, as it needs no work that grows with the site's examples. So does an unforeseen
        error, doubled until it is enough: how far the work came may depend on them.
        """
        policy: Policy | None = None
        refusal: Exception | None = None
        with self._lock:
            try:
                policy = None if self._rules is None else self._rules.current()
                self._pace.start()
                self._again = False
                answer = act(policy)
                due = 0.0 if policy is None or self._again else self._due(request.experiment, policy)
            except Exception as error:
                if isinstance(error, DpfplError):
                    with contextlib.suppress(StateError):  # the first error is the one to tell
                        rule = error.rule if isinstance(error, RefusedError) else ""
                        who = _who(request)
                        self._audit.write("refused", durable=False, request=kind, **who, code=error.code, rule=rule)
                if policy is None:
                    raise
                refusal, due = error, self._pace.slot(policy.reply_slot)
        time.sleep(max(0.0, due - time.monotonic()))
        if refusal is not None:
            raise refusal
        return answer

    def _due(self, experiment: Experiment, policy: Policy) -> float:
        """When the reply may leave."""
        due, stretched = self._pace.due(experiment.name, policy.reply_slot)
        if stretched:  # how long it took stays here
            self._audit.write("reply_time_stretched", experiment=experiment.name)
            _LOG.warning("%s: the reply time was too short; all replies take longer from now on", experiment.name)
        return due

    def _train(self, request: TrainRequest, policy: Policy | None) -> SiteReply:
        experiment = request.experiment
        self._admit(experiment, policy)
        digest = request_digest(request)
        known = self._known_release(request, digest)
        if known is not None:
            # Asked twice in a row, as a server does that hears nothing: the answer left in its fixed time already, and
            # a second wait would hold up the next request.
            self._again = digest == self._left
            self._audit.write("repeated", request="train", **_who(request), asked=digest)
            return self._permitted(known, policy)
        votes = request.pool is not None and experiment.privacy.trust != "secure"
        if votes and self._ledger.voted(experiment.name):
            raise RefusedError(
                code="VOTED_ALREADY",
                message="A site votes once in an experiment, and this site's vote may have left it already.",
                rule="one vote",
                advice="Go on without asking for its vote.",
            )
        events = self._cost(experiment, votes=votes)
        plan: tuple[PrivacyEvent, ...] = ()
        if policy is not None:
            self._quotas.take(policy, self._ledger, experiment.name, request.round)
            plan = check_budget(policy, self._ledger, experiment, events)
        # Only now: a configuration that this site cannot or will not run does not use up the experiment's name.
        learner = self._learner(experiment)
        self._bind(experiment, learner, policy)
        sequence = self._ledger.reserve(experiment.name, request.round, digest, events, plan)
        record = self._compute(learner, request, digest, policy)
        self._store.write(experiment.name, request.round, record)
        self._ledger.commit(sequence, record.digest(), vote=record.state.vote is not None)
        self._audit.write(
            "released",
            request="train",
            **_who(request),
            asked=digest,
            ledger_record=sequence,
            charged=events_to_json(events),
            left=record.digest(),
            metrics=sorted(record.reply.metrics),
        )
        return record.reply

    def _evaluate(self, request: EvaluateRequest, policy: Policy | None) -> SiteReply:
        experiment = request.experiment
        self._admit(experiment, policy)
        asked = evaluation_digest(request)
        answers = self._ledger.evaluations(experiment.name)
        answer = answers.get(asked)
        told = policy is None or len(answers) < policy.max_evaluations
        if answer is None and policy is not None:
            self._quotas.take(policy, self._ledger, experiment.name, None)
        learner = self._learner(experiment)
        self._bind(experiment, learner, policy)
        state, choice = self._state(experiment), None
        if (pool := request.pool) is not None:
            own, kept = None, None
            with contextlib.suppress(StateError):  # a damaged one is written anew
                kept = self._store.read_choice(experiment.name)
            if kept is not None and kept.chosen == request.chosen and np.array_equal(kept.pool, pool):
                own = kept.own  # asked again: no other noise
            elif request.chosen == "evidence":
                randomness = self._randomness.for_round(self._name, experiment.rounds.number + 2)
                own = learner.own_moment(pool, learner.alone(state), randomness)
            choice = Choice(request.chosen, pool, learner.label_shares, own)
        self._store.write_final(experiment.name, request.global_context, choice)
        if answer is None:
            metrics = self._metrics(learner, request, state, policy, choice) if told else {}
            if not told:
                _LOG.warning("%s: answered without accuracies, as max_evaluations of policy.toml says", experiment.name)
            answer = {"metrics": metrics}
            self._ledger.record_evaluation(experiment.name, asked, answer)
        scores = self._scores(learner, request, asked, policy)
        reply = SiteReply(self._name, request.round, None, dict(answer["metrics"]), scores)
        self._audit.write(
            "evaluated", request="evaluate", **_who(request), asked=asked, metrics=sorted(reply.metrics), scores=scores
        )
        return self._permitted(reply, policy)

    def _scores(
        self, learner: PromptLearner, request: EvaluateRequest, asked: str, policy: Policy | None
    ) -> tuple[float, ...]:
        """The release of scores, by the same protocol as a round's; () where none is made.

        One request has scores for an experiment, the first after its last round; what decides is no data of the site.
        """
        experiment = request.experiment
        if experiment.privacy.trust == "secure":
            return ()
        if request.round != experiment.rounds.number or (policy is not None and policy.metrics == "none"):
            return ()
        charge = self._ledger.find(experiment.name, SCORES)
        if charge is not None and charge.request_digest != asked:
            return ()
        if charge is not None and charge.release_digest:
            return self._store.read_scores(experiment.name, charge.release_digest)
        events = planned_score_events(experiment)
        if not events:
            return ()
        plan = () if policy is None else check_budget(policy, self._ledger, experiment, events)
        sequence = self._ledger.reserve(experiment.name, SCORES, asked, events, plan)
        state = self._state(experiment)
        randomness = self._randomness.for_round(self._name, experiment.rounds.number + 1)
        counts = learner.scores(request.global_context, state, randomness, request.pool)
        scores = tuple(float(value) for value in counts)
        self._ledger.commit(sequence, self._store.write_scores(experiment.name, scores))
        return scores

    def _add_up(self, request: SumRequest, policy: Policy | None) -> SumReply:
        experiment, name = request.experiment, request.experiment.name
        self._admit(experiment, policy)
        if policy is not None and request.sum == "scores" and policy.metrics == "none":
            raise RefusedError(
                code="SCORES_NOT_ALLOWED",
                message="The site's policy lets no scores leave.",
                rule="metrics",
                advice="The experiment ends without scores.",
            )
        kept, told = self._store.read_sum(name, request.sum), self._ledger.unmasked(name, request.sum)
        if self._ledger.doubtful(name) or (told and not kept.unmasked and told != _unmasking(request)):
            raise _sum_released("an old state was put back")
        events = _sum_events(experiment, request.sum)
        plan: tuple[PrivacyEvent, ...] = ()
        if policy is not None and request.attempt > kept.attempt:
            self._quotas.take(policy, self._ledger, name, None)
            plan = check_budget(policy, self._ledger, experiment, events)
        learner = self._learner(experiment)
        self._bind(experiment, learner, policy)
        number = {"rows": ROWS, "vote": VOTE, "scores": SCORES}[request.sum]

        def compute() -> npt.NDArray[np.int64]:
            if request.sum == "vote" and self._ledger.find(name, ROWS) is None:
                raise RefusedError(
                    code="SUM_ORDER",
                    message="A vote follows the rows, with which it is charged.",
                    rule="order of sums",
                    advice="Sum the rows first.",
                )
            # Nothing of an interrupted computation can have left, so it is charged once, however often it is begun.
            charge = self._ledger.find(name, number)
            if charge is None:
                self._ledger.reserve(name, number, request.sum, events, plan)
            elif charge.release_digest:
                raise _sum_released("its record is gone")
            last = experiment.rounds.number
            number_of = {"rows": 0, "vote": last + 2, "scores": last + 1}[request.sum]
            randomness = self._randomness.for_round(self._name, number_of)
            state = self._state(experiment)
            return learner.sum_part(request.sum, state, randomness, request.pool, request.global_context)

        def keep(now: KeptSum) -> None:
            if now.unmasked and not told:  # with the ledger an old state folder is noticed, without it is not
                self._ledger.record_unmasked(name, request.sum, _unmasking(request))
            self._store.write_sum(name, request.sum, now)
            charge = self._ledger.find(name, number)
            if now.values is not None and charge is not None and not charge.release_digest:
                self._ledger.commit(charge.sequence, now.digest())

        reply = next_step(kept, request, self._name, compute, keep, self._aggregation)
        self._audit.write("summed", request=request.sum, **_who(request), attempt=request.attempt, step=request.step)
        return reply

    def _permitted(self, reply: SiteReply, policy: Policy | None) -> SiteReply:
        """The reply without what the policy, as it is now, keeps at the site: stored answers may be older than it."""
        if policy is None:
            return reply
        metrics = policy.released_metrics(reply.metrics) if self._public else {}
        return dataclasses.replace(reply, metrics=metrics, scores=() if policy.metrics == "none" else reply.scores)

    def _admit(self, experiment: Experiment, policy: Policy | None) -> None:
        """Refuse what the site may not or cannot take part in; asked before every answer, without its examples."""
        self._store.check_kept(experiment.name)
        if self._name not in experiment.sites:
            raise RefusedError(
                code="NOT_A_MEMBER",
                message="This site is not on the experiment's list.",
                rule="sites",
                advice="Add the site to the experiment, under a new experiment name.",
            )
        if experiment.privacy.noise_multiplier is None:
            raise RefusedError(
                code="NOISE_NOT_RESOLVED",
                message="The experiment names no noise_multiplier.",
                rule="noise_multiplier",
                advice="Let the server calibrate it from target_epsilon before the run.",
            )
        if experiment.model.fingerprint not in ("", self._backbone.fingerprint):
            raise RefusedError(
                code="OTHER_MODEL",
                message="The site's model is not the one that the experiment asks for.",
                rule="model.fingerprint",
                advice=f"The site's model has the fingerprint {self._backbone.fingerprint}.",
            )
        if policy is not None and self._rules is not None:
            approved = self._rules.approves(experiment)
            if not approved:
                self._rules.wait_for_approval(experiment)
            permit(policy, experiment, approved)
        self._ledger.check_name(experiment.name, experiment.digest())
        if experiment.digest() not in self._learners:
            nothing = SiteFeatures.empty(self._features.train.features.shape[1], experiment.classes)
            try:
                PromptLearner(self._backbone, experiment, nothing)
            except (ModelError, ConfigError, DataError) as error:
                raise RefusedError(code=error.code, message=error.message, advice=error.advice) from None

    def _learner(self, experiment: Experiment) -> PromptLearner:
        """Of an experiment that was admitted. To gather its classes' features takes a time that tells how many."""
        digest = experiment.digest()
        learner = self._learners.pop(digest, None)
        if learner is None:
            learner = PromptLearner(self._backbone, experiment, self._features.relabelled(experiment.classes))
        self._learners[digest] = learner
        while len(self._learners) > MOST_LEARNERS:
            del self._learners[next(iter(self._learners))]
        return learner

    def _bind(self, experiment: Experiment, learner: PromptLearner, policy: Policy | None) -> None:
        self._ledger.bind(experiment.name, experiment.digest())
        self._store.remember(experiment)
        if policy is not None:
            self._pace.rehearse(experiment, self._backbone, self._features)
        # Only here, in the time of a paced answer: this looks at every example. To the log alone.
        if experiment.name not in self._warned:
            self._warned.add(experiment.name)
            for warning in (learner.too_long_answers, self._features.left_out_of(experiment)):
                if warning:
                    _LOG.warning("%s: %s", experiment.name, warning)

    def _known_release(self, request: TrainRequest, digest: str) -> SiteReply | None:
        """What an earlier, equal request released; None if this round has released nothing and may do so now."""
        name, number = request.experiment.name, request.round
        charge = self._ledger.find(name, number)
        if charge is not None:
            if charge.request_digest != digest:
                raise RefusedError(
                    code="KEY_REUSED_OTHER_DIGEST",
                    message="This round was already asked for with other content.",
                    rule="one release per round",
                    advice="Repeat the first request unchanged, or go on to the next round.",
                )
            record = self._record(name, number)
            if record is not None and record.request_digest == digest:
                if not charge.release_digest:
                    self._ledger.commit(charge.sequence, record.digest(), vote=record.state.vote is not None)
                return record.reply
            # Reserved, then interrupted: the charge stays, and computing again is charged again.
        # A ledger restored from an old backup may know less than the store.
        if number < self._ledger.last_round(name) or number <= self._store.last_round(name):
            raise RefusedError(
                code="ROUND_ORDER",
                message="This or a later round was already served.",
                rule="round order",
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

    def _cost(self, experiment: Experiment, *, votes: bool) -> tuple[PrivacyEvent, ...]:
        """What the next round newly releases: its noised steps, or under ``one_shot`` one release, the first time.

        Where sites are sampled, the epsilon is about all rounds, those without this site too: all are charged with the
        first one that it takes part in.

        A vote was charged with the class sums. Where an old ledger was accepted since, one may have left that is not
        known of any more: another is charged as a whole release.
        """
        if experiment.privacy.site_sample_rate < 1:
            return planned_events(experiment, 0 if self._ledger.events(experiment.name) else None)
        if experiment.privacy.trust == "secure":  # the sums are charged, and training is made of them
            return planned_events(experiment, 0)
        paid = experiment.privacy.mechanism == "one_shot" and self._state(experiment).class_sums is not None
        if paid and votes and self._ledger.accepted:
            known = (c for c in self._ledger.charges() if c.sequence > self._ledger.accepted)
            paid = any(c.experiment == experiment.name and any(event.steps for event in c.events) for c in known)
        return planned_events(experiment, 0 if paid else experiment.rounds.local_steps)

    def _compute(self, learner: PromptLearner, request: TrainRequest, digest: str, policy: Policy | None) -> Record:
        state = self._state(request.experiment)
        metrics = self._metrics(learner, request, state, policy) if request.evaluate else {}
        randomness = self._randomness.for_round(self._name, request.round)
        result = learner.train_round(
            request.global_context, state, randomness, collect=request.collect, pool=request.pool
        )
        update = np.ascontiguousarray(result.update, dtype="<f4")
        evidence = None if result.evidence is None else np.ascontiguousarray(result.evidence, dtype="<f4")
        reply = SiteReply(self._name, request.round, update, metrics, evidence=evidence)
        return Record(digest, reply, request.global_context, result.state)

    def _state(self, experiment: Experiment) -> PersonalState:
        last = self._store.last_round(experiment.name)
        record = self._record(experiment.name, last) if last else None
        return record.state if record else PersonalState.initial(experiment)

    def _metrics(
        self,
        learner: PromptLearner,
        request: TrainRequest | EvaluateRequest,
        state: PersonalState,
        policy: Policy | None,
        choice: Choice | None = None,
    ) -> dict[str, float]:
        """The exact accuracies that may leave, on public data alone; no other accuracy is computed."""
        if policy is not None and (not self._public or policy.metrics not in EXACT_METRICS):
            return {}
        used: tuple[Any, ...] = ()
        if choice is not None:
            own = rows_at_site(learner.experiment, state.class_sums, choice.own)
            used = (choice.pool, choice.chosen, learner.alone(state), own)
        metrics = learner.evaluate(request.global_context, state.context, *used)
        if policy is None:
            return metrics
        if learner.experiment.privacy.unit == "site":  # that prompt learned from training images without noise
            metrics = {name: value for name, value in metrics.items() if not name.startswith("personal")}
        return policy.released_metrics(metrics)


def evaluation_digest(request: EvaluateRequest) -> str:
    """sha256 of everything that the answer to an evaluation depends on."""
    digest = hashlib.sha256(f"evaluate {request.experiment.digest()} {request.round} ".encode())
    digest.update(request.global_context.astype("<f4").tobytes())
    digest.update(request.chosen.encode() + b" ")
    if request.pool is not None:
        digest.update(request.pool.astype("<f4").tobytes())
    return digest.hexdigest()


def _who(request: Request) -> dict[str, Any]:
    return {
        "experiment": request.experiment.name,
        "configuration": request.experiment.digest(),
        "round": request.round,
    }


def _unmasking(request: SumRequest) -> str:
    """The one request, if it is one, to which a site tells what unmasks a sum."""
    return f"{request.attempt} {hashlib.sha256(request.content).hexdigest()}" if request.step == STEPS[-1] else ""


def _sum_released(why: str) -> RefusedError:
    return RefusedError(
        code="SUM_RELEASED",
        message=f"This site's part of the sum may have left it already: {why}.",
        rule="one sum",
        advice="Restore the site's newest state folder, or run the experiment under a new name.",
    )


def _sum_events(experiment: Experiment, name: str) -> tuple[PrivacyEvent, ...]:
    """What a sum is charged with: rows and vote together, with the rows, as one release; scores by themselves."""
    if name == "scores":
        return planned_score_events(experiment)
    return planned_events(experiment, 1 if name == "rows" else 0)
