"""DR8: another program, such as a backup, holds the ledger: waited for, then refused for the time being."""

import subprocess
import sys
import time

import pytest

from dpfpl_client.agent.ledger import file as module
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_common.errors import StateError
from dpfpl_common.privacy.accounting import PrivacyEvent

pytestmark = pytest.mark.privacy

EVENTS = (PrivacyEvent("recipient", "gaussian", 1.0, 0.05, steps=2),)
HOLD = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def held(path, monkeypatch):
    """A ledger that another process locks for so long; it waits ``wait_s`` for it, None for as long as always."""
    holders = []

    def hold(held_s, wait_s):
        if wait_s is not None:
            monkeypatch.setattr(module, "BUSY_S", wait_s)
        ledger = Ledger(path)
        command = [sys.executable, "-c", HOLD, str(path), str(held_s)]
        holders.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert holders[0].stdout.readline() == "held\n"
        return ledger, holders[0]

    yield hold
    holders[0].wait()
    holders[0].stdout.close()


@pytest.mark.parametrize(
    ("held_s", "wait_s"), [(1.0, 4.0), pytest.param(10.0, None, marks=pytest.mark.long)], ids=["1 s", "10 s"]
)
def test_DR8_a_short_lock_is_waited_for(held, held_s, wait_s):
    ledger, _ = held(held_s, wait_s)
    began = time.monotonic()
    ledger.reserve("a", 1, "d", EVENTS)
    print(f"DR8: held for {held_s:g} s, charged after {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began > 0.5 * held_s
    assert len(ledger.charges()) == 1


@pytest.mark.parametrize(
    ("held_s", "wait_s"), [(2.0, 0.3), pytest.param(60.0, None, marks=pytest.mark.long)], ids=["2 s", "60 s"]
)
def test_DR8_a_long_lock_is_refused_for_the_time_being_and_needs_no_restart(path, held, held_s, wait_s):
    ledger, holder = held(held_s, wait_s)
    began, errors = time.monotonic(), []
    while holder.poll() is None and not ledger.charges():
        try:
            ledger.reserve("a", 1, "d", EVENTS)
        except StateError as error:
            errors.append(error)
    if not ledger.charges():
        ledger.reserve("a", 1, "d", EVENTS)
    print(f"DR8: held for {held_s:g} s, {len(errors)} refusals, charged after {time.monotonic() - began:.1f} s")
    assert len(errors) >= 2
    assert {error.code for error in errors} == {"LEDGER_BUSY"}
    assert all("by itself" in error.advice for error in errors)
    assert len(ledger.charges()) == 1, "a refusal charges nothing"
    ledger.close()
    again = Ledger(path, observe=True)
    assert again.damage() == []
    assert len(again.charges()) == 1
    again.close()
