"""Flower's Grid without a network: messages go straight to site agents in this process."""

import logging
import secrets
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Message, Metadata, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from dpfpl_client.agent.endpoint import Agent
from dpfpl_client.records import decode_evaluate_request, decode_train_request, encode_refusal, encode_reply
from dpfpl_common.errors import DpfplError
from dpfpl_common.refusal import internal_refusal, refusal_of

__all__ = ["InProcessGrid", "answer"]

_LOG = logging.getLogger(__name__)
_message: Any = Message  # the constructor's overloads leave out the form that sets the metadata
SERVER_NODE = 1 << 32
"""Node id of the server: larger than any site's position."""


class InProcessGrid(Grid):
    """Answers every message when it is pulled, by the same translation and agent core as a deployed site.

    Args:
        agents: by site name; node ids are their positions, counted from 1.
    """

    def __init__(self, agents: Mapping[str, Agent]) -> None:
        self._agents = dict(enumerate(agents.values(), start=1))
        self._names = dict(enumerate(agents, start=1))
        self._pending: dict[str, Message] = {}
        self._run: Run | None = None

    @property
    def nodes(self) -> dict[str, int]:
        """Node id of each site."""
        return {name: node for node, name in self._names.items()}

    def set_run(self, run: Run) -> None:
        """Kept for Flower's interface."""
        self._run = run

    @property
    def run(self) -> Run:
        """Run information, if Flower set any."""
        if self._run is None:
            raise RuntimeError("The in-process grid has no Flower run.")
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message with a fresh id."""
        metadata = Metadata(
            run_id=0,
            message_id=uuid.uuid4().hex,
            src_node_id=SERVER_NODE,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=ttl or 43_200.0,
            message_type=message_type,
        )
        message: Message = _message(content=content, metadata=metadata)
        return message

    def get_node_ids(self) -> Iterable[int]:
        """All sites are always online."""
        return list(self._agents)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue the messages."""
        ids = []
        for message in messages:
            self._pending[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Have the sites answer, one after another."""
        return [self._answer(self._pending.pop(key)) for key in list(message_ids) if key in self._pending]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull at once."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        return answer(self._agents[node], self._names[node], message)


def answer(agent: Agent, site: str, message: Message) -> Message:
    """A site's reply to a train or evaluate message; whatever goes wrong at the site becomes its refusal."""
    try:
        if message.metadata.message_type == "train":
            train = decode_train_request(message.content)
            content = encode_reply(agent.train(train), train)
        else:
            evaluate = decode_evaluate_request(message.content)
            content = encode_reply(agent.evaluate(evaluate), evaluate)
    except DpfplError as error:
        content = encode_refusal(refusal_of(error), site, 0)
    except Exception:  # noqa: BLE001  one bad site never stops a round, here as in a deployed federation
        incident = secrets.token_hex(8)
        _LOG.exception("incident %s at %s", incident, site)
        content = encode_refusal(internal_refusal(incident), site, 0)
    return Message(content, reply_to=message)
