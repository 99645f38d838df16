"""DR8: another program, such as a backup, holds the ledger: waited for, then refused for the time being."""

import subprocess
import sys
import time

import pytest

from dpfpl_client.agent.ledger import file as module
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_common.errors import StateError
from dpfpl_common.privacy.accounting import PrivacyEvent

HOLD = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""
EVENTS = (PrivacyEvent("recipient", "gaussian", 1.0, 0.05, steps=2),)


def hold(path, seconds):
    """Another process that locks the ledger for so long."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "ledger.sqlite")
    made.bind("a", "d")
    yield made
    made.close()


@pytest.mark.privacy
@pytest.mark.parametrize(
    ("held_s", "wait_s"), [(1.0, 4.0), pytest.param(10.0, None, marks=pytest.mark.long)], ids=["1 s", "10 s"]
)
def test_DR8_a_short_lock_is_waited_for(tmp_path, monkeypatch, held_s, wait_s):
    if wait_s is not None:
        monkeypatch.setattr(module, "BUSY_S", wait_s)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.bind("a", "d")
    process, began = hold(tmp_path / "ledger.sqlite", held_s), time.monotonic()
    ledger.reserve("a", 1, "r", EVENTS)
    print(f"DR8: held for {held_s:g} s, charged after {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began > 0.5 * held_s
    assert len(ledger.charges()) == 1
    process.wait()
    process.stdout.close()
    ledger.close()


@pytest.mark.privacy
@pytest.mark.parametrize(
    ("held_s", "wait_s"), [(4.0, 0.5), pytest.param(60.0, None, marks=pytest.mark.long)], ids=["4 s", "60 s"]
)
def test_DR8_a_long_lock_is_refused_for_the_time_being_and_needs_no_restart(tmp_path, monkeypatch, held_s, wait_s):
    if wait_s is not None:
        monkeypatch.setattr(module, "BUSY_S", wait_s)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.bind("a", "d")
    process, began, refused = hold(tmp_path / "ledger.sqlite", held_s), time.monotonic(), []
    while process.poll() is None:
        try:
            ledger.reserve("a", 1, "r", EVENTS)
        except StateError as error:
            refused.append(error)
        else:
            break
    process.wait()
    process.stdout.close()
    if not ledger.charges():
        ledger.reserve("a", 1, "r", EVENTS)
    print(
        f"DR8: held for {held_s:g} s, {len(refused)} refusals, charged {time.monotonic() - began:.1f} s after its begin"
    )
    assert len(refused) >= 2
    assert {error.code for error in refused} == {"LEDGER_BUSY"}
    assert all("by itself" in error.advice for error in refused)
    assert len(ledger.charges()) == 1, "a refusal charges nothing"
    ledger.close()
    again = Ledger(tmp_path / "ledger.sqlite", observe=True)
    assert again.damage() == []
    assert len(again.charges()) == 1
    again.close()


def test_DR8_it_is_the_lock_that_is_borne_and_nothing_else(ledger):
    """A write that failed for another reason still ends all writing (F9)."""
    ledger._file._database.execute("PRAGMA query_only=ON")
    with pytest.raises(StateError) as caught:
        ledger.reserve("a", 1, "r", EVENTS)
    assert caught.value.code == "LEDGER_NOT_DURABLE"
