"""Serves an agent over gRPC, to the site's own ClientApp only.

A caller must hold the token; one call computes at a time and few may wait; whatever goes wrong inside becomes a refusal
with a code, and an unforeseen error an opaque id whose details stay in the site's log.
"""

import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from dpfpl_client.agent.endpoint import Address, Agent, Credential, SocketFile, parse_address, private_host
from dpfpl_common.errors import DeploymentError, DpfplError, PayloadError, RefusedError
from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.codec import MAX_MESSAGE_BYTES
from dpfpl_common.wire.payloads import (
    AnyRequest,
    EvaluateRequest,
    SumRequest,
    TrainRequest,
    internal_refusal,
    refusal_of,
)

__all__ = ["AgentServer", "answer", "serve"]


# One call computes at a time, few wait, the others are sent away.


_QUEUE = 2
"""Calls that may wait while one computes; more are refused with BUSY."""
_LOOK_S = 0.1
"""How often a waiting call looks whether it is still wanted."""


class Turns:
    """Hands the agent to one caller after the other."""

    def __init__(self) -> None:
        self._places = threading.Semaphore(1 + _QUEUE)
        self._computing = threading.Lock()

    @property
    def idle(self) -> bool:
        """Whether no one computes."""
        return not self._computing.locked()

    @contextmanager
    def hold(self, wanted: Callable[[], bool]) -> Iterator[None]:
        """Wait for the agent and hold it for the block.

        Args:
            wanted: whether someone still waits for the result; asked while waiting and once more before the block.

        Raises:
            RefusedError: BUSY, too many wait; AGENT_UNAVAILABLE, no one wants the result any more.
        """
        if not self._places.acquire(blocking=False):
            raise RefusedError(code="BUSY", message="The site's agent is busy.", advice="Call again later.")
        try:
            while not self._computing.acquire(timeout=_LOOK_S):
                _refuse_unless(wanted())
            try:
                _refuse_unless(wanted())
                yield
            finally:
                self._computing.release()
        finally:
            self._places.release()


def _refuse_unless(wanted: bool) -> None:
    if not wanted:
        raise RefusedError(
            code="AGENT_UNAVAILABLE",
            message="The site's agent is stopping, or the caller has gone.",
            advice="Send the same request again; it costs no privacy budget twice.",
        )


_LOG = logging.getLogger(__name__)
_SERVICE = agent_pb2.DESCRIPTOR.services_by_name["SiteAgent"].full_name
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_MAX_CONCURRENT = 32
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a second agent on the same port must fail
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a small message cannot unfold to a huge one
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_concurrent_streams", _MAX_CONCURRENT),
)


_MESSAGES: dict[str, type[wire.RequestMessage]] = {
    "Train": agent_pb2.TrainRequest,
    "Evaluate": agent_pb2.EvaluateRequest,
    "AddUp": agent_pb2.SumRequest,
}


def answer(
    agent: Agent, method: str, data: bytes, turn: Callable[[], AbstractContextManager[None]] = nullcontext
) -> bytes:
    """An agent's ``Reply`` to a message for one of its methods: what it answers, or a refusal for whatever goes wrong.

    Args:
        agent: the agent.
        method: as in agent.proto.
        data: the message.
        turn: held while the agent computes.
    """
    try:
        request = wire.decode_request(wire.parse(_MESSAGES[method], data))
        with turn():
            reply = _ask(agent, request)
        _LOG.info("%s answered", method)
    except DpfplError as error:
        _LOG.warning("%s refused: %s", method, error)
        reply = wire.encode_refusal(refusal_of(error))
    except Exception:  # noqa: BLE001  the boundary: its text may name a site's files
        incident = secrets.token_hex(8)
        _LOG.exception("%s failed, incident %s", method, incident)
        reply = wire.encode_refusal(internal_refusal(incident))
    if reply.ByteSize() > MAX_MESSAGE_BYTES:
        reply = wire.encode_refusal(
            refusal_of(PayloadError(code="MESSAGE_TOO_LARGE", message=f"The answer has {reply.ByteSize()} bytes."))
        )
    return reply.SerializeToString(deterministic=True)  # the same reply is the same bytes, in any process


def _ask(agent: Agent, request: AnyRequest) -> agent_pb2.Reply:
    match request:
        case TrainRequest():
            return wire.encode_reply(agent.train(request), request)
        case EvaluateRequest():
            return wire.encode_reply(agent.evaluate(request), request)
        case SumRequest():
            return wire.encode_sum_reply(agent.add_up(request))


class AgentServer:
    """A gRPC server around an agent.

    Args:
        agent: answers the calls; never called by two threads at once.
        address: ``unix:/path`` or ``host:port``; see :mod:`dpfpl_client.agent.endpoint`.
        token_file: the credential, made on first start.
        group: the group of callers that run as another user; None if only this user calls.
    """

    def __init__(
        self,
        agent: Agent,
        address: str,
        token_file: Path,
        *,
        group: int | None = None,
    ) -> None:
        self._agent = agent
        self._wanted = parse_address(address)
        self._token_file = token_file
        self._turns = Turns()
        self._stopping = False
        self._group = group
        self._socket = SocketFile(self._wanted.path, group) if self._wanted.path else None
        self._bound = self._wanted
        self._workers = futures.ThreadPoolExecutor(max_workers=1 + _QUEUE + 5, thread_name_prefix="agent")
        self._server: Any = None

    @property
    def address(self) -> str:
        """Where it listens; with the real port once started."""
        return self._bound.target

    def start(self) -> None:
        """Listen and answer.

        Raises:
            ConfigError: the address is bad or public.
            StateError: another agent runs there, or the socket's folder or the token file are open to others.
            DeploymentError: the address cannot be listened at.
        """
        if self._socket is not None:
            self._socket.claim()
        try:
            self._start(Credential(self._token_file, self._group))
        except BaseException:
            if self._socket is not None:
                self._socket.release()
            raise

    def stop(self, grace_s: float = 8.0) -> bool:
        """Take no more calls and let a running one finish within the grace time.

        Returns:
            False if the agent still computes; what it computes is committed or not, never half.
        """
        self._stopping = True
        if self._server is not None:
            self._server.stop(grace_s).wait(grace_s + 1.0)
        self._workers.shutdown(wait=False, cancel_futures=True)
        if self._socket is not None:
            self._socket.release()
        return self._turns.idle

    def _start(self, credential: Credential) -> None:
        server = grpc.server(
            self._workers,
            interceptors=[_CredentialCheck(credential)],
            options=_OPTIONS,
            maximum_concurrent_rpcs=_MAX_CONCURRENT,
        )
        methods = {name: self._method(name) for name in _MESSAGES}
        health = {"Check": grpc.unary_unary_rpc_method_handler(self._check_health)}
        for service, handlers in ((_SERVICE, methods), (_HEALTH, health)):
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self._bound = self._bind(server)
        if self._socket is not None:
            self._socket.protect()
        server.start()
        self._server = server

    def _bind(self, server: Any) -> Address:
        address = self._wanted if self._socket else private_host(self._wanted)
        try:
            port = server.add_insecure_port(address.target)
        except RuntimeError:
            port = 0
        if port == 0:
            raise DeploymentError(
                code="ADDRESS_TAKEN",
                message=f"The agent cannot listen at {self._wanted.target}.",
                advice="Another program may be using it: stop that or choose another agent address.",
            )
        return address if self._socket else Address(host=address.host, port=port)

    def _method(self, name: str) -> Any:
        """A gRPC method of the agent's."""

        def respond(data: bytes, context: Any) -> bytes:
            if self._stopping:  # its caller asks again, the next agent perhaps
                context.abort(grpc.StatusCode.UNAVAILABLE, "not serving")
            return answer(self._agent, name, data, lambda: self._turn(context))

        return grpc.unary_unary_rpc_method_handler(respond)

    def _turn(self, context: Any) -> AbstractContextManager[None]:
        return self._turns.hold(lambda: not self._stopping and context.is_active())

    def _check_health(self, _data: bytes, _context: Any) -> bytes:
        status = "NOT_SERVING" if self._stopping else "SERVING"
        message: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
        return message


class _CredentialCheck(grpc.ServerInterceptor):  # type: ignore[misc]
    """Ends every call without the token before its message is read, with nothing but UNAUTHENTICATED."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential
        self._refuse = grpc.stream_unary_rpc_method_handler(
            lambda _messages, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "")
        )

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Let the call pass, or not."""
        if self._credential.matches(details.invocation_metadata):
            return continuation(details)
        return self._refuse


def serve(
    agent: Agent,
    address: str,
    token_file: Path,
    *,
    group: int | None = None,
    grace_s: float = 8.0,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; to be called in the main thread.

    An agent that still computes after the grace time is cut off with the process: its ledger and its release store are
    made for that.

    Args:
        agent: answers the calls.
        address: as for AgentServer.
        token_file: as for AgentServer.
        group: as for AgentServer.
        grace_s: time for a running call to finish.
        on_ready: called with the address once calls are answered.
    """
    asked = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server = AgentServer(agent, address, token_file, group=group)
        server.start()
        if on_ready is not None:
            on_ready(server.address)
        asked.wait()
        idle = server.stop(grace_s)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if not idle:
        _LOG.warning("the agent was computing when it was stopped")
        logging.shutdown()
        os._exit(0)  # the computing thread would hold the interpreter back
