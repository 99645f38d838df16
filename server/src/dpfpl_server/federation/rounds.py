"""The DP-FPL strategy: rounds of one experiment over Flower's message API.

Differs from Flower's own strategies where a federation of independent sites needs it:

- one bad reply costs that reply, not the run;
- weights are equal;
- a round closes at its deadline, and is aggregated only with the quorum that the privacy analysis assumes;
- every completed round is checkpointed, so a run can start at any round.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from dpfpl_common.errors import RoundError
from dpfpl_common.experiment import Experiment
from dpfpl_common.optimizer import OptimizerState, descend
from dpfpl_common.privacy.noise import NoiseSource, SystemNoise
from dpfpl_common.privacy.sampling import Sampler, SystemSampler
from dpfpl_common.wire.payloads import EvaluateRequest, SumRequest, TrainRequest
from dpfpl_server.federation.aggregation import aggregate, initial_global_context, update_norm_cap
from dpfpl_server.federation.evidence import Checkpoint
from dpfpl_server.federation.exchange import Outcome, Rejected, exchange
from dpfpl_server.federation.messages import SignatureCheck, message_bytes, request_content
from dpfpl_server.federation.replies import Replies, SumReplies
from dpfpl_server.federation.secure import SecureSum, SumBook

__all__ = ["DPFPLStrategy", "Status"]

Status = dict[str, Any]
"""What the strategy is doing now: ``phase``, ``round``, ``waiting_for`` and so on, ready for JSON."""

LEFT = "REFUSED FORGOTTEN"
"""What a site says that left the experiment for good."""

MOST_UNANSWERED = 1000
"""So many messages without a reply are remembered, so that what comes for them later can be counted as late."""

MANY_SITES = 20
"""With more sites than this, progress is told once a second instead of with every reply."""


class DPFPLStrategy(Strategy):
    """Runs one experiment over a grid.

    Args:
        experiment: noise level resolved.
        nodes: Flower's node id of each site on the experiment's list.
        keys: public signing key of each of these sites; replies that it did not sign are dropped. None, which has to be
            said, takes unsigned ones: for simulations, whose sites are in this process.
        checkpoint: where to go on; None starts from the beginning.
        on_checkpoint: called after every completed round, before the next one starts.
        on_status: called whenever what the strategy does or waits for changes.
        noise: the server's own noise, used under ``central`` trust only.
        sampler: draws the sites of a round, as secret as the noise; from the operating system's entropy unless given.
        site_wait_s: how long missing sites are waited for before a round.
        book: what is kept of secure sums.
        withdrawn: sites whose key the operator has withdrawn since, each with a code and what happened, looked up
            again before each round: nobody waits for them, and a round counts them as sites that gave no reply.
    """

    def __init__(
        self,
        experiment: Experiment,
        nodes: Mapping[str, int],
        *,
        keys: Mapping[str, str] | None,
        checkpoint: Checkpoint | None = None,
        on_checkpoint: Callable[[Checkpoint], None] = lambda checkpoint: None,
        on_status: Callable[[Status], None] = lambda status: None,
        noise: NoiseSource | None = None,
        sampler: Sampler | None = None,
        site_wait_s: float = 120.0,
        book: SumBook | None = None,
        withdrawn: Callable[[], Mapping[str, tuple[str, str]]] = dict,
    ) -> None:
        missing = [site for site in experiment.sites if site not in nodes]
        if missing:
            raise RoundError(
                code="UNKNOWN_SITE",
                message=f"The site {missing[0]!r} of the experiment is not provisioned at this server.",
                advice="Provision it, or take it off the experiment's list.",
            )
        self.experiment = experiment
        self._nodes = {site: nodes[site] for site in experiment.sites}
        self._signatures = None if keys is None else SignatureCheck({s: keys.get(s, "") for s in self._nodes})
        self._on_checkpoint = on_checkpoint
        self._on_status = on_status
        self._noise = noise or SystemNoise()
        self._sampler = sampler or SystemSampler(os.urandom)
        self._site_wait_s = site_wait_s
        self._book = book or SumBook()
        self._withdrawn = withdrawn
        self._gone: dict[str, Rejected] = {}
        self._sum_failures: dict[str, Rejected] = {}
        self._norm_cap = update_norm_cap(experiment)
        self.checkpoint = checkpoint or Checkpoint(
            0, initial_global_context(experiment), OptimizerState.zeros(experiment.context_shape)
        )
        self.final_metrics: dict[str, dict[str, float]] = {}
        self.final_scores: dict[str, tuple[float, ...]] = {}
        self._unanswered: dict[str, str] = {}

    def run(self, grid: Grid) -> Checkpoint:
        """All remaining rounds, then the final evaluation.

        Raises:
            RoundError: a round could not be completed in three attempts.
        """
        if self.experiment.privacy.trust == "secure":
            self._sum(grid, "rows")
            self._sum(grid, "vote")
        while self.checkpoint.round < self.experiment.rounds.number:
            self._complete_round(grid, self.checkpoint.round + 1)
        if self.experiment.privacy.trust == "secure":
            self._sum(grid, "scores")
        dropped = self._evaluate(grid)
        self._on_status({"phase": "FINISHED", "round": self.checkpoint.round, **_rejected(dropped)})
        return self.checkpoint

    def _sum(self, grid: Grid, name: str) -> None:
        """Make one secure sum of the experiment, unless it is there, and add it to the evidence."""
        evidence, experiment = self.checkpoint.evidence, self.experiment
        if name not in evidence.sums:
            number, scores = self.checkpoint.round, name == "scores"
            self._wait_for_sites(grid, number)
            pools = {} if name == "rows" else {site: evidence.packed(experiment, site) for site in self._nodes}
            context = self.checkpoint.global_context if scores else None
            try:
                summed = SecureSum(
                    experiment,
                    name,
                    self._book,
                    ask=lambda requests: self._ask(grid, requests),
                    ready=lambda: self._wait_for_sites(grid, number),
                    on_status=self._on_status,
                    pools=pools,
                    global_context=context,
                ).make()
            except RoundError as error:
                if not scores:
                    reasons = "; ".join(f"{site}: {why}" for site, why in sorted(self._sum_failures.items()))
                    raise RoundError(
                        code=error.code, message=f"{error.message} {reasons}".strip(), advice=error.advice
                    ) from None
                self._on_status({"phase": "SUM_ABANDONED", "round": number, "sum": name, "reasons": error.message})
                return
            evidence = replace(evidence, sums={**evidence.sums, name: summed})
            self.checkpoint = replace(self.checkpoint, evidence=evidence)
            if name == "vote":
                self._tell_evidence(0)

    def _ask(self, grid: Grid, requests: Mapping[str, SumRequest]) -> Mapping[str, bytes]:
        """One step of a secure sum; gives the replies that came in time and were signed by their sites."""
        number = self.checkpoint.round
        asked = {site: request for site, request in requests.items() if site not in self._gone}
        contents = {site: request_content(request) for site, request in asked.items()}
        replies = SumReplies(asked, self._signatures)
        self._exchange(grid, self._addressed(grid, contents, "query", number), "SUMMING", number, replies)
        if replies.failures:
            self._sum_failures = replies.failures
            step = next(iter(asked.values())).step
            self._on_status({"phase": "SUM_STEP", "round": number, "step": step, **_rejected(replies.failures)})
        return replies.accepted

    def _complete_round(self, grid: Grid, number: int, attempts: int = 3) -> None:
        chosen = self._sampled_nodes()  # once a round: another attempt is no second chance to be drawn
        for attempt in range(1, attempts + 1):
            self._wait_for_sites(grid, number)
            started = time.monotonic()
            request = self._train_request(number)
            asked = {s: self.checkpoint.evidence.ask(request, s) for s in chosen if s not in self._gone}
            contents = _encoded(asked)
            messages = self._addressed(grid, contents, "train", number)
            replies = Replies(self.experiment, asked, self._norm_cap, self._signatures)
            replies.failures.update({site: why for site, why in self._gone.items() if site in chosen})
            outcome = self._exchange(grid, messages, "TRAINING", number, replies)
            self._notice_withdrawn(number)
            replies.failures.update({s: why for s, why in self._gone.items() if s in replies.failures})
            try:
                self._close_round(number, replies, outcome, messages, asked, time.monotonic() - started)
            except RoundError as error:
                reasons = "; ".join(f"{site}: {why}" for site, why in sorted(replies.failures.items()))
                self._on_status(
                    {
                        "phase": "ROUND_ABANDONED",
                        "round": number,
                        "attempt": attempt,
                        "reasons": reasons,
                        **_rejected(replies.failures),
                        **_ignored(outcome),
                    }
                )
                if attempt == attempts or replies.hopeless:
                    raise RoundError(
                        code="ROUND_ABANDONED",
                        message=f"Round {number} had {error.message} ({reasons})",
                        advice="Look at each reason. A refusal needs a decision of the site's administrator, or "
                        "another experiment; a fault needs a repair there. Then: dpfpl-server resume NAME.",
                    ) from None
                continue
            return

    def _close_round(
        self,
        number: int,
        replies: Replies,
        outcome: Outcome,
        messages: Mapping[str, Message],
        asked: Mapping[str, TrainRequest],
        seconds: float,
    ) -> None:
        experiment, before = self.experiment, self.checkpoint
        gradient = aggregate(experiment, replies.updates, self._noise)
        context, optimizer = descend(
            experiment.optimizer,
            experiment.optimizer.global_learning_rate,
            before.global_context.astype(np.float64),
            gradient,
            before.optimizer,
        )
        entry = {
            "round": number,
            "seconds": round(seconds, 3),
            "bytes_up": replies.bytes,
            "bytes_down": sum(message_bytes(message) for message in messages.values())
            + sum(message_bytes(messages[site]) for site in outcome.again),
            "sites": sorted(replies.accepted),
            **_rejected(replies.failures),
            **_ignored(outcome),
            "signal": replies.signal,
            "metrics": {site: reply.metrics for site, reply in replies.accepted.items() if reply.metrics},
        }
        evidence = before.evidence.with_replies(replies.evidence, asked) if replies.evidence else before.evidence
        for site in (s for s, why in replies.failures.items() if why.code == LEFT and s in evidence.rows):
            evidence = evidence.without(site)
        self.checkpoint = Checkpoint(number, context.astype("<f4"), optimizer, (*before.history, entry), evidence)
        self._on_checkpoint(self.checkpoint)
        self._on_status({"phase": "ROUND_DONE", **entry})
        if evidence is not before.evidence:
            self._tell_evidence(number)

    def _tell_evidence(self, number: int) -> None:
        facts = self.checkpoint.evidence.facts(self.experiment)
        found = f"class vectors: {facts['classes_found']} of {facts['classes']} classes stand out of the noise"
        self._on_status({"phase": "EVIDENCE", "round": number, "text": facts["warning"] or found, **facts})

    def _train_request(self, number: int) -> TrainRequest:
        evaluate = (number - 1) % self.experiment.rounds.evaluate_every == 0
        secure = self.experiment.privacy.trust == "secure"
        pool = self.checkpoint.evidence.packed(self.experiment, "", moment=False) if secure else None
        return TrainRequest(self.experiment, number, self.checkpoint.global_context, evaluate, pool=pool)

    def _evaluate(self, grid: Grid) -> dict[str, Rejected]:
        """Ask for scores, and for the accuracies of sites on public data. Gives why the other sites did not answer."""
        number = self.checkpoint.round
        request = EvaluateRequest(self.experiment, number, self.checkpoint.global_context)
        self._notice_withdrawn(number)
        asked = {s: self.checkpoint.evidence.ask_last(request, s) for s in self._nodes if s not in self._gone}
        contents = _encoded(asked)
        messages = self._addressed(grid, contents, "evaluate", number)
        replies = Replies(self.experiment, asked, self._norm_cap, self._signatures)
        replies.failures.update(self._gone)
        self._exchange(grid, messages, "EVALUATING", number, replies)
        self.final_metrics = {site: reply.metrics for site, reply in replies.accepted.items()}
        self.final_scores = {site: reply.scores for site, reply in replies.accepted.items() if reply.scores}
        return replies.failures

    def _sampled_nodes(self) -> dict[str, int]:
        """The sites that take part in a round, each with chance ``site_sample_rate``, independently."""
        rate = self.experiment.privacy.site_sample_rate
        if rate >= 1:
            return self._nodes
        sites = self.experiment.sites
        return {sites[index]: self._nodes[sites[index]] for index in self._sampler.draw(len(sites), rate)}

    def _addressed(self, grid: Grid, contents: Mapping[str, RecordDict], kind: str, number: int) -> dict[str, Message]:
        return {
            site: grid.create_message(content, kind, self._nodes[site], str(number))
            for site, content in contents.items()
        }

    def _exchange(
        self, grid: Grid, messages: Mapping[str, Message], phase: str, number: int, replies: Replies | SumReplies
    ) -> Outcome:
        waiting = set(messages)
        said = -math.inf

        def report(answered: str | None = None) -> None:
            nonlocal said
            waiting.discard(answered or "")
            # Hundreds of sites that answer in one second would fill the disk with lists of those still missing.
            if waiting and len(messages) > MANY_SITES and time.monotonic() - said < 1.0:
                return
            said = time.monotonic()
            self._on_status({"phase": phase, "round": number, "waiting_for": sorted(waiting)})

        report()
        deadline = self.experiment.rounds.deadline

        def again(site: str) -> Message:
            """Free for the site: it serves a finished release once more, and computes one only if it has none."""
            first = messages[site]
            return grid.create_message(first.content, first.metadata.message_type, self._nodes[site], str(number))

        take, missed = replies.take, self._unanswered
        outcome = exchange(grid, messages, deadline, report, take=take, earlier=missed, again=again)
        replies.failures.update(outcome.failures)
        newest = list(outcome.unanswered.items())[-MOST_UNANSWERED:]
        self._unanswered = dict(newest)
        return outcome

    def _wait_for_sites(self, grid: Grid, number: int) -> None:
        """Wait, visibly and for a bounded time, until the quorum is connected."""
        end = time.monotonic() + self._site_wait_s
        said: list[str] = []
        while True:
            self._notice_withdrawn(number)
            online = set(grid.get_node_ids())
            missing = [s for s, node in self._nodes.items() if node not in online and s not in self._gone]
            connected = len(self._nodes) - len(missing) - len(self._gone)
            if not missing or (connected >= self.experiment.min_sites and number > 1):
                return
            if missing != said:  # told again only when it changes; status and watch know how long it lasts
                said = missing
                text = f"WAITING_FOR_SITES ({connected}/{len(self._nodes)}, missing: {', '.join(missing)})"
                self._on_status(
                    {
                        "phase": "WAITING_FOR_SITES",
                        "round": number,
                        "connected": connected,
                        "sites": len(self._nodes),
                        "waiting_for": missing,
                        "text": f"{text}, at most {self._site_wait_s:g} s",
                    }
                )
            if time.monotonic() >= end:
                if connected >= self.experiment.min_sites:
                    return
                raise RoundError(
                    code="SITES_MISSING",
                    message=f"Only {connected} of {len(self._nodes)} sites are connected; missing: "
                    f"{', '.join(missing)}.",
                    advice="Start the missing sites (dpfpl-client start), then resume the experiment.",
                )
            time.sleep(0.5)

    def _notice_withdrawn(self, number: int) -> None:
        """Say once of each site that it left, and end where too few are left for any round to come.

        Raises:
            RoundError: SITES_WITHDRAWN.
        """
        gone = {site: Rejected(*why) for site, why in self._withdrawn().items() if site in self._nodes}
        new, self._gone = sorted(gone.keys() - self._gone.keys()), gone
        left, least = len(self._nodes) - len(gone), self.experiment.min_sites
        said = "; ".join(why.reason for _, why in sorted(gone.items()))
        if new and left >= least:
            text = f"{said}. The run goes on with {left} of {len(self._nodes)} sites, at least {least} are needed"
            self._on_status({"phase": "SITES_WITHDRAWN", "round": number, "sites": new, "text": text})
        if gone and left < least:
            raise RoundError(
                code="SITES_WITHDRAWN",
                message=f"{said}. {left} of {len(self._nodes)} sites are left, and this experiment needs {least} for a "
                f"round. It cannot be finished as it is; the {self.checkpoint.round} completed rounds are kept.",
                advice="Start another experiment, under a new name, without these sites. A revoked "
                "site that comes back (dpfpl-server sites add NAME) gets a new kit; then resume takes it in again.",
            )

    # Flower's own hooks, for tools that drive a strategy through them.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of a round; the arrays are this strategy's own checkpoint."""
        request, evidence = self._train_request(server_round), self.checkpoint.evidence
        contents = {site: request_content(evidence.ask(request, site)) for site in self._sampled_nodes()}
        return list(self._addressed(grid, contents, "train", server_round).values())

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Not offered: a round is more than its replies (deadline, quorum, checkpoint). Use ``run``."""
        raise NotImplementedError("DPFPLStrategy drives its own rounds: call run(grid).")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: evaluation travels in the training reply."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing to add up."""
        return None

    def summary(self) -> None:
        """Nothing is logged: the run folder says it."""

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Flower's entry point: the same as ``run``."""
        self.run(grid)
        return Result(arrays=ArrayRecord([self.checkpoint.global_context]))


def _encoded(asked: Mapping[str, TrainRequest | EvaluateRequest]) -> dict[str, RecordDict]:
    """Every site's request as a message's content; a request that many sites share is encoded once."""
    once = {id(request): request_content(request) for request in {id(each): each for each in asked.values()}.values()}
    return {site: once[id(request)] for site, request in asked.items()}


def _rejected(failures: Mapping[str, Rejected]) -> dict[str, dict[str, str]]:
    """The rejected replies of an exchange by site: in words, and their codes."""
    return {
        "dropped": {site: str(why) for site, why in failures.items()},
        "codes": {site: why.code for site, why in failures.items()},
    }


def _ignored(outcome: Outcome) -> Status:
    """Which sites were asked a second time, and how many replies of each site came too late or twice."""
    return {
        "asked_again": sorted(outcome.again),
        "late": dict(outcome.late),
        "duplicates": dict(outcome.duplicates),
    }
