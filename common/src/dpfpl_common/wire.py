"""Translates payloads to the messages of the agent's protocol (agent.proto) and back, checking both ways."""

from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from dpfpl_common import PROTOCOL_VERSION, agent_pb2
from dpfpl_common.errors import PayloadError
from dpfpl_common.fields import (
    MAX_MESSAGE_BYTES,
    check_reply,
    check_version,
    context_from_bytes,
    context_to_bytes,
    read_experiment,
    write_experiment,
)
from dpfpl_common.payload import Context, EvaluateRequest, SiteReply, TrainRequest
from dpfpl_common.refusal import Refusal

__all__ = [
    "decode_evaluate_request",
    "decode_reply",
    "decode_train_request",
    "encode_evaluate_request",
    "encode_refusal",
    "encode_reply",
    "encode_train_request",
    "parse",
]

M = TypeVar("M", bound=Message)


def parse(kind: type[M], data: bytes) -> M:
    """The message in ``data``.

    Raises:
        PayloadError: MESSAGE_TOO_LARGE, MALFORMED_MESSAGE, or NOT_CANONICAL where a field comes twice or the encoding
            is not the one that we write.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise PayloadError(code="MESSAGE_TOO_LARGE", message=f"The message is larger than {MAX_MESSAGE_BYTES} bytes.")
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise PayloadError(
            code="MALFORMED_MESSAGE", message=f"The message is no {kind.DESCRIPTOR.name} of the agent protocol."
        ) from None
    if message.SerializeToString(deterministic=True) != data:
        raise PayloadError(code="NOT_CANONICAL", message="The message says something twice or in an unusual encoding.")
    return message


def encode_train_request(request: TrainRequest) -> agent_pb2.TrainRequest:
    """The message for a TrainRequest."""
    return agent_pb2.TrainRequest(
        protocol_version=PROTOCOL_VERSION,
        experiment=write_experiment(request.experiment),
        round=request.round,
        global_context=_array(request.global_context, request.experiment.context_shape, "global_context"),
        evaluate=request.evaluate,
    )


def decode_train_request(message: agent_pb2.TrainRequest) -> TrainRequest:
    """The payload of a TrainRequest message; PayloadError with one of ``fields.CODES`` if anything is wrong."""
    _check_envelope(message, message.protocol_version)
    experiment = read_experiment(message.experiment)
    context = _context(message, "global_context", experiment.context_shape)
    return TrainRequest(experiment, message.round, context, message.evaluate)


def encode_evaluate_request(request: EvaluateRequest) -> agent_pb2.EvaluateRequest:
    """The message for an EvaluateRequest."""
    return agent_pb2.EvaluateRequest(
        protocol_version=PROTOCOL_VERSION,
        experiment=write_experiment(request.experiment),
        round=request.round,
        global_context=_array(request.global_context, request.experiment.context_shape, "global_context"),
    )


def decode_evaluate_request(message: agent_pb2.EvaluateRequest) -> EvaluateRequest:
    """The payload of an EvaluateRequest message; PayloadError with one of ``fields.CODES`` if anything is wrong."""
    _check_envelope(message, message.protocol_version)
    experiment = read_experiment(message.experiment)
    return EvaluateRequest(experiment, message.round, _context(message, "global_context", experiment.context_shape))


def encode_reply(reply: SiteReply, request: TrainRequest | EvaluateRequest) -> agent_pb2.Reply:
    """The message for a SiteReply, which must answer ``request``."""
    check_reply(reply, request)
    content = agent_pb2.SiteReply(
        site=reply.site,
        round=reply.round,
        metrics=dict(reply.metrics),
        seconds=reply.seconds,
        signature=reply.signature,
    )
    if reply.update is not None:
        content.update.CopyFrom(_array(reply.update, request.experiment.context_shape, "update"))
    return agent_pb2.Reply(protocol_version=PROTOCOL_VERSION, reply=content)


def encode_refusal(refusal: Refusal) -> agent_pb2.Reply:
    """The message for a Refusal."""
    return agent_pb2.Reply(
        protocol_version=PROTOCOL_VERSION,
        refusal=agent_pb2.Refusal(code=refusal.code, rule=refusal.rule, advice=refusal.advice),
    )


def decode_reply(message: agent_pb2.Reply, request: TrainRequest | EvaluateRequest) -> SiteReply | Refusal:
    """What the agent answered to ``request``; PayloadError with one of ``fields.CODES`` if anything is wrong."""
    _check_envelope(message, message.protocol_version)
    outcome = message.WhichOneof("outcome")
    if outcome is None:
        raise PayloadError(code="MISSING_FIELD", message="The message holds neither a reply nor a refusal.")
    if outcome == "refusal":
        return Refusal(message.refusal.code, message.refusal.rule, message.refusal.advice)
    content = message.reply
    update = _context(content, "update", request.experiment.context_shape) if content.HasField("update") else None
    reply = SiteReply(content.site, content.round, update, dict(content.metrics), content.seconds, content.signature)
    check_reply(reply, request)
    return reply


def _array(array: Context, shape: tuple[int, int], name: str) -> agent_pb2.Array:
    return agent_pb2.Array(rows=shape[0], columns=shape[1], data=context_to_bytes(array, shape, name))


def _context(message: Message, field: str, shape: tuple[int, int]) -> Context:
    if not message.HasField(field):
        raise PayloadError(code="MISSING_FIELD", message=f"The message lacks {field!r}.")
    array: agent_pb2.Array = getattr(message, field)
    return context_from_bytes(array.data, (array.rows, array.columns), shape, field)


def _check_envelope(message: Message, version: int) -> None:
    """Version first: another version's unknown fields are no surprise."""
    check_version(version)
    _refuse_unknown_fields(message)


def _refuse_unknown_fields(message: Message) -> None:
    if len(UnknownFieldSet(message)) > 0:
        raise PayloadError(
            code="UNKNOWN_FIELD", message=f"{message.DESCRIPTOR.name} holds a field that the protocol does not list."
        )
    for _, value in message.ListFields():
        if isinstance(value, Message):
            _refuse_unknown_fields(value)
