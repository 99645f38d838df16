"""``dpfpl-client serve``: the classifier on an address, until Ctrl-C."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from dpfpl_client.prompt import Classifier
from dpfpl_client.serving.app import STATIC, classifier_app
from dpfpl_common.errors import DeploymentError
from dpfpl_common.http_guard import HttpGuard, read_http_token

__all__ = ["ServeSettings", "serve_classifier"]


@dataclass(frozen=True)
class ServeSettings:
    """Where to listen, what callers must show (None: be on this machine), and the largest image file in bytes."""

    host: str
    port: int
    token: str | None
    max_bytes: int

    @classmethod
    def checked(cls, host: str, port: int, token_file: Path | None, max_bytes: int) -> "ServeSettings":
        """Settings that are safe to use.

        Raises:
            ConfigError: other machines could reach it without a token.
        """
        return cls(host, port, read_http_token(host, token_file), max_bytes)


def serve_classifier(classifier: Classifier, settings: ServeSettings, say: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Raises:
        DeploymentError: the address cannot be listened on.
    """
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise DeploymentError(
            code="PORT_IN_USE",
            message=f"{settings.host}:{settings.port} cannot be listened on ({error.strerror}).",
            advice="Choose another port with --port, or 0 for a free one.",
        ) from None
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    say(f"Open http://{shown}:{listener.getsockname()[1]}/  (API: /openapi.json). Ctrl-C stops it.")
    guarded = HttpGuard(classifier_app(classifier, settings.max_bytes), settings.token, STATIC)
    config = uvicorn.Config(
        guarded,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        limit_concurrency=64,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=5,
        lifespan="off",
    )
    uvicorn.Server(config).run(sockets=[listener])
