"""The secret that every call of the Control and Runtime APIs shows: on loopback every user of the machine may call.

It lies in the server's folder, mode 0600, made at the first start. Who can read that file is the operator.
"""

import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import httpx
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from dpfpl_common.errors import DeploymentError
from dpfpl_server.sites.kits import write_private

__all__ = ["ControlGuard", "ShownSecret", "control_secret", "make_control_secret"]

FILE = "control.secret"
HEADER = "x-dpfpl-secret"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def make_control_secret(server_folder: Path) -> None:
    """Draw the secret if there is none yet."""
    path = server_folder / FILE
    if not path.exists():
        write_private(path, secrets.token_urlsafe(32).encode())


def control_secret(server_folder: Path) -> str:
    """The secret of a server's folder.

    Raises:
        DeploymentError: there is none, or this user may not read it.
    """
    path = server_folder / FILE
    try:
        if path.stat().st_mode & 0o077:
            raise DeploymentError(
                code="SECRET_READABLE",
                message=f"Others can read {path}, which lets them start runs.",
                advice=f"Stop the server, remove the file, and start the server: it makes a new one ({path.name}).",
            )
        text = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise DeploymentError(
            code="NOT_STARTED" if isinstance(error, FileNotFoundError) else "SECRET_UNREADABLE",
            message=f"{path} cannot be read ({error.strerror}).",
            advice="Start the server first (dpfpl-server start), and run commands as the same user.",
        ) from None
    return text


class ShownSecret:
    """Shows the secret with every call of one of Flower's HTTP clients; one of its interceptors."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the header before the request is sent."""
        context.request.headers[HEADER] = self._secret
        return call_next(context)


class ControlGuard:
    """An ASGI wrapper that answers every request without the secret with 401, whatever it asks for, body unread."""

    def __init__(self, application: Any, secret: str) -> None:
        self._application = application
        self._secret = secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        shown = next((value for name, value in scope.get("headers", ()) if name == HEADER.encode()), b"")
        if scope["type"] == "http" and hmac.compare_digest(shown, self._secret):
            await self._application(scope, receive, send)
        elif scope["type"] == "http":
            body = json.dumps({"detail": "Only the operator of this server may call it."}).encode()
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": body})
