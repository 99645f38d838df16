"""The live page's HTTP application: only reads, and pushes what changed as server-sent events."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from importlib import resources
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from dpfpl_common.errors import DpfplError, StateError
from dpfpl_common.experiment import NAME
from dpfpl_common.ops.diagnostics import Trouble
from dpfpl_common.ops.http import PAGE_LIMITS, HttpGuard, address_shown, open_listener, read_http_token
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.sites.admin import list_sites
from dpfpl_server.sites.life import part_troubles
from dpfpl_server.sites.superlink import SuperLinkSettings
from dpfpl_server.watch.console.snapshot import list_experiments, snapshot, tail

__all__ = ["STATIC", "Watcher", "console_app", "serve_console"]

POLL_SECONDS = 0.5
CONNECTIONS_SECONDS = 5.0
ALIVE_SECONDS = 10.0
MAX_STREAMS = 20
STATIC = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path, file and type of what makes up the page; none of it is secret."""


class Watcher:
    """Reads the runs' state, at most every half second however many pages are open.

    Args:
        runs: the folder of runs.
        connections: gives what the running server sees of each site; slow, so asked every few seconds only.
        log_file: of the server.
        troubles: gives the server's processes that are gone or hang.
    """

    def __init__(
        self,
        runs: Path,
        connections: Callable[[], dict[str, str]],
        log_file: Path,
        troubles: Callable[[], list[Trouble]] = list,
    ) -> None:
        self._runs = runs
        self._connections = connections
        self._log_file = log_file
        self._troubles = troubles
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, str]] = {}
        self._seen: tuple[float, dict[str, str]] = (float("-inf"), {})

    def names(self) -> list[str]:
        """The experiments, the last changed first."""
        return list_experiments(self._runs)

    def look(self, name: str) -> str:
        """The experiment's state as JSON.

        Raises:
            StateError: there is no such run, or it is damaged.
        """
        if not NAME.fullmatch(name) or not (self._runs / name / "experiment.json").is_file():
            raise StateError(code="NO_RUN", message=f"There is no run {name[:63]!r}.", advice="Check the run's name.")
        with self._lock:
            at, text = self._known.get(name, (float("-inf"), ""))
            if time.monotonic() - at >= POLL_SECONDS:
                folder, log = RunFolder(self._runs / name), tail(self._log_file)
                seen = snapshot(folder, self._sites(), log, self._troubles())
                text = json.dumps(seen, ensure_ascii=False)
                self._known[name] = (time.monotonic(), text)
            return text

    def _sites(self) -> dict[str, str]:
        at, found = self._seen
        if time.monotonic() - at >= CONNECTIONS_SECONDS:
            try:
                found = self._connections()
            except DpfplError:  # no server runs, or it does not answer: then nothing is known of connections
                found = {}
            self._seen = (time.monotonic(), found)
        return found


def console_app(watcher: Watcher) -> FastAPI:
    """The application: ``/``, ``/api/runs``, ``/api/runs/NAME`` and ``/api/runs/NAME/events``. It only reads."""
    app = FastAPI(title="DP-FPL console", docs_url=None, redoc_url=None, openapi_url=None)
    streams = threading.BoundedSemaphore(MAX_STREAMS)

    @app.exception_handler(DpfplError)
    async def problem(request: Request, error: DpfplError) -> JSONResponse:
        content = {"code": error.code, "message": error.message, "advice": error.advice}
        return JSONResponse(content, 404 if error.code == "NO_RUN" else 500)

    @app.get("/api/runs")
    async def runs() -> list[str]:
        return await asyncio.to_thread(watcher.names)

    @app.get("/api/runs/{name}")
    async def run(name: str) -> Response:
        return Response(await asyncio.to_thread(watcher.look, name), media_type="application/json")

    @app.get("/api/runs/{name}/events")
    async def events(name: str, request: Request) -> Response:
        await asyncio.to_thread(watcher.look, name)  # an unknown name is answered with 404, not with an empty stream
        if not streams.acquire(blocking=False):
            content = {"code": "BUSY", "message": f"{MAX_STREAMS} pages are open already.", "advice": "Close one."}
            return JSONResponse(content, 503)
        headers = {"X-Accel-Buffering": "no"}
        return StreamingResponse(_stream(watcher, name, streams), media_type="text/event-stream", headers=headers)

    for path, (file, kind) in STATIC.items():
        content = resources.files("dpfpl_server.watch.console").joinpath(file).read_bytes()
        app.add_api_route(path, _static(content, kind))
    return app


async def _stream(watcher: Watcher, name: str, streams: threading.BoundedSemaphore) -> AsyncIterator[str]:
    """The state whenever it changes, and a sign of life in between; ends with the browser's connection."""
    sent, at = "", time.monotonic()
    try:
        while True:
            try:
                event, data = "state", await asyncio.to_thread(watcher.look, name)
            except DpfplError as error:
                event, data = "problem", json.dumps({"code": error.code, "message": error.message})
            if data != sent:
                yield f"event: {event}\ndata: {data}\n\n"
                sent, at = data, time.monotonic()
            elif time.monotonic() - at >= ALIVE_SECONDS:
                yield ": alive\n\n"
                at = time.monotonic()
            await asyncio.sleep(POLL_SECONDS)
    finally:
        streams.release()


def _static(content: bytes, kind: str) -> Callable[[], Any]:
    def answer() -> Response:
        return Response(content, media_type=kind)

    return answer


def serve_console(
    runs: Path, server_folder: Path, host: str, port: int, token_file: Path | None, say: Callable[[str], None]
) -> None:
    """``dpfpl-server console``: the page on an address, until Ctrl-C.

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
