"""Calls a site's agent over gRPC."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dpfpl_client.agent.endpoint import HEADER, parse_address, read_token
from dpfpl_common.errors import RefusedError
from dpfpl_common.wire.agent_pb2 import DESCRIPTOR
from dpfpl_common.wire.codec import MAX_MESSAGE_BYTES

__all__ = ["AgentChannel"]

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),  # the agent is never behind one, and its token must not go there
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
_PROBE_S = 2.0

_SERVICE = DESCRIPTOR.services_by_name["SiteAgent"].full_name
_NOT_UP = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class AgentChannel:
    """The way to an agent that runs in another process. What passes is neither read nor changed here.

    A call that found the agent gone is made again with the same bytes until its deadline: the agent answers the same
    request with the same bytes and charges once.

    Args:
        address: where the agent listens.
        token_file: the agent's credential.
        deadline_s: how long a call may take in all.
        wait_s: how much of it to wait for an agent that is not up or not ready.
    """

    def __init__(self, address: str, token_file: Path, deadline_s: float, *, wait_s: float = 30.0) -> None:
        self._token_file = token_file
        self._deadline_s = deadline_s
        self._wait_s = wait_s
        self._channel: Any = grpc.insecure_channel(parse_address(address).target, options=_OPTIONS)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def forward(self, method: str, message: bytes) -> bytes:
        """The agent's answer, a ``Reply`` as bytes, to a message for one of its methods (see agent.proto).

        Raises:
            RefusedError: AGENT_UNAVAILABLE, AGENT_DEADLINE, AGENT_CREDENTIAL, BUSY or AGENT_FAILED: there is no answer.
        """
        call = self._channel.unary_unary(f"/{_SERVICE}/{method}")
        end = time.monotonic() + self._deadline_s
        pauses = _pauses()
        while True:
            self._wait_until_serving(min(end, time.monotonic() + self._wait_s))
            try:
                answer: bytes = call(message, timeout=max(0.0, end - time.monotonic()), metadata=self._metadata())
                return answer
            except grpc.RpcError as error:
                status = error.code()
            if status is not grpc.StatusCode.UNAVAILABLE:
                raise _error(status)
            _sleep(next(pauses), end)

    def is_serving(self) -> bool:
        """Whether an agent answers at the address and is ready; for container health checks. Waits for nothing.

        Raises:
            RefusedError: AGENT_CREDENTIAL, it does not accept the token.
        """
        return self._probe(min(self._deadline_s, _PROBE_S), wait_for_ready=False)

    def _wait_until_serving(self, end: float) -> None:
        """Return once the agent is there and ready.

        Raises:
            RefusedError: AGENT_UNAVAILABLE, the time is up.
        """
        for pause in _pauses():
            if self._probe(max(0.0, min(_PROBE_S, end - time.monotonic())), wait_for_ready=True):
                return
            _sleep(pause, end)

    def _probe(self, timeout_s: float, *, wait_for_ready: bool) -> bool:
        """Ask the health service; False if no agent answers, or it is not ready."""
        metadata = self._metadata()
        if not metadata:
            return False
        try:
            reply = self._health.Check(
                health_pb2.HealthCheckRequest(), timeout=timeout_s, metadata=metadata, wait_for_ready=wait_for_ready
            )
        except grpc.RpcError as error:
            if error.code() in _NOT_UP or metadata != self._metadata():
                return False
            raise _error(error.code()) from None
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """The credential as it is now: a restarted agent may have made a new one."""
        token = read_token(self._token_file)
        return () if token is None else ((HEADER, f"Bearer {token}"),)


def _pauses() -> Iterator[float]:
    """0.1, 0.2, 0.4 ... seconds, at most 2."""
    pause = 0.1
    while True:
        yield pause
        pause = min(2 * pause, 2.0)


def _sleep(pause: float, end: float) -> None:
    if time.monotonic() + pause >= end:
        raise RefusedError(
            code="AGENT_UNAVAILABLE",
            message="The site's agent is not running.",
            advice="At the site: start it (dpfpl-client start) and read its log.",
        )
    time.sleep(pause)


def _error(status: grpc.StatusCode) -> RefusedError:
    """The error for a status of gRPC; its details are not passed on, they name sockets and hosts."""
    match status:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return RefusedError(
                code="AGENT_DEADLINE",
                message="The site's agent did not finish within the round's deadline.",
                advice="Send the same request again, which is not charged twice, or give the round a longer deadline.",
            )
        case grpc.StatusCode.UNAUTHENTICATED:
            return RefusedError(
                code="AGENT_CREDENTIAL",
                message="The site's agent does not accept the credential of its own client.",
                advice="At the site: point SuperNode and agent at the same token file.",
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return RefusedError(code="BUSY", message="The site's agent is busy.", advice="Call again later.")
        case _:
            return RefusedError(
                code="AGENT_FAILED",
                message=f"The call of the site's agent ended with {status.name}.",
                advice="At the site: install the same release of SuperNode and agent and read the agent's log.",
            )
