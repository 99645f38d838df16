"""What a Flower message carries: one record, and in it a message of the agent's protocol (agent.proto) as bytes.

::

    request   ConfigRecord  {protocol_version, deadline, message}    message: TrainRequest, EvaluateRequest, SumRequest
    reply     ConfigRecord  {protocol_version, message}              message: Reply

A request's kind is Flower's message type. The ClientApp reads no more than the envelope; the agent and the server check
everything in the message. One record, because Flower stores, sends and fetches every record and array on its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dpfpl_common import PROTOCOL_VERSION
from dpfpl_common.errors import PayloadError
from dpfpl_common.wire.codec import MAX_MESSAGE_BYTES, check_version

__all__ = ["KINDS", "RECORD", "Request", "read_reply", "read_request", "reply_record", "request_record"]

RECORD = "dpfpl"
KINDS = {"train": "Train", "evaluate": "Evaluate", "query": "AddUp"}
"""The agent's method for each of Flower's message types."""

LONGEST_DEADLINE = 1e6
"""As of an experiment's rounds."""
REQUEST_KEYS = ("protocol_version", "deadline", "message")
REPLY_KEYS = ("protocol_version", "message")

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """Attributes: ``message``, for the agent, and ``deadline_s``, which it has until the answer must be back."""

    message: bytes
    deadline_s: float


def request_record(message: bytes, deadline_s: float) -> dict[str, Any]:
    """The record of a request."""
    return {"protocol_version": PROTOCOL_VERSION, "deadline": float(deadline_s), "message": message}


def reply_record(message: bytes) -> dict[str, Any]:
    """The record of a reply."""
    return {"protocol_version": PROTOCOL_VERSION, "message": message}


def read_request(records: Mapping[str, object]) -> Request:
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
    return Request(_message(record), deadline)


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
