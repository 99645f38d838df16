"""The replies of one exchange, checked and added up as they come, so that none of their arrays is kept."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Message

from dpfpl_common.errors import PayloadError
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy_plan import site_noise_stddev
from dpfpl_common.wire.payloads import Context, EvaluateRequest, Refusal, SiteReply, SumRequest, TrainRequest, plain
from dpfpl_server.federation.aggregation import Updates
from dpfpl_server.federation.evidence import check_rows
from dpfpl_server.federation.exchange import Rejected
from dpfpl_server.federation.messages import SignatureCheck, message_bytes, reply_in, sum_reply_in

__all__ = ["TOO_LITTLE_NOISE", "ZERO_SIGNAL", "Replies", "SumReplies", "signal_score", "verdicts"]


# Does a site's update hold anything but noise? What can be told from single noised messages, and no more.
#
# An honest message of ``d`` coordinates is a signal plus Gaussian noise of known standard deviation s, so its squared
# norm over s^2 is d plus the signal's, give or take sqrt(2 d). A site that sends noise alone stays at d; one that adds
# less noise than agreed, and nothing else, falls below. Where the noise drowns every site's signal nobody can be told
# from a free-rider, and nothing is said. A site that sends more noise than agreed, or copies what it saw, is not found
# out.
#
# The scores are functions of the messages as they were sent: they cost no privacy.


ZERO_SIGNAL = "zero_signal"
TOO_LITTLE_NOISE = "too_little_noise"
SEEN, CLEAR = 3.0, 6.0
"""Standard deviations: above SEEN a signal is there; only if the others are CLEAR is its absence remarkable."""
LARGEST = 1e6


def signal_score(experiment: Experiment, update: Context) -> float:
    """How far the squared norm of ``update`` lies above its noise alone, in standard deviations, at most LARGEST.

    Without noise of its own (``central`` trust, ``one_shot``) a message is zero (score 0) or not (LARGEST).
    """
    squared, size = float(np.sum(np.square(update, dtype=np.float64))), update.size
    stddev = _noise_stddev(experiment)
    if stddev == 0:
        return LARGEST if squared > 0 else 0.0
    return max(-LARGEST, min(LARGEST, (squared / stddev**2 - size) / math.sqrt(2 * size)))


def verdicts(history: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What the rounds' ``signal`` scores say of the sites worth a word: ZERO_SIGNAL or TOO_LITTLE_NOISE, by site."""
    scores: dict[str, list[float]] = {}
    for entry in history:
        for site, score in entry.get("signal", {}).items():
            scores.setdefault(site, []).append(score)
    joint = {site: sum(values) / math.sqrt(len(values)) for site, values in scores.items()}
    found = {}
    for site, score in joint.items():
        others = [value for other, value in joint.items() if other != site]
        if score < -SEEN - 1:
            found[site] = TOO_LITTLE_NOISE
        elif score < SEEN and others and statistics.median(others) > CLEAR:
            found[site] = ZERO_SIGNAL
    return found


def _noise_stddev(experiment: Experiment) -> float:
    """Of one coordinate of one site's update."""
    privacy = experiment.privacy
    if privacy.mechanism == "one_shot":
        return 0.0
    stddev = site_noise_stddev(experiment)
    if privacy.unit == "site":
        return stddev
    divisor = privacy.sample_rate * privacy.nominal_site_size
    return stddev / divisor / math.sqrt(experiment.rounds.local_steps)


REFUSALS_OF_THE_MOMENT = ("BUSY", "AGENT_UNAVAILABLE", "AGENT_DEADLINE")
"""Refusals that say nothing about the request: the site's agent was starting, at work or too slow."""


class Replies:
    """What came back in one exchange.

    Args:
        experiment: whose rule says how updates are added.
        asked: the request to each site; a reply must fit it.
        norm_cap: L2 norm that no honest update exceeds.
        signatures: knows the sites' keys; None takes unsigned replies, for simulations.

    Attributes:
        evidence: noised class sums or votes, by site, where they were asked for.
        accepted: usable replies by site; their updates are in ``updates`` and nowhere else.
        failures: why a site has no usable reply, by site.
        updates: the accepted updates, added up where the rule allows it.
        signal: how much more than noise an accepted update holds, by site; see ``signal_score``.
        bytes: of the messages that arrived.
    """

    def __init__(
        self,
        experiment: Experiment,
        asked: Mapping[str, TrainRequest] | Mapping[str, EvaluateRequest],
        norm_cap: float,
        signatures: SignatureCheck | None = None,
    ) -> None:
        self._experiment = experiment
        self._asked = asked
        self._norm_cap = norm_cap
        self._signatures = signatures
        self.evidence: dict[str, Context] = {}
        self.accepted: dict[str, SiteReply] = {}
        self.failures: dict[str, Rejected] = {}
        self.updates = Updates(experiment)
        self.signal: dict[str, float] = {}
        self.bytes = 0

    @property
    def hopeless(self) -> bool:
        """Whether every failure is a refusal that asking again does not change."""
        return bool(self.failures) and all(why.refused and not why.passing for why in self.failures.values())

    def take(self, site: str, message: Message) -> None:
        """Check one site's reply and add its update; a bad one gets its reason in ``failures``."""
        self.bytes += message_bytes(message)
        try:
            reply = reply_in(message.content, self._asked[site])
            if isinstance(reply, Refusal):
                self.failures[site] = _refused(reply)
                return
            self._check(reply, site)
        except PayloadError as error:
            self.failures[site] = _unusable(error)
            return
        if reply.update is not None:
            self.updates.add(reply.update)
            self.signal[site] = round(signal_score(self._experiment, reply.update), 2)
        if reply.evidence is not None:
            self.evidence[site] = reply.evidence
        self.accepted[site] = replace(reply, update=None, evidence=None)

    def _check(self, reply: SiteReply, site: str) -> None:
        _refuse_another(reply.site, site)
        if self._signatures is not None:
            self._signatures(self._asked[site], reply, site)
        if reply.update is not None and float(np.linalg.norm(reply.update.astype(np.float64))) > self._norm_cap:
            raise PayloadError(code="NORM_TOO_LARGE", message="The update is larger than any honest one.")
        if reply.evidence is not None:
            check_rows(self._experiment, reply.evidence)


class SumReplies:
    """What came back in one step of a secure sum.

    Args:
        asked: the request to each site.
        signatures: as in ``Replies``.

    Attributes:
        accepted: the steps' replies by site.
        failures: why a site has none.
    """

    def __init__(self, asked: Mapping[str, SumRequest], signatures: SignatureCheck | None) -> None:
        self._asked = asked
        self._signatures = signatures
        self.accepted: dict[str, bytes] = {}
        self.failures: dict[str, Rejected] = {}

    def take(self, site: str, message: Message) -> None:
        """Check one site's reply."""
        try:
            reply = sum_reply_in(message.content)
            if isinstance(reply, Refusal):
                self.failures[site] = _refused(reply)
                return
            _refuse_another(reply.site, site)
            if self._signatures is not None:
                self._signatures(self._asked[site], reply, site)
        except PayloadError as error:
            self.failures[site] = _unusable(error)
            return
        self.accepted[site] = reply.content


def _refused(reply: Refusal) -> Rejected:
    passing = reply.code in REFUSALS_OF_THE_MOMENT
    return Rejected(f"REFUSED {reply.code}", f"{reply.message} {reply.advice}", refused=True, passing=passing)


def _unusable(error: PayloadError) -> Rejected:
    return Rejected(error.code, f"{error.message} {error.advice}".strip())


def _refuse_another(named: str, site: str) -> None:
    if named != site:
        raise PayloadError(
            code="OTHER_SITE",
            message=f"The reply is of the agent of {plain(named)[:63]!r}. Is that agent's address in this site's "
            "site.toml?",
        )
