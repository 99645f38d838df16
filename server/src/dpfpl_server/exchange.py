"""One exchange of messages with a set of sites: push, then pull until all answered or time is up."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

__all__ = ["Outcome", "content_bytes", "exchange", "record_bytes"]

POLL_SECONDS = 0.2


@dataclass
class Outcome:
    """What came back.

    Attributes:
        replies: by site name; messages with content.
        failures: by site name; why there is no usable reply.
    """

    replies: dict[str, Message] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def exchange(
    grid: Grid,
    messages: Mapping[str, Message],
    deadline_s: float,
    on_reply: Callable[[str], None] = lambda site: None,
    clock: Callable[[], float] = time.monotonic,
    take: Callable[[str, Message], None] | None = None,
) -> Outcome:
    """Send one message to each site and collect the replies until the deadline.

    Replies are matched by the message they answer, never by the node they claim to come from.

    Args:
        grid: Flower's, or an in-process stand-in.
        messages: by site name.
        deadline_s: seconds after which the missing sites are given up.
        on_reply: called with a site's name as soon as it answered.
        clock: monotonic seconds.
        take: given each reply with content as it comes; the outcome then keeps none, so that a round's memory does not
            grow with the number of sites.
    """
    outcome = Outcome()
    ids: list[str | None] = [*grid.push_messages(messages.values())]
    ids = ids or [None] * len(messages)  # Flower's answer where the messages are too large for the server
    waiting = {message_id: site for site, message_id in zip(messages, ids, strict=True) if message_id}
    for site in set(messages) - set(waiting.values()):
        outcome.failures[site] = "NOT_SENT: the server could not queue the message"
    end = clock() + deadline_s
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            answered = waiting.pop(reply.metadata.reply_to_message_id, None)
            if answered is None:
                continue
            if reply.has_error():
                outcome.failures[answered] = f"NODE_ERROR: Flower error {reply.error.code}"
            elif take is not None:
                take(answered, reply)
            else:
                outcome.replies[answered] = reply
            on_reply(answered)
        if not waiting or clock() >= end:
            break
        time.sleep(POLL_SECONDS)
    for site in waiting.values():
        outcome.failures[site] = f"NO_REPLY: nothing came within {deadline_s:g} s"
    return outcome


def content_bytes(message: Message) -> int:
    """Bytes of a message's arrays and of the text of its other records; what the wire adds is not counted."""
    return 0 if message.has_error() else record_bytes(message.content)


def record_bytes(content: RecordDict) -> int:
    """The same of a message's content."""
    return sum(
        sum(len(array.data) for array in record.values())
        if isinstance(record, ArrayRecord)
        else sum(len(str(key)) + len(str(value)) for key, value in record.items())
        for record in content.values()
    )
