"""Breaks a federation in ways that happen: doctor names for real what is wrong, as docs/howto/troubleshooting.md shows.

``python tests/integration/test_doctor_captures.py`` writes what it said into that page. Needs no image and no model:
doctor looks at neither.
"""

import http.server
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest

from dpfpl_common.ops.processes import ProcessGroup, free_ports
from dpfpl_server.sites import certificates
from dpfpl_server.sites.admin import revoke_site
from dpfpl_server.sites.certificates import renew_server_certificate
from dpfpl_server.sites.provision import ProvisionRequest, provision
from dpfpl_server.sites.superlink import SuperLinkSettings, start_superlink

pytestmark = [pytest.mark.processes, pytest.mark.long]

DOCUMENT = Path(__file__).parents[2] / "docs/howto/troubleshooting.md"


EXPECTED = {
    "the server is not running": "PORT_CLOSED",
    "the same, seen by the operator": "NOT_STARTED",
    "another program listens on the port": "WRONG_SERVICE",
    "the kit belongs to another federation": "SERVER_NOT_TRUSTED",
    "policy missing, key readable, telemetry asked for": "NO_POLICY",
    "the site's key was withdrawn": "SITE_UNKNOWN",
    "the server's certificate has expired": "CERTIFICATE_EXPIRED",
}


def captures(root: Path) -> Iterator[tuple[str, str, int]]:
    """Name, what doctor said, and its exit code, for each broken set-up."""
    fleet, control = free_ports(2)
    server, kits = root / "server", root / "kits"
    provision(ProvisionRequest(server, kits, ("hospital-a", "hospital-b"), port=fleet))
    kit = kits / "hospital-a"

    def client(**more: str) -> tuple[str, int]:
        return _said([sys.executable, "-m", "dpfpl_client", "doctor", "--site", str(kit / "site.toml")], root, **more)

    def operator() -> tuple[str, int]:
        code = "from dpfpl_server.cli.main import main; main()"
        return _said([sys.executable, "-c", code, "doctor", "--server", str(server)], root)

    yield "the server is not running", *client()
    yield "the same, seen by the operator", *operator()

    with WebServer(fleet):
        yield "another program listens on the port", *client()

    own = (kit / "ca.crt").read_bytes()
    with ProcessGroup() as group:
        start_superlink(SuperLinkSettings(server, f"127.0.0.1:{fleet}", control), group)
        provision(ProvisionRequest(root / "other", root / "other-kits", ()))
        (kit / "ca.crt").write_bytes((root / "other" / "ca.crt").read_bytes())
        yield "the kit belongs to another federation", *client()
        (kit / "ca.crt").write_bytes(own)

        (kit / "policy.toml").rename(kit / "policy.away")
        (kit / "node.key").chmod(0o644)
        yield "policy missing, key readable, telemetry asked for", *client(FLWR_TELEMETRY_ENABLED="1")
        (kit / "policy.away").rename(kit / "policy.toml")
        (kit / "node.key").chmod(0o600)

        revoke_site(server, "hospital-a")
        yield "the site's key was withdrawn", *client()

    with (
        mock.patch.object(certificates, "SERVER_DAYS", -1),
        mock.patch.object(certificates, "_CLOCK_SKEW", timedelta(days=900)),
    ):
        renew_server_certificate(server)
    yield "the server's certificate has expired", *operator()


def _said(command: list[str], root: Path, **more: str) -> tuple[str, int]:
    """Run a command as a person would and return what it printed, with this machine's folders taken out."""
    environment = {**os.environ, **more, "COLUMNS": "120"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    text = (ended.stdout + ended.stderr).replace(str(root / "kits" / "hospital-a"), "/srv/hospital-a")
    text = text.replace(str(root / "server"), "/srv/server").replace(str(root), "/srv")
    text = re.sub(r"127\.0\.0\.1:\d+", "fl.example.org:9092", text)
    text = re.sub(r"[\d.]+ GiB are free", "120.0 GiB are free", text)
    return text.rstrip(), ended.returncode


def _at_fault(said: str) -> str:
    """The findings that matter, each with its advice: no ``ok``, nothing that is so at every site before its start."""
    findings = re.findall(r"^(?:ERROR|WARNING).*\n +-> .*$", said, re.MULTILINE)
    return "\n".join(f for f in findings if not re.search(r"\[(NO_STATE|AGENT_DOWN|NODE_DOWN)\]", f))


class WebServer:
    """Something else on the port."""

    def __init__(self, port: int) -> None:
        self._server = http.server.HTTPServer(("127.0.0.1", port), http.server.SimpleHTTPRequestHandler)

    def __enter__(self) -> None:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_O9_doctor_names_what_is_wrong_with_set_ups_that_are_really_broken(tmp_path: Path) -> None:
    found = {name: (said, code) for name, said, code in captures(tmp_path)}
    assert set(found) == set(EXPECTED)
    for name, code in EXPECTED.items():
        said, status = found[name]
        assert f"[{code}]" in said, said
        assert "-> " in said.split(f"[{code}]")[1].splitlines()[1], "what to do comes right below"
        assert status == 2
    broken = found["policy missing, key readable, telemetry asked for"][0]
    assert "[KEY_READABLE]" in broken
    assert "[TELEMETRY_ON]" in broken
    text = DOCUMENT.read_text()
    assert all(f"<!-- capture: {name} -->\n```" in text for name in EXPECTED)
    assert all(f"[{code}]" in text for code in EXPECTED.values())


def main() -> None:
    """Replace the captures in the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        for name, said, code in captures(Path(folder)):
            block = f"<!-- capture: {name} -->\n```\n{_at_fault(said)}\n```\n<!-- end -->"
            pattern = re.compile(rf"<!-- capture: {re.escape(name)} -->.*?<!-- end -->", re.S)
            assert pattern.search(text), f"docs/howto/troubleshooting.md has no place for {name!r}"
            text = pattern.sub(lambda _: block, text)  # noqa: B023
            print(name, code)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
