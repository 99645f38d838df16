"""Make Flower's connection to the server notice dead links, give up where waiting is no use, and say how it is.

Flower 1.39's SuperNode opens its channel without keepalive and calls without deadlines: behind a link that swallows
packets a call hangs for a minute at best, until the operating system gives up at worst. It retries for ever when the
server's certificate names another host. :func:`install` replaces the one function with which it opens the channel.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import flwr.client.grpc_rere_client.connection as flower_connection
import grpc
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import ApiErrorCode, FlowerError

__all__ = [
    "FATAL_EXIT",
    "HEARTBEAT_S",
    "LinkState",
    "channel_options",
    "failure_reason",
    "install",
    "link_file",
    "read_link",
    "write_link",
]


# What the SuperNode last knew of its link to the server: a small file that health checks and people read.


HEARTBEAT_S = 30.0
"""Flower's heartbeat interval; a server that was silent for two of them counts as lost."""


@dataclass(frozen=True)
class LinkState:
    """The link as the SuperNode saw it; times are seconds since the epoch.

    Attributes:
        started_at: when the SuperNode started.
        answered_at: when the server last answered; 0 if it never did.
        failed_at: when a call last failed; 0 if none did.
        reason: why it failed, a code and a sentence; empty after the next answer.
    """

    started_at: float
    answered_at: float = 0.0
    failed_at: float = 0.0
    reason: str = ""

    def silent_s(self, now: float) -> float:
        """Seconds since the server last answered, or since the start if it never did."""
        return max(0.0, now - (self.answered_at or self.started_at))

    def trouble(self, now: float, heartbeats: float = 2.0) -> str:
        """Why the link does not serve, or an empty text while it does."""
        silent = self.silent_s(now)
        if self.answered_at and silent <= heartbeats * HEARTBEAT_S:
            return ""
        said = f" ({self.reason})" if self.reason else ""
        if not self.answered_at:
            return f"SERVER_NOT_REACHED: the server has not answered since the start, {silent:.0f} s ago{said}"
        return f"SERVER_LOST: the server has not answered for {silent:.0f} s{said}"


def link_file(state_folder: Path) -> Path:
    """Where the SuperNode of a state folder writes."""
    return state_folder / "flower" / "link.json"


def read_link(path: Path) -> LinkState | None:
    """What was last written; None if there is nothing readable."""
    try:
        return LinkState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_link(path: Path, state: LinkState) -> None:
    """Replace the file; whole, but not durable: after a crash of the machine the link is another anyway."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(asdict(state)), encoding="utf-8")
        temporary.replace(path)
    except OSError:  # a full disk must not end the connection
        return


FATAL_EXIT = 76
"""Exit status of a SuperNode whose server cannot be trusted; waiting would not help."""

_KEEPALIVE = "DPFPL_LINK_KEEPALIVE_S"
_BACKOFF = "DPFPL_LINK_BACKOFF_S"
_SIGN_IN_AGAIN_S = 3.0
_FATAL = (  # what gRPC says, and what it means
    ("certificate has expired", "CERTIFICATE_EXPIRED", "the server's certificate has ended"),
    ("certificate is not yet valid", "CERTIFICATE_NOT_YET_VALID", "the server's certificate is not valid yet"),
    ("Hostname Verification Check failed", "CERTIFICATE_NAME", "the server's certificate is for another address"),
    ("is not in peer certificate", "CERTIFICATE_NAME", "the server's certificate is for another address"),
    ("CERTIFICATE_VERIFY_FAILED", "SERVER_NOT_TRUSTED", "the server's certificate is not from this kit's authority"),
    ("missing selected ALPN", "WRONG_SERVICE", "something else than this federation's server answers"),
    ("WRONG_VERSION_NUMBER", "WRONG_SERVICE", "something else than this federation's server answers"),
)
_REFUSED = (
    ("Invalid timestamp", "CLOCK_SKEW", "this machine's clock and the server's differ by more than 5 s"),
    ("Invalid node ID", "KEY_WITHDRAWN", "the server does not accept this site's key any more"),
    ("Invalid signature", "KEY_WITHDRAWN", "the server does not accept this site's key"),
)


def install(state_file: Path) -> None:
    """Have Flower open its channel our way in this process; the link's state goes to the file."""

    def create_channel(
        server_address: str,
        insecure: bool,
        root_certificates: bytes | None = None,
        max_message_length: int = -1,
        interceptors: Sequence[Any] | None = None,
    ) -> Any:
        if insecure or root_certificates is None:
            raise ValueError("this site speaks TLS with its federation's authority, or not at all")
        options = [
            ("grpc.max_send_message_length", max_message_length),
            ("grpc.max_receive_message_length", max_message_length),
            *channel_options(),
        ]
        channel = grpc.secure_channel(server_address, grpc.ssl_channel_credentials(root_certificates), options=options)
        return grpc.intercept_channel(channel, _Watch(state_file), *(interceptors or ()))

    flower_connection.create_channel = create_channel  # type: ignore[attr-defined]


def channel_options() -> list[tuple[str, int]]:
    """Notice a dead link within twenty to forty seconds, and look for a live one at least every ten.

    A keepalive ping is sent only while a call waits and nothing was read for the whole interval, so a healthy link,
    where a poll or a heartbeat is answered every few seconds, has none and no server can find them too many. Two limits
    of gRPC 1.85, measured: no keepalive interval below 10 s is taken, and without ``ping_timeout_ms`` an unanswered
    ping is borne for a minute.
    """
    keepalive_ms = int(1000 * float(os.environ.get(_KEEPALIVE, "20")))
    backoff_ms = int(1000 * float(os.environ.get(_BACKOFF, "10")))
    return [
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms),
        ("grpc.http2.ping_timeout_ms", keepalive_ms),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", min(1000, backoff_ms)),
        ("grpc.min_reconnect_backoff_ms", backoff_ms),
        ("grpc.max_reconnect_backoff_ms", backoff_ms),
    ]


def failure_reason(details: str) -> tuple[str, bool]:
    """What gRPC's words about a failed call mean, and whether waiting is no use."""
    for sign, code, meaning in _FATAL:
        if sign in details:
            return f"{code}: {meaning}", True
    for sign, code, meaning in _REFUSED:
        if sign in details:
            return f"{code}: {meaning}", False  # Flower itself ends on these
    return "UNREACHABLE: no connection to the server", False


class _Watch(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Notes each answer and each failure of a call to the server."""

    def __init__(self, state_file: Path) -> None:
        self._file = state_file
        self._state = LinkState(started_at=time.time())
        self._lock = threading.Lock()
        write_link(state_file, self._state)

    def intercept_unary_unary(self, continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
        """Let the call pass and look at its outcome, which it waits for as the caller would."""
        call = continuation(details, request)
        if str(details.method).endswith("/ActivateNode"):
            call = self._wait_for_the_old_connection(continuation, details, request, call)
        error = call.exception()
        if error is None or (isinstance(error, grpc.RpcError) and _answered(error)):
            self._note_answer()
        elif isinstance(error, grpc.RpcError):
            self._note_failure(str(error.details() or ""))
        return call

    def _wait_for_the_old_connection(
        self, continuation: Callable[[Any, Any], Any], details: Any, request: Any, call: Any
    ) -> Any:
        """A node that was killed stays online at the server for two heartbeats, and cannot sign in again meanwhile.

        Flower says the same of an unknown key. A sign-in with an impossible interval tells the two apart: the server
        looks for the key first.
        """
        question = ActivateNodeRequest(public_key=request.public_key, heartbeat_interval=0.0)
        end = time.monotonic() + 2 * HEARTBEAT_S + 30.0
        while (
            _code(call.exception()) == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED
            and _code(continuation(details, question).exception()) == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL
            and time.monotonic() < end
        ):
            print(
                "dpfpl: the server still counts this site's previous connection; waiting.", file=sys.stderr, flush=True
            )
            time.sleep(_SIGN_IN_AGAIN_S)
            call = continuation(details, request)
        return call

    def _note_answer(self) -> None:
        moment = time.time()
        with self._lock:
            if self._state.reason or moment - self._state.answered_at >= 1.0:
                self._state = replace(self._state, answered_at=moment, reason="")
                write_link(self._file, self._state)

    def _note_failure(self, details: str) -> None:
        reason, fatal = failure_reason(details)
        with self._lock:
            self._state = replace(self._state, failed_at=time.time(), reason=reason)
            write_link(self._file, self._state)
        if fatal:
            print(f"dpfpl: {reason}. Giving up; see dpfpl-client doctor.", file=sys.stderr, flush=True)
            os._exit(FATAL_EXIT)  # Flower would try a server that it cannot trust again and again


def _code(error: Any) -> int | None:
    """Flower's own code in an error, if it has one."""
    found = FlowerError.from_json(error.details()) if isinstance(error, grpc.RpcError) else None
    return int(found.code) if found else None


def _answered(error: Any) -> bool:
    """Whether the server itself spoke, with an error of its application's."""
    silent = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAUTHENTICATED)
    return error.code() not in silent
