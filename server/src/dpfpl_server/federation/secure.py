"""The server's rounds of a secure sum: four exchanges an attempt, another attempt where too few sites answered.

Two things are kept between processes. The number of the newest attempt: no attempt is begun twice. And before the last
step, all that this step needs: an interrupted run asks for it again, and sites answer with the same bytes. A sum is
made once.
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpfpl_common.errors import PayloadError, RoundError
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.noise import from_steps
from dpfpl_common.privacy_plan import share_stddev
from dpfpl_common.secure.server import ServerSum
from dpfpl_common.secure.terms import terms_of
from dpfpl_common.wire.payloads import Context, SumRequest
from dpfpl_server.federation.evidence import Summed

__all__ = ["Ask", "SecureSum", "SumBook"]

Ask = Callable[[Mapping[str, SumRequest]], Mapping[str, bytes]]
"""Sends one step's requests; gives the valid replies by site."""

ATTEMPTS = 3
"""At one sum before its run gives up, and at its last step."""


@dataclass
class SumBook:
    """What is kept of an experiment's sums: by default for this process only.

    Attributes:
        entries: by the sum's name.
        write: called with name and entry after each change; durable where it must be.
    """

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    write: Callable[[str, Mapping[str, Any]], None] = lambda name, entry: None

    def change(self, name: str, **values: Any) -> None:
        """Change an entry."""
        self.entries[name] = {**self.entries.get(name, {}), **values}
        self.write(name, self.entries[name])

    def summed(self, name: str) -> Summed | None:
        """The sum, if it was made."""
        entry = self.entries.get(name, {})
        if "values" not in entry:
            return None
        return Summed(np.frombuffer(base64.b64decode(entry["values"]), dtype="<f8"), tuple(entry["sites"]))


@dataclass(frozen=True)
class SecureSum:
    """One sum of the experiment, one of ``dpfpl_common.secure.SUMS``.

    Args:
        experiment: under ``secure`` trust.
        name: of the sum.
        book: what is kept.
        ask: sends one step.
        ready: waits for missing sites; called before another attempt, and before the last step is asked for again.
        on_status: told of abandoned attempts.
        pools: what each site votes on or scores.
        global_context: what each site scores.
    """

    experiment: Experiment
    name: str
    book: SumBook
    ask: Ask
    ready: Callable[[], None]
    on_status: Callable[[dict[str, Any]], None]
    pools: Mapping[str, Context]
    global_context: Context | None

    def make(self) -> Summed:
        """The sum; made now unless it is there.

        Raises:
            RoundError: too few sites answered, in every attempt.
        """
        done = self.book.summed(self.name)
        if done is not None:
            return done
        entry = self.book.entries.get(self.name, {})
        if entry.get("pending"):
            terms = terms_of(self.experiment, self.name, entry["attempt"])
            server = ServerSum.from_bytes(terms, base64.b64decode(entry["pending"]))
        else:
            server = self._masked()
            self.book.change(self.name, pending=base64.b64encode(server.to_bytes()).decode())
        self._unmasked(server)
        values = from_steps(server.total(), share_stddev(self.experiment, self.name))
        content = base64.b64encode(values.astype("<f8").tobytes()).decode()
        self.book.change(self.name, pending="", values=content, sites=list(server.survivors))
        return Summed(values, server.survivors)

    def _masked(self) -> ServerSum:
        """An attempt up to the last step."""
        for left in reversed(range(ATTEMPTS)):
            attempt = int(self.book.entries.get(self.name, {}).get("attempt", 0)) + 1
            self.book.change(self.name, attempt=attempt)
            server = ServerSum(terms_of(self.experiment, self.name, attempt))
            try:
                while server.step != "unmask":
                    _take(server, self.ask(self._requests(server, server.requests())))
                    server.close()
            except RoundError as error:
                status = {"phase": "SUM_ABANDONED", "round": 0, "sum": self.name, "attempt": attempt}
                self.on_status({**status, "reasons": error.message})
                if not left:
                    raise
                self.ready()
                continue
            return server
        raise AssertionError("unreachable")

    def _unmasked(self, server: ServerSum) -> None:
        """The last step; asked again of those who are silent, as no other attempt can follow it."""
        waiting = server.requests()
        for left in reversed(range(ATTEMPTS)):
            taken = _take(server, self.ask(self._requests(server, waiting)))
            waiting = {site: content for site, content in waiting.items() if site not in taken}
            try:
                server.close()
            except RoundError:
                if not left:
                    raise
                self.ready()
                continue
            return

    def _requests(self, server: ServerSum, contents: Mapping[str, bytes]) -> dict[str, SumRequest]:
        """The step's messages; where sites compute, with what they vote on or score."""
        computes = server.step == "masked"
        return {
            site: SumRequest(
                self.experiment,
                self.name,
                server.terms.attempt,
                server.step,
                content,
                self.global_context if computes else None,
                self.pools.get(site) if computes else None,
            )
            for site, content in contents.items()
        }


def _take(server: ServerSum, replies: Mapping[str, bytes]) -> set[str]:
    taken = set()
    for site, reply in replies.items():
        try:
            server.take(site, reply)
            taken.add(site)
        except PayloadError:
            continue  # gone, as if it had not answered
    return taken
