"""How our small HTTP pages listen: one socket, opened before anything is promised, and the same limits everywhere."""

import socket
from typing import Any

from dpfpl_common.errors import DeploymentError

__all__ = ["PAGE_LIMITS", "address_shown", "open_listener"]

PAGE_LIMITS: dict[str, Any] = {
    "log_level": "warning",
    "access_log": False,
    "server_header": False,
    "ws": "none",
    "limit_concurrency": 64,
    "timeout_keep_alive": 10,
    "lifespan": "off",
}
"""Settings of ``uvicorn.Config`` for a page that few people look at."""


def open_listener(host: str, port: int) -> socket.socket:
    """A socket that listens on the address; port 0 takes a free one.

    Raises:
        DeploymentError: the address cannot be listened on.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
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
