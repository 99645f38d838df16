"""A small HTTP endpoint beside a process: ``/health`` for probes, ``/metrics`` for Prometheus.

On loopback unless its owner says otherwise. ``/health`` answers 200 or 503 with codes only; ``/metrics`` and
the words of ``/health`` may need a token, because other users of the machine reach loopback as well.
"""

import asyncio
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpfpl_common.errors import ConfigError, DeploymentError
from dpfpl_common.ops.diagnostics import Trouble, report
from dpfpl_common.ops.http import BackgroundPage, answer, is_loopback, names_loopback, open_listener, shows_token
from dpfpl_common.ops.tls import host_and_port

__all__ = ["CONTENT_TYPE", "Family", "Monitor", "parse_monitor_address", "render"]


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of the Prometheus text format, written by hand: a few lines, and no dependency on either side."""

Sample = tuple[Mapping[str, str], float]


@dataclass(frozen=True)
class Family:
    """One metric with all its samples.

    Attributes:
        name: snake case with its unit, ``_total`` at the end of a counter.
        kind: ``gauge`` or ``counter``.
        help: one sentence.
        samples: labels and value; none leaves the metric out.
    """

    name: str
    kind: str
    help: str
    samples: Sequence[Sample]


def render(families: Iterable[Family]) -> str:
    """The exposition of these metrics, format 0.0.4."""
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        lines += [f"# HELP {family.name} {_escaped(family.help)}", f"# TYPE {family.name} {family.kind}"]
        lines += [f"{family.name}{_labels(labels)} {_number(value)}" for labels, value in family.samples]
    return "".join(f"{line}\n" for line in lines)


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    shown = ",".join('{}="{}"'.format(key, _escaped(value).replace('"', '\\"')) for key, value in labels.items())
    return f"{{{shown}}}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def parse_monitor_address(address: str, *, public: bool = False) -> tuple[str, int]:
    """Host and port to listen on.

    Args:
        address: ``host:port``; port 0 takes a free one.
        public: accept an address that other machines reach, for a container's own network.

    Raises:
        ConfigError: MONITOR_ADDRESS, it is none; MONITOR_PUBLIC, other machines could reach it.
    """
    if (parts := host_and_port(address)) is None:
        raise ConfigError(
            code="MONITOR_ADDRESS",
            message=f"The monitoring address is {address!r}.",
            advice="Write it like 127.0.0.1:9465.",
        )
    if not public and not is_loopback(parts[0]):
        raise ConfigError(
            code="MONITOR_PUBLIC",
            message=f"The monitoring address {address} can be reached from other machines.",
            advice="Use 127.0.0.1, or allow it explicitly where only a private network reaches it.",
        )
    return parts


class Monitor:
    """Serves until stopped, in a thread of its own.

    Args:
        host: from :func:`parse_monitor_address`.
        port: 0 takes a free one.
        health: the troubles now; none means healthy.
        metrics: the metrics now.
        token: what callers must show for metrics and words; None lets everybody who reaches it read them.

    Raises:
        DeploymentError: the address cannot be listened on.
    """

    def __init__(
        self,
        host: str,
        port: int,
        health: Callable[[], list[Trouble]],
        metrics: Callable[[], Iterable[Family]],
        token: str | None = None,
    ) -> None:
        try:
            listener = open_listener(host, port)
        except DeploymentError as error:
            raise DeploymentError(
                code="MONITOR_PORT",
                message=f"The monitoring address {error.message}",
                advice="Another program may be using it: choose another port.",
            ) from None
        self._host, self._port = host, listener.getsockname()[1]
        self._page = BackgroundPage(_Endpoint(health, metrics, token, is_loopback(host)), listener, "monitor")

    @property
    def address(self) -> str:
        """Where it listens, with the real port."""
        return f"{self._host}:{self._port}"

    def stop(self) -> None:
        """Stop listening."""
        self._page.stop()


class _Endpoint:
    """The ASGI application; what it shows is computed in a thread, one caller after another."""

    def __init__(
        self,
        health: Callable[[], list[Trouble]],
        metrics: Callable[[], Iterable[Family]],
        token: str | None,
        local: bool,
    ) -> None:
        self._health, self._metrics, self._token, self._local = health, metrics, token, local
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a probe or Prometheus."""
        if scope["type"] != "http":
            return
        status, content = await self._content(scope)
        kind = CONTENT_TYPE if isinstance(content, str) else "application/json"
        text = content if isinstance(content, str) else json.dumps(content)
        await answer(send, status, kind, text, (b"cache-control", b"no-store"))

    async def _content(self, scope: Any) -> tuple[int, str | dict[str, object]]:
        """The status, and metrics as text or anything else for JSON."""
        if self._local and not names_loopback(scope):
            return 421, {"code": "WRONG_HOST"}
        if scope["method"] != "GET":
            return 405, {"code": "METHOD"}
        may_read = self._token is None or shows_token(scope, self._token)
        if scope["path"] == "/health":
            async with self._turn:
                troubles = await asyncio.to_thread(self._health)
            return 503 if troubles else 200, report(troubles, words=may_read)
        if scope["path"] != "/metrics":
            return 404, {"code": "NOT_FOUND"}
        if not may_read:
            return 401, {"code": "TOKEN_WRONG"}
        async with self._turn:
            return 200, await asyncio.to_thread(lambda: render(self._metrics()))
