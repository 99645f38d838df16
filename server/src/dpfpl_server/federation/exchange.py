"""One exchange of messages with a set of sites: push, then pull until all answered or time is up.

Flower delivers a message once and takes its reply once. If the connection breaks at that moment, the message or the
reply is lost. So a site that is silent at half of the time is asked a second time, in a message of its own; what it
has computed meanwhile it sends from its store.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

__all__ = ["Outcome", "Rejected", "exchange"]

POLL_SECONDS = 0.1
"""Between two looks for replies; or as long as a look that found none took, so that the SuperLink gets time."""
PULL_AT_ONCE = 100
ASK_AGAIN_AT = 0.5
"""Share of the time after which a silent site is asked once more."""


@dataclass(frozen=True)
class Rejected:
    """Why a site has no usable reply.

    Attributes:
        code: stable, upper case, for scripts.
        reason: the same in words, with what the site advises.
        refused: the site itself said no.
        passing: it may say yes when it is asked again.
    """

    code: str
    reason: str
    refused: bool = False
    passing: bool = True

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


@dataclass
class Outcome:
    """What came back.

    Attributes:
        replies: by site name; messages with content.
        failures: by site name; why there is no usable reply.
        late: by site name; replies to an earlier exchange's message that came too late for it.
        duplicates: by site name; further replies to a message that was answered already.
        unanswered: site names by id of messages without a reply at the deadline; what comes for them is late. No name
            where a reply is not needed any more, because the site answered another message with the same content.
        again: sites that were asked a second time.
    """

    replies: dict[str, Message] = field(default_factory=dict)
    failures: dict[str, Rejected] = field(default_factory=dict)
    late: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)
    unanswered: dict[str, str] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)


def exchange(
    grid: Grid,
    messages: Mapping[str, Message],
    deadline_s: float,
    on_reply: Callable[[str], None] = lambda site: None,
    clock: Callable[[], float] = time.monotonic,
    take: Callable[[str, Message], None] | None = None,
    earlier: Mapping[str, str] | None = None,
    again: Callable[[str], Message] | None = None,
) -> Outcome:
    """Send one message to each site and collect the replies until the deadline.

    Replies are matched by the message they answer, never by the node they claim to come from. The first one of a site
    counts; further ones, and those to earlier exchanges' messages, are counted and ignored.

    Args:
        grid: Flower's, or an in-process stand-in.
        messages: by site name.
        deadline_s: seconds after which the missing sites are given up.
        on_reply: called with a site's name as soon as it answered.
        clock: monotonic seconds.
        take: given each reply with content as it comes; the outcome then keeps none, so that a round's memory does not
            grow with the number of sites.
        earlier: unanswered messages of earlier exchanges, site names by message id.
        again: makes a site's second message; without it none is sent. Sent once, to a site that is silent at half of
            the time, or whose reply broke off in the middle.
    """
    outcome = Outcome()
    answered: dict[str, str] = {}
    missed = dict(earlier or {})
    waiting: dict[str, str] = {}
    _send(grid, messages, waiting, outcome)
    start = clock()
    while waiting:
        began, passed, came = time.monotonic(), clock() - start, False
        if again is not None and passed >= ASK_AGAIN_AT * deadline_s:
            _ask_again(grid, set(waiting.values()) - outcome.again, again, waiting, outcome)
        for reply in _pulled(grid, [*waiting, *missed]):
            message_id, came = reply.metadata.reply_to_message_id, True
            site = waiting.pop(message_id, "")
            if not site:
                _ignored(outcome, reply, missed.pop(message_id, ""), answered.get(message_id, ""))
                continue
            if reply.has_error() and again is not None and _broke_off(reply):
                _ask_again(grid, {site} - outcome.again, again, waiting, outcome)
            if reply.has_error() and site in waiting.values():
                continue  # its other message is still out
            missed.update((other, "") for other in _withdrawn(waiting, site))
            answered[message_id] = site
            if reply.has_error():
                words = _WORDS.get(reply.error.code, "the connection failed")
                outcome.failures[site] = Rejected("NODE_ERROR", words)
            elif take is not None:
                take(site, reply)
            else:
                outcome.replies[site] = reply
            on_reply(site)
        if not waiting or passed >= deadline_s:  # what came during a look that took long was looked for once more
            break
        time.sleep(POLL_SECONDS if came else max(POLL_SECONDS, time.monotonic() - began))
    for site in waiting.values():
        outcome.failures[site] = Rejected("NO_REPLY", f"nothing came within {deadline_s:g} s")
    outcome.unanswered = {**missed, **waiting}
    return outcome


_WORDS = {
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION: "the program at the site failed",
    ErrorCode.MESSAGE_UNAVAILABLE: "its answer broke off",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "its answer broke off",
    ErrorCode.NODE_UNAVAILABLE: "its connection to the server was lost",
    ErrorCode.CLIENT_APP_CRASHED: "the program at the site was killed",
}
"""What Flower's error codes mean to an operator."""


def _send(grid: Grid, messages: Mapping[str, Message], waiting: dict[str, str], outcome: Outcome) -> None:
    """Send to each site and note the message's id; a site whose message was not taken has failed."""
    ids: list[str | None] = [*grid.push_messages(messages.values())]
    ids = ids or [None] * len(messages)  # Flower's answer where the messages are too large for the server
    sent = {message_id: site for site, message_id in zip(messages, ids, strict=True) if message_id}
    waiting.update(sent)
    for site in set(messages) - set(sent.values()) - outcome.again:
        outcome.failures[site] = Rejected("NOT_SENT", "the server could not queue the message")


def _ask_again(
    grid: Grid, sites: set[str], again: Callable[[str], Message], waiting: dict[str, str], outcome: Outcome
) -> None:
    """Send these sites a second message; whether it could be sent changes nothing for the first."""
    if sites:
        outcome.again |= sites
        _send(grid, {site: again(site) for site in sorted(sites)}, waiting, outcome)


def _broke_off(reply: Message) -> bool:
    """Whether Flower says that a reply's sender stopped in the middle of it."""
    return bool(reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE)


def _withdrawn(waiting: dict[str, str], site: str) -> list[str]:
    """Take a site's other messages from those that are waited for."""
    others = [message_id for message_id, name in waiting.items() if name == site]
    for message_id in others:
        del waiting[message_id]
    return others


def _pulled(grid: Grid, ids: list[str]) -> Iterator[Message]:
    """The replies that are there, a hundred at a time: a thousand sites that answer at once need no more memory."""
    for start in range(0, len(ids), PULL_AT_ONCE):
        yield from grid.pull_messages(ids[start : start + PULL_AT_ONCE])


def _ignored(outcome: Outcome, reply: Message, late: str, again: str) -> None:
    """Count a reply that is not used; Flower's own error for a message that it has forgotten is none."""
    if late and not reply.has_error():
        outcome.late[late] += 1
    elif again:
        outcome.duplicates[again] += 1
