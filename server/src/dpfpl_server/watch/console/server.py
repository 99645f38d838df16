"""``dpfpl-server console``: the live page on an address, until Ctrl-C."""

from collections.abc import Callable
from pathlib import Path

import uvicorn

from dpfpl_common.ops.http import PAGE_LIMITS, HttpGuard, address_shown, open_listener, read_http_token
from dpfpl_server.sites.admin import list_sites
from dpfpl_server.sites.life import part_troubles
from dpfpl_server.sites.superlink import SuperLinkSettings
from dpfpl_server.watch.console.app import STATIC, Watcher, console_app

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
    listener = open_listener(host, port)

    def connections() -> dict[str, str]:
        return {row.name: row.status for row in list_sites(server_folder)}

    log_file = SuperLinkSettings(server_folder.resolve()).log_file
    watcher = Watcher(runs, connections, log_file, lambda: part_troubles(server_folder))
    hint = "#TOKEN, where TOKEN is your token" if token else ""
    say(f"Open {address_shown(host, listener)}{hint}  It is read-only. Ctrl-C stops it.")
    config = uvicorn.Config(HttpGuard(console_app(watcher), token, STATIC), timeout_graceful_shutdown=2, **PAGE_LIMITS)
    uvicorn.Server(config).run(sockets=[listener])
