"""The ledger: durable before return, never less than what was released, and honest about its own damage."""

import sqlite3
import subprocess
import sys

import pytest
from failures import refused

from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_common.errors import StateError
from dpfpl_common.privacy.accounting import PrivacyEvent

pytestmark = pytest.mark.privacy


def event(noise=2.0, steps=4, rate=0.5, adversary="prompt_recipient"):
    return PrivacyEvent(adversary, "per_step", noise, rate, steps)


def events(noise=2.0, steps=4, rate=0.5):
    """What a charge tells each adversary; the operator sees less noise."""
    recipients = [event(noise, steps, rate, adversary) for adversary in ("prompt_recipient", "other_site")]
    return (*recipients, event(noise / 2, steps, rate, "operator"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    opened = Ledger(path)
    yield opened
    opened.close()


def test_a_charge_is_visible_to_others_before_reserve_returns(ledger, path):
    sequence = ledger.reserve("a", 1, "digest", events())
    other = sqlite3.connect(path)
    assert other.execute("SELECT sequence, experiment, round FROM charges").fetchall() == [(sequence, "a", 1)]
    ledger.commit(sequence, "release")
    query = "SELECT content ->> 'release' FROM records WHERE content ->> 'reserve' = ?"
    assert other.execute(query, (sequence,)).fetchall() == [("release",)]


def test_every_write_reaches_the_disk(ledger):
    database = ledger._file._database
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not database.in_transaction
    ledger.reserve("a", 1, "digest", events())
    assert not database.in_transaction


def test_a_killed_process_leaves_its_charge(path):
    program = (
        "import os, signal, sys; from pathlib import Path; from dpfpl_client.agent.ledger.book import Ledger;"
        "from dpfpl_common.privacy.accounting import PrivacyEvent;"
        "Ledger(Path(sys.argv[1])).reserve('a', 1, 'd', [PrivacyEvent('prompt_recipient', 'per_step', 2.0, 0.5, 4)]);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60, check=False)
    assert ended.returncode == -9
    assert Ledger(path).events() == [event()]


def test_charges_outlive_the_connection(path):
    first = Ledger(path)
    first.reserve("a", 3, "digest", events())
    first.close()
    again = Ledger(path)
    (charge,) = again.charges()
    assert (charge.experiment, charge.round, charge.request_digest, charge.events) == ("a", 3, "digest", events())
    assert again.last_round("a") == 3


def test_equal_events_add_up_and_others_stay_apart(ledger):
    for number in (1, 2, 3):
        ledger.reserve("a", number, "d", events())
    ledger.reserve("a", 4, "d", events(noise=3.0))
    ledger.reserve("b", 1, "d", events(steps=10))
    assert ledger.events("a") == [event(steps=12), event(noise=3.0)]
    assert ledger.events("b") == ledger.events_of_others("a") == [event(steps=10)]
    assert ledger.events() == [event(steps=22), event(noise=3.0)]
    assert ledger.events_of_others("c") == ledger.events()
    assert ledger.events("c") == []


def test_the_latest_charge_of_a_round_is_found(ledger):
    first, second = (ledger.reserve("a", 1, "d", events()) for _ in range(2))
    assert second > first
    assert ledger.find("a", 1).sequence == second
    assert ledger.find("a", 2) is ledger.find("b", 1) is None
    assert (ledger.last_round("a"), ledger.last_round("b")) == (1, 0)


def test_a_name_is_bound_to_its_first_configuration_for_good(ledger, path):
    ledger.bind("a", "one")
    ledger.bind("a", "one")
    ledger.bind("b", "two")
    for again in (ledger, Ledger(path)):
        refused("EXPERIMENT_CHANGED", again.bind, "a", "two")


def test_a_sound_file_shows_no_damage(ledger):
    ledger.reserve("a", 1, "d", events())
    assert ledger.damage() == []


def test_damage_is_found_and_nothing_is_read_from_it(path):
    ledger = Ledger(path)
    for number in range(1, 200):
        ledger.reserve("a", number, "d" * 64, events())
    ledger.close()
    content = bytearray(path.read_bytes())
    content[4096 * 2 : 4096 * 4] = b"\x00" * 4096 * 2
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"LEDGER_(UNREADABLE|DAMAGED)"):
        Ledger(path)


@pytest.mark.parametrize("content", [b"no database at all" * 300, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_ledger_is_refused(path, content):
    path.write_bytes(content)
    refused("LEDGER_UNREADABLE", Ledger, path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    refused("LEDGER_UNREADABLE", Ledger, tmp_path / "nowhere" / "ledger.sqlite")


def test_a_charge_that_cannot_be_written_is_an_error(ledger, path):
    database = ledger._file._database
    for only_read in ("ON", "OFF"):  # what is on the disk is unknown until a restart
        database.execute(f"PRAGMA query_only={only_read}")
        refused("LEDGER_NOT_DURABLE", ledger.reserve, "a", 1, "d", events())
    assert ledger.charges() == Ledger(path).charges() == []


def test_in_memory_it_charges_alike_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ledger = Ledger(None)
    ledger.bind("a", "one")
    ledger.commit(ledger.reserve("a", 1, "d", events()), "r")
    assert ledger.events("a") == [event()]
    assert ledger.find("a", 1).release_digest == "r"
    assert Ledger(None).charges() == []
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_counts_whole_is_kept_for_every_adversary_and_never_shrinks():
    def planned(adversary, steps):
        return PrivacyEvent(adversary, "per_step", 1.0, 0.5, steps)

    ledger = Ledger(None)
    ledger.reserve("a", 1, "d", [planned("operator", 1), planned("other_site", 1)], [planned("operator", 9)])
    ledger.reserve("a", 2, "d", [planned("operator", 1)], [planned("operator", 4), planned("other_site", 5)])
    counted = [ledger.events_of_others("b", who)[0].steps for who in ("operator", "other_site")]
    assert counted == [9, 5]
    assert [event.steps for event in ledger.events("a", "operator")] == [2]
