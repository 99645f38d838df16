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

__all__ = ["Ask", "SumBook", "secure_sum"]

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


def secure_sum(
    experiment: Experiment,
    name: str,
    book: SumBook,
    ask: Ask,
    on_status: Callable[[dict[str, Any]], None],
    pools: Mapping[str, Context] | None = None,
    global_context: Context | None = None,
    ready: Callable[[], None] = lambda: None,
) -> Summed:
    """One sum of the experiment, one of ``dpfpl_common.secure.SUMS``; made now unless it is there.

    Args:
        experiment: under ``secure`` trust.
        name: of the sum.
        book: what is kept.
        ask: sends one step.
        on_status: told of abandoned attempts.
        pools: what each site votes on or scores.
        global_context: what each site scores.
        ready: waits for missing sites; called before another attempt, and before the last step is asked for again.

    Raises:
        RoundError: too few sites answered, in every attempt.
    """
    done = book.summed(name)
    if done is not None:
        return done
    entry = book.entries.get(name, {})
    if entry.get("pending"):
        terms = terms_of(experiment, name, entry["attempt"])
        server = ServerSum.from_bytes(terms, base64.b64decode(entry["pending"]))
    else:
        server = _masked(experiment, name, book, ask, on_status, pools or {}, global_context, ready)
        book.change(name, pending=base64.b64encode(server.to_bytes()).decode())
    _unmasked(server, experiment, name, ask, ready)
    values = from_steps(server.total(), share_stddev(experiment, name))
    content = base64.b64encode(values.astype("<f8").tobytes()).decode()
    book.change(name, pending="", values=content, sites=list(server.survivors))
    return Summed(values, server.survivors)


def _masked(
    experiment: Experiment,
    name: str,
    book: SumBook,
    ask: Ask,
    on_status: Callable[[dict[str, Any]], None],
    pools: Mapping[str, Context],
    global_context: Context | None,
    ready: Callable[[], None],
) -> ServerSum:
    """An attempt up to the last step."""
    for left in reversed(range(ATTEMPTS)):
        attempt = int(book.entries.get(name, {}).get("attempt", 0)) + 1
        book.change(name, attempt=attempt)
        server = ServerSum(terms_of(experiment, name, attempt))
        try:
            while server.step != "unmask":
                computes = server.step == "masked"
                requests = {
                    site: SumRequest(
                        experiment,
                        name,
                        attempt,
                        server.step,
                        content,
                        global_context if computes else None,
                        pools.get(site) if computes else None,
                    )
                    for site, content in server.requests().items()
                }
                _take(server, ask(requests))
                server.close()
        except RoundError as error:
            on_status({"phase": "SUM_ABANDONED", "round": 0, "sum": name, "attempt": attempt, "reasons": error.message})
            if not left:
                raise
            ready()
            continue
        return server
    raise AssertionError("unreachable")


def _unmasked(server: ServerSum, experiment: Experiment, name: str, ask: Ask, ready: Callable[[], None]) -> None:
    """The last step; asked again of those who are silent, as no other attempt can follow it."""
    waiting = server.requests()
    for left in reversed(range(ATTEMPTS)):
        attempt = server.terms.attempt
        requests = {s: SumRequest(experiment, name, attempt, "unmask", content) for s, content in waiting.items()}
        taken = _take(server, ask(requests))
        waiting = {site: content for site, content in waiting.items() if site not in taken}
        try:
            server.close()
        except RoundError:
            if not left:
                raise
            ready()
            continue
        return


def _take(server: ServerSum, replies: Mapping[str, bytes]) -> set[str]:
    taken = set()
    for site, reply in replies.items():
        try:
            server.take(site, reply)
            taken.add(site)
        except PayloadError:
            continue  # gone, as if it had not answered
    return taken
