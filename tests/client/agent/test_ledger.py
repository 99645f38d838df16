"""The ledger: durable before return, never less than what was released, and honest about its own damage."""

import sqlite3
import subprocess
import sys

import pytest

from dpfpl_client.agent.ledger import Ledger
from dpfpl_common.accounting import PrivacyEvent
from dpfpl_common.errors import RefusedError, StateError

pytestmark = pytest.mark.privacy


def event(noise=2.0, steps=4, rate=0.5):
    return PrivacyEvent("prompt_recipient", "per_step", noise, rate, steps)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    opened = Ledger(path)
    yield opened
    opened.close()


def test_a_charge_is_visible_to_others_before_reserve_returns(ledger, path):
    sequence = ledger.reserve("a", 1, "digest", event())
    (row,) = (
        sqlite3.connect(path).execute("SELECT sequence, experiment, round, steps, release_digest FROM charges")
    ).fetchall()
    assert row == (sequence, "a", 1, 4, "")
    ledger.commit(sequence, "release")
    assert sqlite3.connect(path).execute("SELECT release_digest FROM charges").fetchall() == [("release",)]


def test_every_write_reaches_the_disk(ledger):
    assert ledger._database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert ledger._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not ledger._database.in_transaction
    ledger.reserve("a", 1, "digest", event())
    assert not ledger._database.in_transaction


def test_a_killed_process_leaves_its_charge(path):
    program = (
        "import os, signal, sys; from pathlib import Path; from dpfpl_client.agent.ledger import Ledger;"
        "from dpfpl_common.accounting import PrivacyEvent;"
        "Ledger(Path(sys.argv[1])).reserve('a', 1, 'd', PrivacyEvent('prompt_recipient', 'per_step', 2.0, 0.5, 4));"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60, check=False)
    assert ended.returncode == -9
    assert Ledger(path).events() == [event()]


def test_charges_outlive_the_connection(path):
    first = Ledger(path)
    first.reserve("a", 3, "digest", event())
    first.close()
    again = Ledger(path)
    (charge,) = again.charges()
    assert (charge.experiment, charge.round, charge.request_digest, charge.event) == ("a", 3, "digest", event())
    assert again.last_round("a") == 3


def test_equal_events_add_up_and_others_stay_apart(ledger):
    for number in (1, 2, 3):
        ledger.reserve("a", number, "d", event())
    ledger.reserve("a", 4, "d", event(noise=3.0))
    ledger.reserve("b", 1, "d", event(steps=10))
    assert ledger.events("a") == [event(steps=12), event(noise=3.0)]
    assert ledger.events("b") == ledger.events_of_others("a") == [event(steps=10)]
    assert ledger.events() == [event(steps=22), event(noise=3.0)]
    assert ledger.events_of_others("c") == ledger.events()
    assert ledger.events("c") == []


def test_the_latest_charge_of_a_round_is_found(ledger):
    first, second = (ledger.reserve("a", 1, "d", event()) for _ in range(2))
    assert second > first
    assert ledger.find("a", 1).sequence == second
    assert ledger.find("a", 2) is ledger.find("b", 1) is None
    assert (ledger.last_round("a"), ledger.last_round("b")) == (1, 0)


def test_a_name_is_bound_to_its_first_configuration_for_good(ledger, path):
    ledger.bind("a", "one")
    ledger.bind("a", "one")
    ledger.bind("b", "two")
    for again in (ledger, Ledger(path)):
        with pytest.raises(RefusedError, match="EXPERIMENT_CHANGED"):
            again.bind("a", "two")


def test_a_sound_file_shows_no_damage(ledger):
    ledger.reserve("a", 1, "d", event())
    assert ledger.damage() == []


def test_damage_is_found_and_nothing_is_read_from_it(path):
    ledger = Ledger(path)
    for number in range(1, 200):
        ledger.reserve("a", number, "d" * 64, event())
    ledger.close()
    content = bytearray(path.read_bytes())
    content[4096 * 2 : 4096 * 4] = b"\x00" * 4096 * 2
    path.write_bytes(content)
    damaged = Ledger(path)
    assert damaged.damage()
    with pytest.raises(StateError, match="LEDGER_UNREADABLE"):
        damaged.events()


@pytest.mark.parametrize("content", [b"no database at all" * 300, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_ledger_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(StateError) as error:
        Ledger(path)
    assert error.value.code == "LEDGER_UNREADABLE"
    assert error.value.advice


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(StateError, match="LEDGER_UNREADABLE"):
        Ledger(tmp_path / "nowhere" / "ledger.sqlite")


def test_a_charge_that_cannot_be_written_is_an_error(ledger):
    ledger._database.execute("PRAGMA query_only=ON")
    with pytest.raises(StateError, match="LEDGER_UNREADABLE"):
        ledger.reserve("a", 1, "d", event())


def test_in_memory_it_charges_alike_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ledger = Ledger(None)
    ledger.bind("a", "one")
    ledger.commit(ledger.reserve("a", 1, "d", event()), "r")
    assert ledger.events("a") == [event()]
    assert ledger.find("a", 1).release_digest == "r"
    assert Ledger(None).charges() == []
    assert list(tmp_path.iterdir()) == []
