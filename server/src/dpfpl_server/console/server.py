"""``dpfpl-server console``: the live page on an address, until Ctrl-C."""

import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from dpfpl_common.errors import DeploymentError
from dpfpl_common.http_guard import HttpGuard, read_http_token
from dpfpl_server.console.app import STATIC, Watcher, console_app
from dpfpl_server.sites_admin import list_sites
from dpfpl_server.superlink import SuperLinkSettings

__all__ = ["serve_console"]


def serve_console(
    runs: Path, server_folder: Path, host: str, port: int, token_file: Path | None, say: Callable[[str], None]
) -> None:
    """Serve until interrupted.

    Raises:
        ConfigError: other machines could reach it without a token.
        DeploymentError: the address cannot be listened on.
    """
    token = read_http_token(host, token_file)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise DeploymentError(
            code="PORT_IN_USE",
            message=f"{host}:{port} cannot be listened on ({error.strerror}).",
            advice="Choose another port with --port, or 0 for a free one.",
        ) from None

    def connections() -> dict[str, str]:
        return {row.name: row.status for row in list_sites(server_folder)}

    watcher = Watcher(runs, connections, SuperLinkSettings(server_folder.resolve()).log_file)
    shown = f"[{host}]" if ":" in host else host
    hint = "#TOKEN with the token in place of TOKEN" if token else ""
    say(f"Open http://{shown}:{listener.getsockname()[1]}/{hint}  It only shows, it changes nothing. Ctrl-C stops it.")
    config = uvicorn.Config(
        HttpGuard(console_app(watcher), token, STATIC),
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        limit_concurrency=64,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=2,
        lifespan="off",
    )
    uvicorn.Server(config).run(sockets=[listener])
