"""Metrics and health over HTTP: exact text, real status codes, and no word to whoever may not read it."""

import http.client
import json
import logging
import math

import pytest

from dpfpl_common.errors import ConfigError, DeploymentError
from dpfpl_common.ops.diagnostics import Trouble
from dpfpl_common.ops.monitor import Family, Monitor, parse_monitor_address, render
from dpfpl_common.ops.telemetry import JsonFormatter

TROUBLE = Trouble("server", "SERVER_LOST", "the server has not answered for 90 s")


def get(address, path, **headers):
    host, port = address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body


@pytest.fixture
def make():
    made = []

    def monitor(troubles=(), token=None):
        families = [Family("dpfpl_rounds_total", "counter", "Rounds.", [({"experiment": "a"}, 3)])]
        made.append(Monitor("127.0.0.1", 0, lambda: list(troubles), lambda: families, token))
        return made[-1].address

    yield monitor
    for one in made:
        one.stop()


def test_the_text_format_is_exact():
    families = [
        Family("a_seconds", "gauge", "One\nline \\ here.", [({"name": 'x"y\\z\n'}, 1.5), ({}, math.inf)]),
        Family("b_total", "counter", "Left out.", []),
        Family("c", "gauge", "Numbers.", [({}, 3.0), ({}, -math.inf), ({}, math.nan), ({}, 1e300), ({}, True)]),
    ]
    assert render(families) == (
        "# HELP a_seconds One\\nline \\\\ here.\n# TYPE a_seconds gauge\n"
        'a_seconds{name="x\\"y\\\\z\\n"} 1.5\na_seconds +Inf\n'
        "# HELP c Numbers.\n# TYPE c gauge\nc 3\nc -Inf\nc NaN\nc 1e+300\nc 1\n"
    )


def test_health_is_a_status_code(make):
    assert get(make(), "/health") == (200, '{"status": "healthy", "reasons": []}')
    status, body = get(make([TROUBLE]), "/health")
    assert (status, json.loads(body)["reasons"][0]["code"]) == (503, "SERVER_LOST")


def test_without_the_token_there_are_codes_and_no_words_and_no_metrics(make):
    address = make([TROUBLE], token="secret")
    status, body = get(address, "/health")
    assert (status, "90 s" in body, "SERVER_LOST" in body) == (503, False, True)
    for wrong in ({}, {"Authorization": "Bearer nope"}, {"Authorization": "Basic secret"}, {"Authorization": "secret"}):
        assert get(address, "/metrics", **wrong)[0] == 401
    assert get(address, "/metrics", Authorization="Bearer secret") == (
        200,
        '# HELP dpfpl_rounds_total Rounds.\n# TYPE dpfpl_rounds_total counter\ndpfpl_rounds_total{experiment="a"} 3\n',
    )
    assert "90 s" in get(address, "/health", Authorization="Bearer secret")[1]


def test_a_page_that_points_its_name_here_gets_nothing(make):
    assert get(make(), "/metrics", Host="evil.example.org")[0] == 421
    assert get(make(), "/elsewhere")[0] == 404


@pytest.mark.parametrize("address", ["0.0.0.0:9465", "[::]:1", "10.0.0.1:1", "example.org:9465"])
def test_a_public_address_must_be_asked_for(address):
    with pytest.raises(ConfigError) as caught:
        parse_monitor_address(address)
    assert caught.value.code == "MONITOR_PUBLIC"
    assert parse_monitor_address(address, public=True)


@pytest.mark.parametrize("address", ["", "9465", ":1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536"])
def test_what_is_no_address_is_said_to_be_none(address):
    with pytest.raises(ConfigError) as caught:
        parse_monitor_address(address)
    assert caught.value.code == "MONITOR_ADDRESS"


def test_a_taken_port_is_an_error(make):
    port = int(make().rsplit(":", 1)[1])
    with pytest.raises(DeploymentError) as caught:
        Monitor("127.0.0.1", port, list, list)
    assert caught.value.code == "MONITOR_PORT"


def test_a_json_log_line_is_one_object():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        import sys

        record = logging.LogRecord("dpfpl_client.x", logging.WARNING, "f", 1, "Train %s", ("refused",), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["level"], parsed["logger"], parsed["message"]) == ("warning", "dpfpl_client.x", "Train refused")
    assert "ValueError" in parsed["error"]
    assert parsed["at"].endswith("Z")
