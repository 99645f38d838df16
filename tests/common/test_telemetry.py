"""Nothing calls home: the switches are set, reach children, and Flower obeys them."""

import os
import subprocess
import sys
import types

import pytest

from dpfpl_common.ops.telemetry import quiet_environment, silence_telemetry


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in quiet_environment(offline=True):
        monkeypatch.delenv(name, raising=False)


def test_offline_adds_the_hub_switches_only_when_asked() -> None:
    assert "HF_HUB_OFFLINE" not in quiet_environment()
    assert quiet_environment(offline=True)["HF_HUB_OFFLINE"] == "1"
    assert quiet_environment().items() <= quiet_environment(offline=True).items()


@pytest.mark.usefixtures("clean_environment")
def test_silencing_reaches_this_process_and_so_its_children() -> None:
    silence_telemetry()
    assert (os.environ["FLWR_TELEMETRY_ENABLED"], os.environ["HF_HUB_DISABLE_TELEMETRY"]) == ("0", "1")


@pytest.mark.usefixtures("clean_environment")
def test_flower_imported_earlier_is_silenced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    loud = types.ModuleType("flwr.supercore.telemetry")
    loud.FLWR_TELEMETRY_ENABLED = "1"
    monkeypatch.setitem(sys.modules, "flwr.supercore.telemetry", loud)
    silence_telemetry()
    assert loud.FLWR_TELEMETRY_ENABLED == "0"


def test_flower_sends_no_event_in_a_quiet_environment() -> None:
    """Fails if Flower renames its switch: an event would then try to open a connection."""
    program = (
        "import urllib.request, flwr.supercore.telemetry as t\n"
        "sent = []\n"
        "urllib.request.urlopen = lambda *a, **k: sent.append(a)\n"
        "t.event(t.EventType.PING).result()\n"
        "print(t.FLWR_TELEMETRY_ENABLED, len(sent))\n"
    )
    quiet = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **quiet_environment()}
    )
    assert quiet.stdout.split() == ["0", "0"], quiet.stderr
