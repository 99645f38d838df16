"""Counts what the agent answers, for its administrator: never more than the administrator may see.

The numbers are outcomes by code, seconds, epsilons out of the ledger, and of the accuracies those that the policy let
out of the site anyway. No class name, no count of images, nothing of a prompt or a gradient.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from dpfpl_client.agent.endpoint import Agent
from dpfpl_common.errors import DpfplError
from dpfpl_common.payload import EvaluateRequest, SiteReply, TrainRequest
from dpfpl_common.prometheus import Family

__all__ = ["MeteredAgent", "ledger_families"]

MAX_EXPERIMENTS = 100
"""As many experiments keep their last round and accuracies; an operator cannot fill the memory with names."""


class MeteredAgent:
    """An agent that counts its answers.

    Args:
        agent: does the work.
        clock: monotonic seconds.
    """

    def __init__(self, agent: Agent, clock: Callable[[], float] = time.monotonic) -> None:
        self._agent = agent
        self._clock = clock
        self._lock = threading.Lock()
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[str, float] = {}
        self._rounds: dict[str, int] = {}
        self._accuracies: dict[str, dict[str, float]] = {}
        self._computing = 0

    def train(self, request: TrainRequest) -> SiteReply:
        """See ``Agent``."""
        return self._counted("train", request, lambda: self._agent.train(request))

    def evaluate(self, request: EvaluateRequest) -> SiteReply:
        """See ``Agent``."""
        return self._counted("evaluate", request, lambda: self._agent.evaluate(request))

    def families(self) -> list[Family]:
        """The counters now."""
        with self._lock:
            outcomes, seconds = dict(self._outcomes), dict(self._seconds)
            rounds, accuracies = dict(self._rounds), dict(self._accuracies)
            computing = self._computing
        return [
            Family(
                "dpfpl_agent_requests_total",
                "counter",
                "Requests by call and outcome: answered, or the code of the refusal.",
                [({"call": call, "outcome": code}, n) for (call, code), n in sorted(outcomes.items())],
            ),
            Family(
                "dpfpl_agent_seconds_total",
                "counter",
                "Seconds spent on requests, waiting for their turn included.",
                [({"call": call}, value) for call, value in sorted(seconds.items())],
            ),
            Family("dpfpl_agent_computing", "gauge", "Requests at work or waiting for their turn.", [({}, computing)]),
            Family(
                "dpfpl_agent_round",
                "gauge",
                "The last round answered.",
                [({"experiment": name}, number) for name, number in sorted(rounds.items())],
            ),
            Family(
                "dpfpl_agent_accuracy",
                "gauge",
                "The accuracies that the policy let out with the last reply that had some.",
                [
                    ({"experiment": name, "kind": kind}, value)
                    for name, values in sorted(accuracies.items())
                    for kind, value in sorted(values.items())
                ],
            ),
        ]

    def _counted(self, call: str, request: TrainRequest | EvaluateRequest, act: Callable[[], SiteReply]) -> SiteReply:
        started, outcome = self._clock(), "INTERNAL"
        with self._lock:
            self._computing += 1
        try:
            reply = act()
            outcome = "answered"
            self._note(request, reply)
            return reply
        except DpfplError as error:
            outcome = error.code
            raise
        finally:
            with self._lock:
                self._computing -= 1
                self._outcomes[call, outcome] += 1
                self._seconds[call] = self._seconds.get(call, 0.0) + self._clock() - started

    def _note(self, request: TrainRequest | EvaluateRequest, reply: SiteReply) -> None:
        name = request.experiment.name
        with self._lock:
            if name not in self._rounds and len(self._rounds) >= MAX_EXPERIMENTS:
                return
            self._rounds[name] = reply.round
            if reply.metrics:
                self._accuracies[name] = dict(reply.metrics)


def ledger_families(summary: Mapping[str, Any]) -> list[Family]:
    """The privacy that was spent, from :func:`dpfpl_client.ledger_view.summarise`."""
    lifetime = [({"adversary": who}, float(_finite(value))) for who, value in summary["spent_epsilons"].items()]
    by_experiment = [
        ({"experiment": row["experiment"], "adversary": who}, float(_finite(value)))
        for row in summary["experiments"]
        for who, value in row["epsilons"].items()
    ]
    caps = [
        ({"rule": rule}, float(summary[rule])) for rule in ("max_epsilon_lifetime", "max_epsilon_operator_lifetime")
    ]
    charges = [({"experiment": row["experiment"]}, float(row["charges"])) for row in summary["experiments"]]
    return [
        Family("dpfpl_site_epsilon_spent", "gauge", "Epsilon over the data's lifetime, by adversary.", lifetime),
        Family("dpfpl_site_epsilon_cap", "gauge", "The policy's caps over the data's lifetime.", caps),
        Family("dpfpl_site_experiment_epsilon", "gauge", "Epsilon of one experiment, by adversary.", by_experiment),
        Family("dpfpl_site_charges_total", "counter", "Charges in the ledger.", charges),
    ]


def _finite(value: float | str) -> float:
    return float("inf") if value == "infinite" else float(value)
