"""A small HTTP endpoint beside a process: ``/health`` for probes, ``/metrics`` for Prometheus.

On loopback unless its owner says otherwise. ``/health`` answers 200 or 503 with codes only; ``/metrics`` and
the words of ``/health`` may need a token, because other users of the machine reach loopback as well.
"""

import hmac
import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dpfpl_common.errors import ConfigError, DeploymentError
from dpfpl_common.ops.diagnostics import Trouble, report
from dpfpl_common.ops.http import LOOPBACK_NAMES, is_loopback

__all__ = ["CONTENT_TYPE", "Family", "Monitor", "parse_monitor_address", "render"]


# The Prometheus text format, written by hand: a few lines, and no dependency on either side.


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

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


_TIMEOUT_S = 5.0


def parse_monitor_address(address: str, *, public: bool = False) -> tuple[str, int]:
    """Host and port to listen on.

    Args:
        address: ``host:port``; port 0 takes a free one.
        public: accept an address that other machines reach, for a container's own network.

    Raises:
        ConfigError: MONITOR_ADDRESS, it is none; MONITOR_PUBLIC, other machines could reach it.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(
            code="MONITOR_ADDRESS",
            message=f"The monitoring address is {address!r}.",
            advice="Write it like 127.0.0.1:9465.",
        )
    if not public and not is_loopback(host):
        raise ConfigError(
            code="MONITOR_PUBLIC",
            message=f"The monitoring address {address} can be reached from other machines.",
            advice="Use 127.0.0.1, or allow it explicitly where only a private network reaches it.",
        )
    return host, int(port)


class Monitor:
    """Serves until stopped, in threads of its own.

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
            self._server = _Server((host, port), _Handler)
        except OSError as error:
            raise DeploymentError(
                code="MONITOR_PORT",
                message=f"The monitoring address {host}:{port} cannot be listened on ({error.strerror or error}).",
                advice="Another program may be using it: choose another port.",
            ) from None
        self._server.health, self._server.metrics, self._server.token = health, metrics, token
        self._server.local = is_loopback(host)
        self._thread = threading.Thread(target=self._server.serve_forever, name="monitor", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where it listens, with the real port."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    health: Callable[[], list[Trouble]]
    metrics: Callable[[], Iterable[Family]]
    token: str | None
    local: bool

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "dpfpl"
    sys_version = ""
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        """Answer a probe or Prometheus."""
        path = self.path.partition("?")[0]
        if self.server.local and not self._names_loopback():
            self._answer(421, "application/json", json.dumps({"code": "WRONG_HOST"}))
        elif path == "/health":
            troubles = self.server.health()
            body = json.dumps(report(troubles, words=self._may_read()))
            self._answer(503 if troubles else 200, "application/json", body)
        elif path == "/metrics":
            if self._may_read():
                self._answer(200, CONTENT_TYPE, render(self.server.metrics()))
            else:
                self._answer(401, "application/json", json.dumps({"code": "TOKEN_WRONG"}))
        else:
            self._answer(404, "application/json", json.dumps({"code": "NOT_FOUND"}))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is http.server's
        """Probes every few seconds are not worth a line."""

    def _names_loopback(self) -> bool:
        """A web page that makes its own name point here (DNS rebinding) gets nothing."""
        host = self.headers.get("Host", "")
        return (host if host.endswith("]") else host.rpartition(":")[0] or host).lower() in LOOPBACK_NAMES

    def _may_read(self) -> bool:
        if self.server.token is None:
            return True
        scheme, _, shown = self.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), self.server.token.encode())

    def _answer(self, status: int, kind: str, body: str) -> None:
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)
