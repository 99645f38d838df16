"""How our small HTTP pages listen: one socket, opened before anything is promised, and the same limits everywhere.

A caller has eight seconds for a request's headers and shares the machine with others. Of the callers that have not
finished their headers only a limited number is kept, the newest, and the connections of one other machine are limited
too. So a caller that opens hundreds and finishes none is dropped, and everybody else is served meanwhile.
"""

import asyncio
import hmac
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dpfpl_common.errors import ConfigError, DeploymentError

__all__ = [
    "HEADER_SECONDS",
    "PAGE_LIMITS",
    "BackgroundPage",
    "BoundedProtocol",
    "HttpGuard",
    "address_shown",
    "answer",
    "is_loopback",
    "names_loopback",
    "open_listener",
    "read_http_token",
    "shows_token",
]


Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

SHORTEST_TOKEN = 16
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only; names other than localhost are not trusted."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_http_token(host: str, token_file: Path | None) -> str | None:
    """The token that callers must show, or None where loopback is enough.

    Raises:
        ConfigError: the address is reachable from other machines and there is no token, or the token is unusable.
    """
    if token_file is None:
        if is_loopback(host):
            return None
        raise ConfigError(
            code="TOKEN_NEEDED",
            message=f"{host!r} can be reached from other machines.",
            advice="Give --token-file FILE with a secret of at least 16 characters, and put TLS in front; or listen on "
            "127.0.0.1.",
        )
    try:
        token = token_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            code="TOKEN_UNREADABLE",
            message=f"The token file {token_file} cannot be read.",
            advice="Write a secret into it: python3 -c 'import secrets; print(secrets.token_urlsafe())'",
        ) from None
    if len(token) < SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise ConfigError(
            code="TOKEN_TOO_SHORT",
            message=f"The token in {token_file} is shorter than {SHORTEST_TOKEN} characters or has spaces in it.",
            advice="Write a secret into it: python3 -c 'import secrets; print(secrets.token_urlsafe())'",
        )
    return token


class HttpGuard:
    """Lets a request through to ``application``, of whichever framework, or answers it with a refusal.

    Every answer carries headers that keep a browser from loading anything from elsewhere.

    Args:
        application: what is guarded.
        token: what callers must show; None: only loopback's names are answered.
        open_paths: paths that need no token, as they hold no secret (the page itself, its script and style).
    """

    def __init__(self, application: Application, token: str | None, open_paths: Iterable[str] = ()) -> None:
        self._application = application
        self._token = token
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        if scope["type"] != "http":  # no web sockets here
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._application(scope, receive, send_with_headers)
        else:
            status, code, message = refusal
            more = [(b"www-authenticate", b"Bearer")] if status == 401 else []
            text = json.dumps({"code": code, "message": message})
            await answer(send_with_headers, status, "application/json", text, *more)

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        if self._token is None:
            if names_loopback(scope):
                return None
            return 421, "WRONG_HOST", "This address answers requests for localhost only."
        if scope["path"] in self._open_paths or shows_token(scope, self._token):
            return None
        advice = "Show the token: Authorization: Bearer TOKEN; in a browser open the page with #TOKEN."
        return 401, "TOKEN_WRONG", advice


def names_loopback(scope: Scope) -> bool:
    """Whether a request names loopback as its host: not one from a page whose name points here (DNS rebinding)."""
    host = _header(scope, b"host").decode("latin-1")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name.lower() in LOOPBACK_NAMES


def shows_token(scope: Scope, token: str) -> bool:
    """Whether a request has ``Authorization: Bearer TOKEN``."""
    scheme, _, shown = _header(scope, b"authorization").partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(shown.strip(), token.encode())


def _header(scope: Scope, wanted: bytes) -> bytes:
    found: dict[bytes, bytes] = {name.lower(): value for name, value in scope["headers"]}
    return found.get(wanted, b"")


async def answer(send: Send, status: int, kind: str, text: str, *more: tuple[bytes, bytes]) -> None:
    """Send a whole answer: its content type, its text and more headers."""
    body = text.encode()
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


HEADER_SECONDS = 8.0
"""How long a caller may take for a request's headers, also for those of the next request on the same connection."""
MOST_UNFINISHED = 64
"""Connections without a whole request; one more drops the oldest."""
MOST_A_PEER = 64
"""Connections of one other machine; loopback is exempt, as all of this machine's users share its address."""


class BoundedProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1 with limits on callers that do not finish their headers."""

    _since = 0.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or drop it if its peer has too many."""
        super().connection_made(transport)
        self._wait_for_headers()
        peers = [each for each in self.connections if each.client and self.client and each.client[0] == self.client[0]]
        if len(peers) > MOST_A_PEER and self.client is not None and not is_loopback(self.client[0]):
            transport.abort()
            return
        waiting = [each for each in self.connections if isinstance(each, BoundedProtocol) and each._timer is not None]
        if len(waiting) > MOST_UNFINISHED:
            min(waiting, key=lambda each: each._since)._drop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Look at what arrived; with whole headers the waiting ends."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """The next request's headers have their own eight seconds."""
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_headers()

    def _wait_for_headers(self) -> None:
        self._stop_waiting()
        self._since = time.monotonic()
        self._timer = self.loop.call_later(HEADER_SECONDS, self._drop)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop(self) -> None:
        self._stop_waiting()
        self.transport.abort()


PAGE_LIMITS: dict[str, Any] = {
    "http": BoundedProtocol,
    "log_level": "warning",
    "access_log": False,
    "server_header": False,
    "ws": "none",
    "timeout_keep_alive": int(HEADER_SECONDS),
    "lifespan": "off",
}
"""Settings of ``uvicorn.Config`` for a page that few people look at."""


class BackgroundPage:
    """Serves an ASGI application on an open socket, in a thread of its own, until stopped."""

    def __init__(self, application: Any, listener: socket.socket, name: str) -> None:
        self._server = uvicorn.Server(uvicorn.Config(application, timeout_graceful_shutdown=1, **PAGE_LIMITS))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; returns when the socket is closed."""
        self._server.should_exit = True
        self._thread.join(5.0)


def open_listener(host: str, port: int) -> socket.socket:
    """A socket that listens on the address; port 0 takes a free one.

    Raises:
        DeploymentError: the address cannot be listened on.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise DeploymentError(
            code="PORT_IN_USE",
            message=f"{host}:{port} cannot be listened on ({error.strerror}).",
            advice="Choose another port with --port, or 0 for a free one.",
        ) from None


def address_shown(host: str, listener: socket.socket) -> str:
    """The page's address as a browser wants it."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}/"
