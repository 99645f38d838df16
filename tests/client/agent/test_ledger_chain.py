"""Nobody changes the ledger unnoticed, and no old copy of it is used: F11, F12, F13, F14, O3."""

import json
import shutil
import sqlite3

import pytest
from failures import refused

from dpfpl_client.agent.ledger.anchor import Registry
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.ledger.file import SCHEMA_VERSION
from dpfpl_common.errors import StateError
from dpfpl_common.privacy.accounting import PrivacyEvent, epsilon

pytestmark = pytest.mark.privacy

ADVERSARIES = ("prompt_recipient", "other_site", "operator")


def events(steps=1):
    return [PrivacyEvent(adversary, "per_step", 2.0, 0.5, steps) for adversary in ADVERSARIES]


def charge(ledger, *rounds, experiment="pilot"):
    for number in rounds:
        ledger.commit(ledger.reserve(experiment, number, f"request {number}", events()), f"release {number}")


class Place:
    """A ledger's file and its registry."""

    def __init__(self, folder):
        self.folder = folder
        self.path, self.registry = folder / "state" / "ledger.sqlite", Registry(folder / "registry")
        self.path.parent.mkdir()

    def open(self):
        return Ledger(self.path, self.registry)

    def with_rounds(self, *rounds):
        ledger = self.open()
        charge(ledger, *rounds)
        ledger.close()
        return self

    def spent(self):
        ledger = Ledger(self.path, self.registry, observe=True)
        try:
            return epsilon(ledger.events(), 1e-5)
        finally:
            ledger.close()

    def copy_state(self, name):
        shutil.copytree(self.path.parent, self.folder / name)

    def restore_state(self, name):
        shutil.rmtree(self.path.parent)
        shutil.copytree(self.folder / name, self.path.parent)

    def edit(self, *statements):
        """As somebody with a database program would, who knows how to get rid of the triggers."""
        database = sqlite3.connect(self.path)
        for trigger in ("never_changed", "never_removed"):
            database.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            database.execute(statement)
        database.commit()
        database.close()


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


# F11: a changed, removed or exchanged record


SWAP = (
    "UPDATE records SET sequence = -1 WHERE sequence = 4",
    "UPDATE records SET sequence = 4 WHERE sequence = 6",
    "UPDATE records SET sequence = 6 WHERE sequence = -1",
)
TAMPERED = {
    "one_letter": (["UPDATE records SET content = replace(content, 'request 2', 'request 3') WHERE sequence = 4"], 4),
    "fewer_steps": (["UPDATE records SET content = replace(content, 'g\",1]', 'g\",0]') WHERE sequence = 4"], 4),
    "hash": (["UPDATE records SET hash = replace(hash, substr(hash, 1, 1), 'g') WHERE sequence = 5"], 5),
    "first_removed": (["DELETE FROM records WHERE sequence = 1"], 1),
    "middle_removed": (["DELETE FROM records WHERE sequence = 4"], 4),
    "middle_removed_and_closed_up": (
        ["DELETE FROM records WHERE sequence = 4", "UPDATE records SET sequence = sequence - 1 WHERE sequence > 4"],
        4,
    ),
    "exchanged": (SWAP, 4),
    "inserted": (["UPDATE records SET sequence = 8 WHERE sequence = 7", "INSERT INTO records VALUES (7, '{}', '')"], 7),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_F11_a_tampered_record_is_named_and_the_ledger_not_used(place, how):
    statements, record = TAMPERED[how]
    place.with_rounds(1, 2, 3).edit(*statements)
    assert f"Record {record} " in refused("LEDGER_DAMAGED", Ledger, place.path, place.registry).message


@pytest.mark.parametrize("count", [1, 2, 6])
def test_F11_records_removed_at_the_end_are_named(place, count):
    place.with_rounds(1, 2, 3).edit(f"DELETE FROM records WHERE sequence > {7 - count}")
    message = refused("LEDGER_ROLLED_BACK", Ledger, place.path, place.registry).message
    assert f"records {8 - count} to 7" in message


def test_F11_every_flipped_byte_of_a_record_is_found(place):
    """Bytes of the file's free space and of SQLite's own header are not the ledger's."""
    place.with_rounds(1, 2)
    content = place.path.read_bytes()
    start = content.index(b'{"at"')
    end = content.rindex(b"}")
    found = 0
    for position in range(start, end, 5):
        damaged = bytearray(content)
        damaged[position] ^= 0x01
        for file in place.path.parent.glob("ledger.sqlite-*"):
            file.unlink()
        place.path.write_bytes(damaged)
        with pytest.raises(StateError) as error:
            place.open()
        assert error.value.code in ("LEDGER_DAMAGED", "LEDGER_UNREADABLE", "ANCHOR_MISSING")
        found += 1
    assert found > 100


def test_F11_records_can_not_be_changed_or_removed_by_mistake(place):
    place.with_rounds(1)
    database = sqlite3.connect(place.path)
    for statement in ("DELETE FROM records", "UPDATE records SET content = '{}'"):
        with pytest.raises(sqlite3.DatabaseError, match="only added"):
            database.execute(statement)


# F12: an old copy put back


def test_F12_an_old_copy_of_the_state_folder_is_refused(place):
    place.with_rounds(1).copy_state("yesterday")
    place.with_rounds(2, 3).restore_state("yesterday")
    assert "records 4 to 7" in refused("LEDGER_ROLLED_BACK", Ledger, place.path, place.registry).message


def test_F12_a_copy_that_went_on_by_itself_is_refused(place, tmp_path):
    place.with_rounds(1).copy_state("clone")
    place.with_rounds(2)
    clone = tmp_path / "clone" / "ledger.sqlite"
    refused("LEDGER_ROLLED_BACK", Ledger, clone, place.registry)
    alone = Ledger(clone)  # as on another machine, without this registry
    charge(alone, 2, 3)
    alone.close()
    assert "record 5" in refused("LEDGER_ROLLED_BACK", Ledger, clone, place.registry).message
    place.open().close()


def test_F12_a_ledger_that_nothing_remembers_is_refused_unless_it_is_empty(place):
    place.open().close()
    shutil.rmtree(place.registry.folder)
    place.with_rounds(1)
    shutil.rmtree(place.registry.folder)
    refused("ANCHOR_MISSING", Ledger, place.path, place.registry)


def test_F12_accepting_an_old_copy_charges_what_was_spent_since(place):
    place.with_rounds(1).copy_state("yesterday")
    before = place.with_rounds(2, 3).spent()
    place.restore_state("yesterday")
    charged = Ledger.accept_rollback(place.path, place.registry)
    assert charged["pilot"].last_round == 3
    assert sorted(charged["pilot"].events, key=str) == sorted(events(2), key=str)
    assert place.spent() == before
    ledger = place.open()
    assert ledger.last_round("pilot") == 3  # so that round 3, whose answer is lost, cannot be asked for again
    assert ledger.find("pilot", 3).request_digest == ""
    charge(ledger, 4)
    ledger.close()
    assert place.spent() > before
    assert Ledger.accept_rollback(place.path, place.registry) == {}


def test_F12_of_a_copy_that_went_on_nothing_counts_as_known(place, tmp_path):
    place.with_rounds(1).copy_state("clone")
    place.with_rounds(2)
    clone = tmp_path / "clone" / "ledger.sqlite"
    alone = Ledger(clone)
    charge(alone, 2, 3)
    alone.close()
    charged = Ledger.accept_rollback(clone, place.registry)
    assert sorted(charged["pilot"].events, key=str) == sorted(events(2), key=str)
    accepted = Ledger(clone, place.registry)
    assert [event.steps for event in accepted.events()] == [5]
    refused("LEDGER_ROLLED_BACK", Ledger, place.path, place.registry)  # now the other one is the old copy


def test_F12_a_lost_ledger_is_made_anew_with_its_whole_spend(place):
    before = place.with_rounds(1, 2).spent()
    ledger = place.open()
    identity = ledger.identity
    ledger.close()
    shutil.rmtree(place.path.parent)
    place.path.parent.mkdir()
    Ledger.accept_rollback(place.path, place.registry, identity=identity)
    assert place.spent() == before


@pytest.mark.parametrize("nothing_lost", [False, True])
def test_F12_without_an_anchor_all_counts_as_spent_unless_the_administrator_says_otherwise(place, nothing_lost):
    before = place.with_rounds(1).spent()
    shutil.rmtree(place.registry.folder)
    Ledger.accept_rollback(place.path, place.registry, nothing_lost=nothing_lost)
    assert place.spent() == (before if nothing_lost else float("inf"))


def test_F12_the_word_of_the_administrator_is_not_heard_against_the_anchor(place):
    place.with_rounds(1).copy_state("yesterday")
    before = place.with_rounds(2).spent()
    place.restore_state("yesterday")
    Ledger.accept_rollback(place.path, place.registry, nothing_lost=True)
    assert place.spent() == before


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"sequence": 1}', b"\xff"])
def test_F12_an_anchor_that_cannot_be_read_is_no_anchor_to_trust(place, content):
    place.with_rounds(1)
    (anchor,) = place.registry.folder.glob("*.anchor.json")
    anchor.write_bytes(content)
    refused("ANCHOR_UNREADABLE", Ledger, place.path, place.registry)


def test_F12_the_anchor_is_durable_before_reserve_returns(place):
    ledger = place.open()
    sequence = ledger.reserve("pilot", 1, "request", events())
    (anchor,) = place.registry.folder.glob("*.anchor.json")
    kept = json.loads(anchor.read_text())
    assert (kept["sequence"], kept["head"]) == (sequence, ledger._file.head)
    anchor.unlink()
    anchor.mkdir()
    with pytest.raises(StateError, match="ANCHOR_UNWRITABLE"):
        ledger.reserve("pilot", 2, "request", events())
    assert len(ledger.charges()) == 2  # charged, and nothing may be released


# O3: another program's ledger


@pytest.mark.parametrize("schema", [1, SCHEMA_VERSION + 1])
def test_O3_this_program_refuses_another_schema(place, schema):
    place.with_rounds(1)
    database = sqlite3.connect(place.path)
    database.execute(f"PRAGMA user_version = {schema}")
    database.commit()
    database.close()
    refused("LEDGER_OTHER_SCHEMA", Ledger, place.path, place.registry)
