"""The agent's monitoring endpoint: beside its data plane, on another socket, with a token of its own."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dpfpl_client.agent.endpoint import Agent, Credential, read_token
from dpfpl_client.agent.ledger.view import summarise
from dpfpl_client.doctor import PARTS, site_troubles
from dpfpl_client.node.link import link_file, read_link
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.errors import DpfplError
from dpfpl_common.ops.diagnostics import Trouble
from dpfpl_common.ops.monitor import Family, Monitor, parse_monitor_address
from dpfpl_common.wire.payloads import EvaluateRequest, SiteReply, SumReply, SumRequest, TrainRequest

__all__ = ["MeteredAgent", "ledger_families", "site_families", "start_monitor"]


# Counts what the agent answers, for its administrator: never more than the administrator may see.
#
# The numbers are outcomes by code, seconds, epsilons out of the ledger, and of the accuracies those that the policy let
# out of the site anyway. No class name, no count of images, nothing of a prompt or a gradient.


MAX_EXPERIMENTS = 100
"""As many experiments keep their last round and accuracies; an operator cannot fill the memory with names."""

R = TypeVar("R", SiteReply, SumReply)


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

    def add_up(self, request: SumRequest) -> SumReply:
        """See ``Agent``."""
        return self._counted("sum", request, lambda: self._agent.add_up(request))

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

    def _counted(self, call: str, request: TrainRequest | EvaluateRequest | SumRequest, act: Callable[[], R]) -> R:
        started, outcome = self._clock(), "INTERNAL"
        with self._lock:
            self._computing += 1
        try:
            reply = act()
            outcome = "answered"
            if isinstance(reply, SiteReply):
                self._note(request.experiment.name, reply)
            return reply
        except DpfplError as error:
            outcome = error.code
            raise
        finally:
            with self._lock:
                self._computing -= 1
                self._outcomes[call, outcome] += 1
                self._seconds[call] = self._seconds.get(call, 0.0) + self._clock() - started

    def _note(self, name: str, reply: SiteReply) -> None:
        with self._lock:
            if name not in self._rounds and len(self._rounds) >= MAX_EXPERIMENTS:
                return
            self._rounds[name] = reply.round
            if reply.metrics:
                self._accuracies[name] = dict(reply.metrics)


def ledger_families(summary: Mapping[str, Any]) -> list[Family]:
    """The privacy that was spent, from :func:`dpfpl_client.agent.ledger.view.summarise`."""
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


_LEDGER_EVERY_S = 10.0


def start_monitor(settings: SiteSettings, agent: MeteredAgent) -> Monitor | None:
    """Start the endpoint that site.toml's ``[monitoring]`` asks for; None if it asks for none.

    ``/metrics`` needs the token in ``state/metrics.token``, made on first start, mode 0600: the operator's code beside
    the agent reaches loopback too, and epsilons of other experiments are none of its business.

    Raises:
        ConfigError: the address is none or public.
        DeploymentError: it cannot be listened on.
        StateError: others can read the token file.
    """
    if not settings.monitoring.address:
        return None
    host, port = parse_monitor_address(settings.monitoring.address, public=settings.monitoring.public)
    token_file = settings.state_folder / "metrics.token"
    Credential(token_file)
    ledger = _Remembered(lambda: summarise(settings), _LEDGER_EVERY_S)
    return Monitor(
        host,
        port,
        health=lambda: site_troubles(settings, _parts(settings)),
        metrics=lambda: site_families(settings, agent, ledger.value()),
        token=read_token(token_file),
    )


def site_families(settings: SiteSettings, agent: MeteredAgent, summary: dict[str, Any] | None) -> list[Family]:
    """Everything that ``/metrics`` shows."""
    parts = _parts(settings)
    troubles = site_troubles(settings, parts)
    families = [
        Family("dpfpl_site_healthy", "gauge", "1 if the site can take part now.", [({}, 0 if troubles else 1)]),
        Family(
            "dpfpl_site_part_healthy",
            "gauge",
            "1 for each part that is in order.",
            [({"part": part}, _fine(part, troubles)) for part in parts],
        ),
        *agent.families(),
    ]
    link = read_link(link_file(settings.node_folder))
    if link is not None:
        silent: list[tuple[dict[str, str], float]] = [({}, link.silent_s(time.time()))]
        families.append(Family("dpfpl_site_server_silent_seconds", "gauge", "Since the server last answered.", silent))
    return families + (ledger_families(summary) if summary is not None else [])


def _parts(settings: SiteSettings) -> tuple[str, ...]:
    """What the agent's user can see: as a user of its own it cannot read the SuperNode's folder."""
    return tuple(part for part in PARTS if part != "link") if settings.separated else PARTS


def _fine(part: str, troubles: list[Trouble]) -> int:
    return 0 if any(trouble.part == part for trouble in troubles) else 1


class _Remembered:
    """A value that is computed at most every few seconds; None while it cannot be."""

    def __init__(self, compute: Callable[[], dict[str, Any]], every_s: float) -> None:
        self._compute = compute
        self._every_s = every_s
        self._at = -every_s
        self._value: dict[str, Any] | None = None

    def value(self) -> dict[str, Any] | None:
        """The value, as fresh as promised."""
        if time.monotonic() - self._at >= self._every_s:
            self._at = time.monotonic()
            try:
                self._value = self._compute()
            except DpfplError:
                self._value = None
        return self._value
