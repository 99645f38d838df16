"""Doctor names what is wrong with set-ups that were really broken; docs/howto/troubleshooting.md shows the same."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from doctor_captures import DOCUMENT, captures

sys.path.pop(0)

pytestmark = [pytest.mark.processes, pytest.mark.long]

EXPECTED = {
    "the server is not running": "PORT_CLOSED",
    "the same, seen by the operator": "NOT_STARTED",
    "another program listens on the port": "WRONG_SERVICE",
    "the kit belongs to another federation": "SERVER_NOT_TRUSTED",
    "policy missing, key readable, telemetry asked for": "NO_POLICY",
    "the site's key was withdrawn": "SITE_UNKNOWN",
    "the server's certificate has expired": "CERTIFICATE_EXPIRED",
}


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
