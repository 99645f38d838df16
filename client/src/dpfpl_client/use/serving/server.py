"""``dpfpl-client serve``: the classifier on an address, until Ctrl-C."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from dpfpl_client.data.decode import DEFAULT_RULES, PixelRules
from dpfpl_client.use.prompt import Classifier
from dpfpl_client.use.serving.app import STATIC, classifier_app
from dpfpl_common.ops.http import PAGE_LIMITS, HttpGuard, address_shown, open_listener, read_http_token

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


def serve_classifier(
    classifier: Classifier,
    settings: ServeSettings,
    say: Callable[[str], None],
    rules: PixelRules = DEFAULT_RULES,
    scores: Sequence[dict[str, Any]] = (),
    about: Mapping[str, Any] | None = None,
) -> None:
    """Serve until interrupted; ``scores`` and what the prompt is called are shown beside it.

    Raises:
        DeploymentError: the address cannot be listened on.
    """
    listener = open_listener(settings.host, settings.port)
    say(f"Open {address_shown(settings.host, listener)}  (API: /openapi.json). Ctrl-C stops it.")
    guarded = HttpGuard(classifier_app(classifier, settings.max_bytes, rules, scores, about), settings.token, STATIC)
    config = uvicorn.Config(guarded, timeout_graceful_shutdown=5, **PAGE_LIMITS)
    uvicorn.Server(config).run(sockets=[listener])
