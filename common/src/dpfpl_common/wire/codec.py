"""Translates payloads to the messages of the agent's protocol (agent.proto) and back, checking both ways.

A Flower message carries one record, and in it a message of that protocol as bytes. One record, because Flower stores,
sends and fetches every record and array on its own::

    request   ConfigRecord  {protocol_version, deadline, message}    message: TrainRequest, EvaluateRequest, SumRequest
    reply     ConfigRecord  {protocol_version, message}              message: Reply

A request's kind is Flower's message type. The ClientApp reads no more than the record; the agent and the server check
everything in the message.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from dpfpl_common import PROTOCOL_VERSION
from dpfpl_common.config import to_table
from dpfpl_common.errors import ConfigError, PayloadError
from dpfpl_common.evidence import moment_size
from dpfpl_common.experiment import Experiment, parse_experiment
from dpfpl_common.privacy_plan import scored
from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire.payloads import (
    MAX_COLUMNS,
    AnyRequest,
    Context,
    EvaluateRequest,
    Refusal,
    SiteReply,
    SumReply,
    SumRequest,
    TrainRequest,
    check_context,
    check_matrix,
    plain,
)

__all__ = [
    "CODES",
    "KINDS",
    "MAX_CONTEXT_BYTES",
    "MAX_EXPERIMENT_BYTES",
    "MAX_MESSAGE_BYTES",
    "RECORD",
    "Envelope",
    "RequestMessage",
    "check_reply",
    "check_version",
    "decode_reply",
    "decode_request",
    "decode_sum_reply",
    "encode_refusal",
    "encode_reply",
    "encode_request",
    "encode_sum_reply",
    "parse",
    "read_experiment",
    "read_reply",
    "read_request",
    "reply_record",
    "request_record",
]


MAX_MESSAGE_BYTES = (8 << 20) - (64 << 10)
"""Largest message: what the SuperLink takes at once, less Flower's envelope. The class sums of a thousand classes of
1,500 numbers fit."""
MAX_MATRIX_BYTES = 7 << 20
MAX_EXPERIMENT_BYTES = 256 << 10
MAX_CONTEXT_BYTES = 512 << 10

CODES = {
    "MALFORMED_MESSAGE": "not a message of the expected kind",
    "UNKNOWN_FIELD": "a field, record or key that the schema does not list",
    "MISSING_FIELD": "a field, record or key is absent",
    "NOT_CANONICAL": "something is said twice or in an unusual encoding",
    "VERSION_MISMATCH": "another version of the protocol",
    "MESSAGE_TOO_LARGE": "a message, array or text above its cap",
    "WRONG_TYPE": "a value of another type",
    "BAD_EXPERIMENT": "an experiment that is not JSON, or holds impossible numbers or text",
    "UNKNOWN_KEY": "an experiment with an unknown key",
    "MISSING_KEY": "an experiment without a required key",
    "IMPOSSIBLE_VALUE": "an experiment with a value out of bounds",
    "BAD_ROUND": "a round outside the experiment",
    "WRONG_DTYPE": "an array that is not C-ordered little-endian float32",
    "WRONG_SHAPE": "an array of another shape",
    "WRONG_SIZE": "an array whose data is longer or shorter than declared",
    "NONFINITE_INPUT": "an array with NaN or infinity",
    "NORM_TOO_LARGE": "an array with a value beyond 1e6",
    "UNKNOWN_METRIC": "a metric that sites do not report",
    "BAD_METRIC": "a metric that is no accuracy",
    "BAD_SCORES": "scores that are no finite numbers, of another count, or not asked for",
    "BAD_SIGNATURE": "a signature of another length than Ed25519's",
    "BAD_REFUSAL": "a refusal without a proper code, or with unprintable text",
    "UNKNOWN_SITE": "a reply of a site that is not in the experiment",
    "WRONG_ROUND": "a reply to another round",
    "UNEXPECTED_EVIDENCE": "class sums, a vote or a pool where none belongs",
    "MISSING_EVIDENCE": "no class sums or vote in the answer to a request for them",
    "UNEXPECTED_SUM": "a step of a secure sum that there is not, or where trust is not secure",
    "UNEXPECTED_UPDATE": "an update in the answer to an evaluation",
    "MISSING_UPDATE": "no update in the answer to a training request",
}
"""Every code that a malformed message can give, and what it says."""


def check_version(version: object) -> None:
    """Refuse another version of the protocol, naming the expected one."""
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise PayloadError(
            code="VERSION_MISMATCH",
            message=f"The message speaks protocol version {plain(str(version))[:20]}, expected {PROTOCOL_VERSION}.",
            advice="Install the same release of DP-FPL at the server and at the site.",
        )


def read_experiment(text: object) -> Experiment:
    """The experiment in a message; it must be the very text that ``Experiment.to_json`` gives.

    Raises:
        PayloadError: MESSAGE_TOO_LARGE, NOT_CANONICAL, BAD_EXPERIMENT, or the ConfigError's own code.
    """
    if not isinstance(text, str):
        raise PayloadError(code="WRONG_TYPE", message="The experiment must be text.")
    if len(text) > MAX_EXPERIMENT_BYTES:
        raise PayloadError(
            code="MESSAGE_TOO_LARGE", message=f"The experiment is longer than {MAX_EXPERIMENT_BYTES} bytes."
        )
    try:
        experiment = parse_experiment(text)
        json.dumps(to_table(experiment), ensure_ascii=False).encode()  # a lone surrogate cannot be tokenised
    except ConfigError as error:
        raise PayloadError(code=error.code, message=error.message, advice=error.advice) from None
    except (ArithmeticError, ValueError, TypeError, RecursionError):
        raise PayloadError(
            code="BAD_EXPERIMENT", message="The experiment holds an impossible number or text."
        ) from None
    if experiment.to_json() != text:
        raise PayloadError(
            code="NOT_CANONICAL",
            message="The experiment is not in canonical form: a repeated key, a whole number in a field of real "
            "numbers, other spacing or other order.",
            advice="Send Experiment.to_json() of an experiment that load_experiment or parse_experiment gave.",
        )
    return experiment


def _evidence_rows(request: TrainRequest | EvaluateRequest) -> int:
    """How many rows the evidence in a reply to ``request`` has: the classes', a vote's single one, or none."""
    if isinstance(request, EvaluateRequest) or request.experiment.privacy.trust == "secure":
        return 0  # under secure trust what a site tells goes into a secure sum
    return len(request.experiment.classes) if request.collect else int(request.pool is not None)


def _check_evidence(reply: SiteReply, request: TrainRequest | EvaluateRequest) -> None:
    rows = _evidence_rows(request)
    if rows == 0 and reply.evidence is not None:
        raise PayloadError(code="UNEXPECTED_EVIDENCE", message="The reply holds evidence that nobody asked for.")
    if rows and reply.evidence is None:
        raise PayloadError(code="MISSING_EVIDENCE", message="The reply lacks the evidence that was asked for.")
    if reply.evidence is not None:
        check_matrix(reply.evidence, rows, "evidence")
        if isinstance(request, TrainRequest) and request.pool is not None:
            size = moment_size(len(request.experiment.classes), request.pool.shape[1] - 2)
            k = size if request.experiment.uses_moment else 0
            if reply.evidence.shape[1] != 1 + k * (k + 1) // 2:
                raise PayloadError(code="WRONG_SHAPE", message="A vote is one number, with the packed moment behind.")


def check_reply(reply: SiteReply, request: TrainRequest | EvaluateRequest) -> None:
    """Refuse a reply that does not answer the request; its own values are checked when it is built.

    Raises:
        PayloadError: UNKNOWN_SITE, WRONG_ROUND, UNEXPECTED_UPDATE, MISSING_UPDATE, BAD_SCORES or what ``check_context``
            raises.
    """
    _check_evidence(reply, request)
    if reply.site not in request.experiment.sites:
        raise PayloadError(code="UNKNOWN_SITE", message="The reply's site is not in the experiment.")
    if type(reply.round) is not int or reply.round != request.round:
        raise PayloadError(code="WRONG_ROUND", message=f"The reply is not to round {request.round}.")
    last = isinstance(request, EvaluateRequest) and request.round == request.experiment.rounds.number
    last = last and request.experiment.privacy.trust != "secure"
    if reply.scores and not (last and len(reply.scores) == len(scored(request.experiment)) + 1):
        raise PayloadError(code="BAD_SCORES", message="The scores are of another count, or were not asked for.")
    if isinstance(request, EvaluateRequest):
        if reply.update is not None:
            raise PayloadError(code="UNEXPECTED_UPDATE", message="The answer to an evaluation holds an update.")
    elif reply.update is None:
        raise PayloadError(code="MISSING_UPDATE", message="The answer to a training request holds no update.")
    else:
        check_context(reply.update, request.experiment.context_shape, "update")


M = TypeVar("M", bound=Message)
T = TypeVar("T")


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


RequestMessage = agent_pb2.TrainRequest | agent_pb2.EvaluateRequest | agent_pb2.SumRequest
_MESSAGES: dict[type[AnyRequest], type[RequestMessage]] = {
    TrainRequest: agent_pb2.TrainRequest,
    EvaluateRequest: agent_pb2.EvaluateRequest,
    SumRequest: agent_pb2.SumRequest,
}
_PAYLOADS = {message: payload for payload, message in _MESSAGES.items()}


def encode_request(request: AnyRequest) -> RequestMessage:
    """The message for a request: its fields by name, checked as the receiver will."""
    fields: dict[str, Any] = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    fields["experiment"] = request.experiment.to_json()
    read_experiment(fields["experiment"])
    fields["global_context"] = _array(request.global_context, "global_context", MAX_CONTEXT_BYTES)
    fields["pool"] = _array(request.pool, "pool", MAX_MATRIX_BYTES)
    return _MESSAGES[type(request)](protocol_version=PROTOCOL_VERSION, **fields)


def decode_request(message: RequestMessage) -> AnyRequest:
    """The payload of a request's message; PayloadError with one of ``CODES`` if anything is wrong."""
    _check_envelope(message)
    payload: Any = _PAYLOADS[type(message)]
    fields = {field.name: getattr(message, field.name) for field in dataclasses.fields(payload)}
    fields["experiment"] = read_experiment(message.experiment)
    fields["global_context"] = _read_array(message, "global_context", MAX_CONTEXT_BYTES)
    fields["pool"] = _read_array(message, "pool", MAX_MATRIX_BYTES)
    if fields["global_context"] is None and payload is not SumRequest:
        raise PayloadError(code="MISSING_FIELD", message="The message lacks 'global_context'.")
    request: AnyRequest = payload(**fields)
    return request


def encode_reply(reply: SiteReply, request: TrainRequest | EvaluateRequest) -> agent_pb2.Reply:
    """The message for a SiteReply, which must answer ``request``."""
    check_reply(reply, request)
    content = agent_pb2.SiteReply(
        site=reply.site,
        round=reply.round,
        metrics=dict(reply.metrics),
        scores=reply.scores,
        signature=reply.signature,
        update=_array(reply.update, "update", MAX_CONTEXT_BYTES),
        evidence=_array(reply.evidence, "evidence", MAX_MATRIX_BYTES),
    )
    return agent_pb2.Reply(protocol_version=PROTOCOL_VERSION, reply=content)


def encode_sum_reply(reply: SumReply) -> agent_pb2.Reply:
    """The message for a SumReply."""
    content = agent_pb2.SumReply(site=reply.site, content=reply.content, signature=reply.signature)
    return agent_pb2.Reply(protocol_version=PROTOCOL_VERSION, sum=content)


def decode_sum_reply(message: agent_pb2.Reply) -> SumReply | Refusal:
    """What the agent answered to a SumRequest; PayloadError with one of ``CODES`` if anything is wrong."""
    if (refusal := _refusal_in(message, "sum")) is not None:
        return refusal
    return SumReply(message.sum.site, message.sum.content, message.sum.signature)


def encode_refusal(refusal: Refusal) -> agent_pb2.Reply:
    """The message for a Refusal."""
    return agent_pb2.Reply(
        protocol_version=PROTOCOL_VERSION,
        refusal=agent_pb2.Refusal(**dataclasses.asdict(refusal)),
    )


def decode_reply(message: agent_pb2.Reply, request: TrainRequest | EvaluateRequest) -> SiteReply | Refusal:
    """What the agent answered to ``request``; PayloadError with one of ``CODES`` if anything is wrong."""
    if (refusal := _refusal_in(message, "reply")) is not None:
        return refusal
    content = message.reply
    update = _read_array(content, "update", MAX_CONTEXT_BYTES)
    evidence = _read_array(content, "evidence", MAX_MATRIX_BYTES)
    metrics, scores = dict(content.metrics), tuple(content.scores)
    reply = SiteReply(content.site, content.round, update, metrics, scores, content.signature, evidence)
    check_reply(reply, request)
    return reply


def _refusal_in(message: agent_pb2.Reply, expected: str) -> Refusal | None:
    """The refusal in a reply, where it holds one instead of the expected outcome."""
    _check_envelope(message)
    outcome = message.WhichOneof("outcome")
    if outcome == "refusal":
        found = message.refusal
        return Refusal(found.code, found.rule, found.message, found.advice)
    if outcome != expected:
        raise PayloadError(code="MISSING_FIELD", message=f"The message lacks {expected!r}, and is no refusal.")
    return None


def _array(array: Context | None, name: str, most_bytes: int) -> agent_pb2.Array | None:
    """The array, checked as the receiver will."""
    if array is None:
        return None
    check_matrix(array, len(array), name)
    if array.nbytes > most_bytes:
        raise PayloadError(
            code="MESSAGE_TOO_LARGE",
            message=f"{name} is larger than {most_bytes} bytes.",
            advice="Use fewer context vectors or classes, or a model with smaller features.",
        )
    return agent_pb2.Array(rows=array.shape[0], columns=array.shape[1], data=array.tobytes())


def _read_array(message: Message, field: str, most_bytes: int) -> Context | None:
    """A writable copy of the array in a field, float32, of the shape that the message declares; None if there is none.

    Whether it is the shape that belongs there, the payload checks that it goes into.
    """
    if not message.HasField(field):
        return None
    array: agent_pb2.Array = getattr(message, field)
    rows, columns = array.rows, array.columns
    if rows <= 0 or not 0 < columns <= MAX_COLUMNS:
        raise PayloadError(code="WRONG_SHAPE", message=f"{field} has the impossible shape {(rows, columns)}.")
    size = 4 * rows * columns
    if size > most_bytes:
        raise PayloadError(code="MESSAGE_TOO_LARGE", message=f"{field} is larger than {most_bytes} bytes.")
    if len(array.data) != size:
        raise PayloadError(code="WRONG_SIZE", message=f"{field} holds {len(array.data)} bytes, expected {size}.")
    return np.frombuffer(array.data, dtype="<f4").reshape(rows, columns).copy()


def _check_envelope(message: Any) -> None:
    """Version first: another version's unknown fields are no surprise."""
    check_version(message.protocol_version)
    _refuse_unknown_fields(message)


def _refuse_unknown_fields(message: Message) -> None:
    """By the bytes that they take: to list millions of them would cost seconds and most of the memory."""
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()  # nested ones as well
    if known.ByteSize() != message.ByteSize():
        raise PayloadError(
            code="UNKNOWN_FIELD", message=f"{message.DESCRIPTOR.name} holds a field that the protocol does not list."
        )


RECORD = "dpfpl"
KINDS = {"train": "Train", "evaluate": "Evaluate", "query": "AddUp"}
"""The agent's method for each of Flower's message types."""

LONGEST_DEADLINE = 1e6
"""As of an experiment's rounds."""
REQUEST_KEYS = ("protocol_version", "deadline", "message")
REPLY_KEYS = ("protocol_version", "message")


@dataclass(frozen=True)
class Envelope:
    """What is in a request's record: ``message``, for the agent, and ``deadline_s``, until its answer must be back."""

    message: bytes
    deadline_s: float


def request_record(message: bytes, deadline_s: float) -> dict[str, Any]:
    """The record of a request."""
    return {"protocol_version": PROTOCOL_VERSION, "deadline": float(deadline_s), "message": message}


def reply_record(message: bytes) -> dict[str, Any]:
    """The record of a reply."""
    return {"protocol_version": PROTOCOL_VERSION, "message": message}


def read_request(records: Mapping[str, object]) -> Envelope:
    """What is in a request's records.

    Raises:
        PayloadError: VERSION_MISMATCH, UNKNOWN_FIELD, MISSING_FIELD, WRONG_TYPE, IMPOSSIBLE_VALUE or MESSAGE_TOO_LARGE.
    """
    record = _opened(records, REQUEST_KEYS)
    deadline = _typed(record["deadline"], float, "deadline")
    if not 0 < deadline <= LONGEST_DEADLINE:
        raise PayloadError(
            code="IMPOSSIBLE_VALUE",
            message=f"The deadline is {deadline}, expected more than 0 and at most {LONGEST_DEADLINE:g} s.",
        )
    return Envelope(_message(record), deadline)


def read_reply(records: Mapping[str, object]) -> bytes:
    """The message in a reply's records; raises as ``read_request``."""
    return _message(_opened(records, REPLY_KEYS))


def _opened(records: Mapping[str, object], keys: tuple[str, ...]) -> Mapping[str, object]:
    """The only record, with exactly these keys; another version's may have others, so the version comes first.

    Before version 4 there was no such record, but others that said the version.
    """
    record = records.get(RECORD)
    if not isinstance(record, Mapping):
        for other in records.values():
            if isinstance(other, Mapping) and "protocol_version" in other:
                check_version(other["protocol_version"])
        raise PayloadError(code="MISSING_FIELD", message=f"The message lacks the record {RECORD!r}.")
    check_version(record.get("protocol_version"))
    for found, expected, what in ((records, (RECORD,), "The message"), (record, keys, f"The record {RECORD!r}")):
        for key in found:
            if key not in expected:
                raise PayloadError(code="UNKNOWN_FIELD", message=f"{what} holds the unknown {str(key)[:40]!r}.")
        for key in expected:
            if key not in found:
                raise PayloadError(code="MISSING_FIELD", message=f"{what} lacks {key!r}.")
    return record


def _message(record: Mapping[str, object]) -> bytes:
    message = _typed(record["message"], bytes, "message")
    if len(message) > MAX_MESSAGE_BYTES:
        raise PayloadError(code="MESSAGE_TOO_LARGE", message=f"The message is larger than {MAX_MESSAGE_BYTES} bytes.")
    return message


def _typed(value: object, kind: type[T], what: str) -> T:
    """The value, if it is of exactly this type (True is no number here)."""
    if type(value) is not kind:
        raise PayloadError(code="WRONG_TYPE", message=f"{what} must be of type {kind.__name__}.")
    return value
