"""Who may speak to the sites' port: registered keys, each in its own name, and asked before a call's body is read.

Flower 1.39 lets any key that signs its own call into RegisterNode and ActivateNode, reads bodies up to 2 GiB before it
asks for the key at all, writes what it refuses into its log, and activates whichever node the body names. Here a call
is looked at while only its headers are here: the caller's key has to be registered, the signature and the time in
order. Only then is the body read, at most 8 MiB of it, and a key in it has to be the caller's own.
"""

import datetime
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]
from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import MAX_TIMESTAMP_DIFF, MIN_TIMESTAMP_DIFF
from flwr.supercore.date import now
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.supercore.utils import get_metadata_bytes, get_metadata_str

__all__ = ["FleetGuard"]

MOST_CALLS = 64
"""Calls of one key at a time."""
SAY_EVERY_S = 60.0
LONGEST_HEADER = 1024

Refusal = tuple[grpc.StatusCode, str]


class FleetGuard(grpc.ServerInterceptor):  # type: ignore[misc]
    """The outermost interceptor of the Fleet API.

    Args:
        is_registered: whether a key, as Flower encodes it, is one of the register's.
        say: gets a line about refused calls, at most one a minute.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        is_registered: Callable[[bytes], bool],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_registered = is_registered
        self._say = say
        self._clock = clock
        self._lock = threading.Lock()
        self._calls: Counter[bytes] = Counter()
        self._refused: Counter[str] = Counter()
        self._said_at = -SAY_EVERY_S

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """A handler that decides before it takes the body: one of a stream, as a stream is read on demand."""

        def handle(bodies: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            key, refusal = self._caller(details)
            if refusal is not None:
                self._note("unregistered key" if refusal[1].startswith("{") else refusal[1].lower())
                context.abort(*refusal)
            with self._one_more_call(key, context):
                return _serve(continuation(details), key, next(bodies, b""), context)

        return grpc.stream_unary_rpc_method_handler(handle)

    def _caller(self, details: Any) -> tuple[bytes, Refusal | None]:
        """The key that signed the call, and why the call is refused."""
        key = get_metadata_bytes(details.invocation_metadata, PUBLIC_KEY_HEADER) or b""
        moment = get_metadata_str(details.invocation_metadata, TIMESTAMP_HEADER) or ""
        signature = get_metadata_bytes(details.invocation_metadata, SIGNATURE_HEADER) or b""
        if not key or not moment or not signature:
            return key, (grpc.StatusCode.UNAUTHENTICATED, "Missing authentication metadata")
        if max(len(key), len(moment), len(signature)) > LONGEST_HEADER or not _signed(key, moment, signature):
            return key, (grpc.StatusCode.UNAUTHENTICATED, "Invalid signature")
        if not _recent(moment):
            return key, (grpc.StatusCode.UNAUTHENTICATED, "Invalid timestamp")
        if not self._is_registered(key):
            return key, _unregistered(details.method)
        return key, None

    @contextmanager
    def _one_more_call(self, key: bytes, context: grpc.ServicerContext) -> Iterator[None]:
        """Count a call of this key until it ends; more than MOST_CALLS at once are refused."""
        with self._lock:
            self._calls[key] += 1
            too_many = self._calls[key] > MOST_CALLS
        try:
            if too_many:
                self._note("too many calls at once")
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"More than {MOST_CALLS} calls at once")
            yield
        finally:
            with self._lock:
                self._calls[key] -= 1
                if self._calls[key] <= 0:
                    del self._calls[key]

    def _note(self, why: str) -> None:
        """Count a refusal; one line about all of them, at most once a minute, however many calls come."""
        with self._lock:
            self._refused[why[:80]] += 1
            if self._clock() - self._said_at < SAY_EVERY_S:
                return
            self._said_at = self._clock()
            counts = ", ".join(f"{count} x {reason}" for reason, count in sorted(self._refused.items()))
            self._refused.clear()
        self._say(f"sites' port: refused {counts}")


def _serve(handler: Any, key: bytes, body: bytes, context: grpc.ServicerContext) -> bytes:
    """What Flower's own handler answers to the body."""
    if handler is None or handler.unary_unary is None:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    try:
        request = handler.request_deserializer(body) if handler.request_deserializer else body
    except Exception:  # noqa: BLE001  protobuf's errors have no common class below this one
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The message cannot be read")
    if getattr(request, "public_key", key) != key:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "The key in the message is not the caller's")
    answer = handler.unary_unary(request, context)
    return bytes(handler.response_serializer(answer)) if handler.response_serializer else answer


def _signed(key: bytes, moment: str, signature: bytes) -> bool:
    try:
        return bool(verify_signature(bytes_to_public_key(key), moment.encode("ascii"), signature))
    except Exception:  # noqa: BLE001  no key, no ASCII: whatever it is, it is no signature
        return False


def _recent(moment: str) -> bool:
    try:
        age = (now() - datetime.datetime.fromisoformat(moment)).total_seconds()
    except (ValueError, TypeError):
        return False
    return bool(MIN_TIMESTAMP_DIFF < age < MAX_TIMESTAMP_DIFF)


def _unregistered(method: str) -> Refusal:
    """The answers that Flower gives, which a SuperNode and ``dpfpl-client doctor`` know."""
    codes = {
        "RegisterNode": ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED,
        "ActivateNode": ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED,
    }
    code = codes.get(method.rpartition("/")[2])
    if code is None:
        return grpc.StatusCode.UNAUTHENTICATED, "Invalid node ID"
    known = API_ERROR_MAP[code]
    said = {"code": int(code), "public_message": known.public_message, "public_details": None}
    return known.status_code, json.dumps(said)
