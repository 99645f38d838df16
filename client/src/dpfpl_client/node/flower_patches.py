"""Everything that a site changes in Flower 1.39's internals. Each patch: what, why, and what Flower should do instead.

:data:`PATCHES` names the functions of Flower that each one relies on; tests/common/test_flower_patches.py fails when
Flower changes one of them. The texts for Flower's issue tracker are in docs/reference/upstream.md.
"""

import contextlib
import os
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import flwr.client.grpc_rere_client.connection as flower_connection
import flwr.supernode.start_client_internal as flower_loop
import grpc
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from dpfpl_client.node.link import HEARTBEAT_S, LinkState, write_link
from dpfpl_common.ops.patches import Patch

__all__ = [
    "FATAL_EXIT",
    "PATCHES",
    "announce_messages",
    "channel_options",
    "failure_reason",
    "pull_again_soon",
    "push_every_part",
    "push_late_replies",
    "shorten_waits",
    "watch_the_link",
]

PATCHES = (
    Patch(
        "watch_the_link",
        {
            "flwr.client.grpc_rere_client.connection:grpc_request_response": "2ca8b86b327f",
            "flwr.supercore.grpc:create_channel": "6d71819bdc98",
        },
        "The channel is opened without keepalive and calls have no deadline: behind a link that swallows packets "
        "a call hangs for minutes. A server whose certificate names another host is retried forever.",
        "SuperNode: keepalive, deadlines and errors that do not pass",
    ),
    Patch(
        "shorten_waits",
        {"flwr.supernode.start_client_internal:start_client_internal": "bb3df95a5f63"},
        "Two looks for a message are 3 s apart, two looks for a reply 0.5 s, and there is no setting.",
        "SuperNode: a setting for how often it asks",
    ),
    Patch(
        "pull_again_soon",
        {"flwr.supercore.inflatable.inflatable_utils:pull_objects": "31bb2de46b45"},
        "A part of a message that is not there yet is asked for again after 1 s.",
        "SuperNode: a setting for how often it asks",
    ),
    Patch(
        "announce_messages",
        {"flwr.supernode.start_client_internal:_pull_and_store_message": "eaf5d0e36dc3"},
        "An executor can only ask again and again whether there is a task.",
        "SuperNode: a setting for how often it asks",
    ),
    Patch(
        "push_every_part",
        {
            "flwr.supernode.start_client_internal:_push_messages": "5f09f2f7a86c",
            "flwr.supercore.inflatable.inflatable_utils:push_objects": "5893dafc584a",
        },
        "A part of a reply whose receipt was lost with the connection is refused when it is sent again, and all parts "
        "behind it are left out: the reply is never whole.",
        "SuperNode: a part that is there already is no error",
    ),
    Patch(
        "push_late_replies",
        {
            "flwr.supernode.start_client_internal:start_client_internal": "bb3df95a5f63",
            "flwr.supernode.nodestate.in_memory_nodestate:InMemoryNodeState.get_messages": "337c6ecb6ac9",
        },
        "Replies are sent only after a message was taken. One whose message was given up with the connection waits for "
        "the next message and is sent in the place of its reply: from then on the node is one message late.",
        "SuperNode: send replies whenever there are some",
    ),
)

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
    ("missing selected ALPN", "WRONG_SERVICE", "something other than this federation's server answers"),
    ("WRONG_VERSION_NUMBER", "WRONG_SERVICE", "something other than this federation's server answers"),
)
_REFUSED = (
    ("Invalid timestamp", "CLOCK_SKEW", "this machine's clock is over 5 s ahead of the server's or 5 min behind"),
    ("Invalid node ID", "KEY_WITHDRAWN", "the server does not accept this site's key any more"),
    ("Invalid signature", "KEY_WITHDRAWN", "the server does not accept this site's key"),
)


def watch_the_link(state_file: Path) -> None:
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

    A keepalive ping is sent only while a call waits and nothing was read for the whole interval. On a healthy link a
    poll or a heartbeat is answered every few seconds, so there are no pings, and no server can object to them. Two
    limits of gRPC 1.85, measured: no keepalive interval below 10 s is taken, and without ``ping_timeout_ms`` an
    unanswered ping is tolerated for a minute.
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


_SOON_S = 0.05
"""How long Flower's half seconds and seconds last here, with which it waits for another process of this machine."""


def pull_again_soon() -> None:
    """Ask for a part of a message that is not there yet after 0.05 s, not after 1 s."""
    defaults: dict[str, Any] = inflatable_utils.pull_objects.__kwdefaults__ or {}
    defaults["initial_backoff"] = _SOON_S


_FIRST = 0.2
"""Share of the poll interval after which the server is asked first once a message was answered; then twice as long each
time. In a running experiment the next message is there soon, and three questions more are all that it costs."""


def shorten_waits(poll_s: float) -> None:
    """Have Flower's message loop ask the server every ``poll_s`` seconds, sooner after a message, and our own
    processes at once.
    """
    flower_loop.time = _Impatient(poll_s)  # type: ignore[attr-defined]


class _Impatient(types.ModuleType):
    """The time module as Flower's message loop sees it.

    The loop sleeps 3 s between two questions to the server, here at most the poll interval; and 0.5 s between two looks
    for the ClientApp's reply and for its parts, which is when a message is being answered, here almost nothing.
    """

    def __init__(self, longest_s: float) -> None:
        super().__init__("time")
        self._longest_s = self._next_s = longest_s

    def sleep(self, seconds: float) -> None:
        """Sleep, but not longer than that."""
        if seconds < 1.0:
            self._next_s = _FIRST * self._longest_s
            time.sleep(min(seconds, _SOON_S))
            return
        time.sleep(min(seconds, self._next_s))
        self._next_s = min(2 * self._next_s, self._longest_s)

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


def announce_messages(told: int) -> None:
    """Have a word to the executor follow each whole message that Flower took.

    Its task is there before the message; who asks for it at once finds the message in parts.
    """
    pull = flower_loop._pull_and_store_message

    def pull_and_tell(**arguments: Any) -> int | None:
        run = pull(**arguments)
        if run is not None:
            with contextlib.suppress(BrokenPipeError):  # without its executor the process ends, see warm_node
                os.write(told, b"!")
        return run

    flower_loop._pull_and_store_message = pull_and_tell  # type: ignore[assignment]


def push_late_replies() -> None:
    """Have Flower send a reply also where no message came before it.

    The ClientApp may answer a message that Flower gives up meanwhile, because the server was away and has ended the
    run. Flower looks for replies only after it took a message, and takes any for that message's.
    """
    pull = flower_loop._pull_and_store_message

    def pull_or_look(*, state: Any, **arguments: Any) -> int | None:
        run = pull(state=state, **arguments)
        return _waiting_reply(state) if run is None else run

    flower_loop._pull_and_store_message = pull_or_look  # type: ignore[assignment]


def _waiting_reply(state: Any) -> int | None:
    """The run of a reply that was not taken for sending yet; ``get_messages`` would take it."""
    with state.lock_msg_store:
        entries = list(state.msg_store.values())
    waiting = (e.message.metadata for e in entries if e.message.metadata.reply_to_message_id and not e.is_retrieved)
    return next((metadata.run_id for metadata in waiting), None)


def push_every_part() -> None:
    """Have Flower send the rest of a reply also where the server has one of its parts already.

    A part whose receipt was lost with the connection is sent again. The server, which does not wait for it any more,
    does not take it, and Flower's SuperNode would then leave out all parts behind it: the reply would never be whole.
    """
    push = flower_loop._push_messages

    def push_all(*, push_object: Callable[..., None], **arguments: Any) -> None:
        def push_unless_there(*part: Any) -> None:
            with contextlib.suppress(ObjectPushError):
                push_object(*part)

        push(push_object=push_unless_there, **arguments)

    flower_loop._push_messages = push_all  # type: ignore[assignment]
