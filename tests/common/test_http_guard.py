"""Who may speak to our HTTP pages: tried on the guard alone, with an application that answers everything."""

import asyncio

import pytest

from dpfpl_common.errors import ConfigError
from dpfpl_common.ops.http import HttpGuard, is_loopback, read_http_token

TOKEN = "a-token-of-good-length"


async def everything(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"secret"})


def ask(guard, path="/data", kind="http", **headers):
    sent = []

    async def send(message):
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(guard({"type": kind, "path": path, "headers": pairs}, None, send))
    return sent


def status(guard, *arguments, **headers):
    return ask(guard, *arguments, **headers)[0]["status"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:80", 200),
        ("[::1]", 200),
        ("LOCALHOST:1", 200),
        ("evil.example", 421),
        ("evil.example:8080", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example:80", 421),
        ("", 421),
    ],
)
def test_over_loopback_only_loopbacks_own_names_are_answered(host, expected):
    guard = HttpGuard(everything, None)
    assert status(guard, host=host) == expected
    assert ("secret" in str(ask(guard, host=host))) == (expected == 200)


def test_a_request_without_a_host_is_refused():
    assert status(HttpGuard(everything, None)) == 421


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        ("Bearer wrong-token-of-length", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        ("Bearer ", 401),
        (f"Bearer {TOKEN}x", 401),
    ],
)
def test_with_a_token_whoever_shows_it_is_answered_and_nobody_else(authorization, expected):
    guard = HttpGuard(everything, TOKEN, ["/"])
    assert status(guard, authorization=authorization, host="anything") == expected


def test_the_page_itself_needs_no_token_and_nothing_beside_it():
    guard = HttpGuard(everything, TOKEN, ["/"])
    assert status(guard, "/") == 200
    assert status(guard, "/data") == status(guard, "//") == status(guard, "/./") == 401


def test_web_sockets_are_not_passed_on():
    assert ask(HttpGuard(everything, None), kind="websocket", host="localhost") == []


@pytest.mark.parametrize("host", ["localhost", "evil.example"])
def test_every_answer_keeps_a_browser_from_loading_anything_from_elsewhere(host):
    headers = dict(ask(HttpGuard(everything, None), host=host)[0]["headers"])
    assert headers[b"content-security-policy"].startswith(b"default-src 'none'")
    assert b"frame-ancestors 'none'" in headers[b"content-security-policy"]
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"cache-control"] == b"no-store"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")),
    ],
)
def test_what_counts_as_loopback(host, expected):
    assert is_loopback(host) == expected
    if expected:
        assert read_http_token(host, None) is None
    else:
        with pytest.raises(ConfigError, match="TOKEN_NEEDED"):
            read_http_token(host, None)


@pytest.mark.parametrize("content", ["", "short", "with spaces in between it", "ü" * 20])
def test_an_unusable_token_is_an_error(tmp_path, content):
    (tmp_path / "token").write_text(content)
    with pytest.raises(ConfigError) as error:
        read_http_token("0.0.0.0", tmp_path / "token")
    assert error.value.code in ("TOKEN_TOO_SHORT", "TOKEN_UNREADABLE")
    assert "secrets" in error.value.advice


def test_a_token_file_is_read_without_its_line_end(tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert read_http_token("0.0.0.0", tmp_path / "token") == TOKEN
    with pytest.raises(ConfigError, match="TOKEN_UNREADABLE"):
        read_http_token("0.0.0.0", tmp_path / "nowhere")
