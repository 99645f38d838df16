"""The replies of one exchange, checked and added up as they come, so that none of their arrays is kept."""

from dataclasses import replace

import numpy as np
from flwr.app import Message

from dpfpl_common.errors import PayloadError
from dpfpl_common.experiment import Experiment
from dpfpl_common.payload import EvaluateRequest, SiteReply, TrainRequest
from dpfpl_server.aggregation import collector
from dpfpl_server.exchange import content_bytes
from dpfpl_server.records import SiteRefusal, decode_reply
from dpfpl_server.signals import signal_score
from dpfpl_server.signatures import SignatureCheck

__all__ = ["Replies"]

REFUSALS_OF_THE_MOMENT = tuple(f"REFUSED {code}:" for code in ("BUSY", "AGENT_UNAVAILABLE", "AGENT_DEADLINE"))
"""Refusals that say nothing about the request: the site's agent was starting, at work or too slow."""


class Replies:
    """What came back in one exchange.

    Args:
        experiment: whose request it was.
        request: what was asked; a reply must fit it.
        norm_cap: L2 norm that no honest update exceeds.
        signatures: knows the sites' keys; None takes unsigned replies, for simulations.

    Attributes:
        accepted: usable replies by site; their updates are in ``updates`` and nowhere else.
        failures: why a site has no usable reply, by site.
        updates: the accepted updates, added up where the rule allows it.
        signal: how much more than noise an accepted update holds, by site; see ``signals``.
        bytes: what arrived, in arrays and text.
    """

    def __init__(
        self,
        experiment: Experiment,
        request: TrainRequest | EvaluateRequest,
        norm_cap: float,
        signatures: SignatureCheck | None = None,
    ) -> None:
        self._request = request
        self._norm_cap = norm_cap
        self._signatures = signatures
        self.accepted: dict[str, SiteReply] = {}
        self.failures: dict[str, str] = {}
        self.updates = collector(experiment)
        self.signal: dict[str, float] = {}
        self._experiment = experiment
        self.bytes = 0

    @property
    def hopeless(self) -> bool:
        """Whether every failure is a refusal that asking again does not change."""
        return bool(self.failures) and all(
            why.startswith("REFUSED") and not why.startswith(REFUSALS_OF_THE_MOMENT) for why in self.failures.values()
        )

    def take(self, site: str, message: Message) -> None:
        """Check one site's reply and add its update; a bad one gets its reason in ``failures``."""
        self.bytes += content_bytes(message)
        try:
            reply = decode_reply(message.content, self._request)
            if isinstance(reply, SiteRefusal):
                refusal = reply.refusal
                self.failures[site] = f"REFUSED {refusal.code}: {refusal.rule} {refusal.advice}"
                return
            self._check(reply, site)
        except PayloadError as error:
            self.failures[site] = f"{error.code}: {error.message}"
            return
        if reply.update is not None:
            self.updates.add(reply.update)
            self.signal[site] = round(signal_score(self._experiment, reply.update), 2)
        self.accepted[site] = replace(reply, update=None)

    def _check(self, reply: SiteReply, site: str) -> None:
        if reply.site != site:
            raise PayloadError(code="OTHER_SITE", message=f"The reply names the site {reply.site[:63]!r}.")
        if self._signatures is not None:
            self._signatures(self._request, reply, site)
        if reply.update is not None and float(np.linalg.norm(reply.update.astype(np.float64))) > self._norm_cap:
            raise PayloadError(code="NORM_TOO_LARGE", message="The update is larger than any honest one.")
