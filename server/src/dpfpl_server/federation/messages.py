"""Requests as the content of Flower's messages, and what came back: the server's side of the wire."""

from flwr.app import ConfigRecord, Message, RecordDict

from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.codec import RECORD, read_reply, request_record
from dpfpl_common.wire.payloads import AnyRequest, EvaluateRequest, Refusal, SiteReply, SumReply, TrainRequest

__all__ = ["content_bytes", "message_bytes", "reply_in", "request_content", "sum_reply_in"]


def request_content(request: AnyRequest) -> RecordDict:
    """The content of the message that carries a request, checked as the site will.

    Raises:
        PayloadError: it would be refused there.
    """
    data = wire.encode_request(request).SerializeToString(deterministic=True)
    return RecordDict({RECORD: ConfigRecord(request_record(data, request.experiment.rounds.deadline))})


def reply_in(content: RecordDict, request: TrainRequest | EvaluateRequest) -> SiteReply | Refusal:
    """What a site answered to ``request``.

    Raises:
        PayloadError: with one of ``codec.CODES``, if anything is wrong.
    """
    return wire.decode_reply(wire.parse(agent_pb2.Reply, read_reply(content)), request)


def sum_reply_in(content: RecordDict) -> SumReply | Refusal:
    """What a site answered to a step of a secure sum; raises as ``reply_in``."""
    return wire.decode_sum_reply(wire.parse(agent_pb2.Reply, read_reply(content)))


def message_bytes(message: Message) -> int:
    """Bytes of the message of ours that one of Flower's carries; what Flower adds is not counted."""
    return 0 if message.has_error() else content_bytes(message.content)


def content_bytes(content: RecordDict) -> int:
    """The same of a message's content."""
    return sum(len(value) for record in content.values() for value in record.values() if isinstance(value, bytes))
