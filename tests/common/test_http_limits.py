"""DR7: callers that never finish their headers, at a page of uvicorn (console, serve) and at the monitor."""

import contextlib
import select
import socket
import time
import urllib.request
from collections.abc import Iterator

import pytest

from dpfpl_common.ops import http as http_listener
from dpfpl_common.ops.http import BackgroundPage, open_listener
from dpfpl_common.ops.monitor import Monitor

CALLERS = 300
UNFINISHED = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "


async def page(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(params=["page", "monitor"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Where something listens with the limits of all our pages."""
    if request.param == "page":
        listener = open_listener("127.0.0.1", 0)
        shown = BackgroundPage(page, listener, "page")
        yield int(listener.getsockname()[1])
        shown.stop()
    else:
        monitor = Monitor("127.0.0.1", 0, list, list)
        yield int(monitor.address.rpartition(":")[2])
        monitor.stop()


def ask(port: int) -> float:
    """Seconds until a whole request is answered."""
    began = time.monotonic()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=8) as answer:
        assert answer.status == 200
    return time.monotonic() - began


def still_open(callers: list[socket.socket]) -> list[socket.socket]:
    """Those that the other side has not closed."""
    closed, (readable, _, _) = set(), select.select(callers, [], [], 0)
    for caller in readable:
        with contextlib.suppress(BlockingIOError):
            try:
                if caller.recv(1, socket.MSG_PEEK) == b"":
                    closed.add(caller)
            except ConnectionResetError:
                closed.add(caller)
    return [caller for caller in callers if caller not in closed]


def test_DR7_300_unfinished_callers_hold_up_nobody_and_are_dropped(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listener, "HEADER_SECONDS", 3.0)
    ask(port)
    with contextlib.ExitStack() as opened:
        began = time.monotonic()
        callers = [opened.enter_context(socket.create_connection(("127.0.0.1", port), 5)) for _ in range(CALLERS)]
        for caller in callers:
            with contextlib.suppress(OSError):
                caller.sendall(UNFINISHED)
        slowest = max(ask(port) for _ in range(20))
        while (left := still_open(callers)) and time.monotonic() - began < 15:
            for caller in left:  # a byte now and then, so that nothing looks idle
                with contextlib.suppress(OSError):
                    caller.sendall(b"x")
            time.sleep(0.25)
        took = time.monotonic() - began
    print(f"DR7: others served within {slowest:.2f} s, {len(left)} of {CALLERS} left after {took:.1f} s")
    assert slowest < 2.0
    assert not left
    assert took < 5.0
    ask(port)


def test_DR7_a_slow_second_request_has_no_longer_than_the_first(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listener, "HEADER_SECONDS", 1.0)
    with socket.create_connection(("127.0.0.1", port), 5) as caller:
        caller.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"200" in caller.recv(4096)
        began = time.monotonic()
        while still_open([caller]) and time.monotonic() - began < 8:
            with contextlib.suppress(OSError):
                caller.sendall(b"G" if time.monotonic() - began < 0.1 else b"E")
            time.sleep(0.1)
        assert time.monotonic() - began < 3.0
