"""What a run leaves on disk comes back as it was, or is refused."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import time

import numpy as np
import pytest
import server_samples

from dpfpl_common.errors import ConfigError, StateError
from dpfpl_common.optimizer import OptimizerState
from dpfpl_server.runs.folder import Checkpoint, RunFolder


def make_experiment(rounds=3):
    return server_samples.make_experiment(classes=("cat", "dög"), rounds={"number": rounds})


def make_checkpoint(number=2):
    rng = np.random.default_rng(number)
    return Checkpoint(
        round=number,
        global_context=rng.normal(size=(4, 8)).astype("<f4"),
        optimizer=OptimizerState(rng.normal(size=(4, 8)), rng.normal(size=(4, 8)) ** 2, number),
        history=tuple(
            {"round": k, "dropped": {"south": "NO_REPLY: é"}, "codes": {"south": "NO_REPLY"}, "metrics": {}}
            for k in range(1, number + 1)
        ),
    )


def assert_same(one, other):
    assert (one.round, one.history, one.optimizer.steps) == (other.round, other.history, other.optimizer.steps)
    for a, b in [
        (one.global_context, other.global_context),
        (one.optimizer.first, other.optimizer.first),
        (one.optimizer.second, other.optimizer.second),
    ]:
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "pilot")
    folder.begin(make_experiment())
    return folder


def test_a_checkpoint_comes_back_as_it_was(folder):
    assert folder.load_checkpoint() is None
    for number in (1, 2):
        folder.save_checkpoint(make_checkpoint(number))
        assert_same(folder.load_checkpoint(), make_checkpoint(number))
    assert {"experiment.json", "run.sqlite"} <= {p.name for p in folder.path.iterdir()}


def test_the_experiment_comes_back_and_beginning_again_changes_nothing(folder):
    before = (folder.path / "experiment.json").read_bytes()

    folder.begin(make_experiment())

    assert folder.experiment() == make_experiment()
    assert (folder.path / "experiment.json").read_bytes() == before


def test_another_configuration_is_refused(folder):
    with pytest.raises(StateError) as caught:
        folder.begin(make_experiment(rounds=4))
    assert caught.value.code == "OTHER_EXPERIMENT"
    assert folder.experiment() == make_experiment()


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(StateError) as caught:
        RunFolder(tmp_path / "nothing").experiment()
    assert caught.value.code == "NO_RUN"


def test_a_run_that_cannot_be_read_is_not_said_to_be_missing(tmp_path):
    (tmp_path / "run" / "experiment.json").mkdir(parents=True)  # for root, who may read everything
    with pytest.raises(StateError, match="Is a directory") as caught:
        RunFolder(tmp_path / "run").experiment()
    assert caught.value.code == "RUN_UNREADABLE"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1]"])
def test_a_damaged_experiment_is_our_own_error(folder, content):
    (folder.path / "experiment.json").write_bytes(content)
    with pytest.raises((ConfigError, StateError)):
        folder.experiment()


def test_L2_the_checkpoint_says_what_was_spent_and_by_which_configuration(folder):
    folder.save_checkpoint(make_checkpoint())
    (row,) = sqlite3.connect(folder.path / "run.sqlite").execute("SELECT * FROM checkpoint").fetchall()
    _, number, configuration, *_, events, digest = row
    assert (number, configuration) == (2, make_experiment().digest())
    assert {event["adversary"] for event in json.loads(events)} == {"prompt_recipient", "other_site", "operator"}
    assert {event["steps"] for event in json.loads(events)} == {2 * make_experiment().rounds.local_steps}
    assert len(digest) == 64


DAMAGE = {
    "context": "UPDATE checkpoint SET context = zeroblob(length(context))",
    "shorter context": "UPDATE checkpoint SET context = substr(context, 1, 4)",
    "moment": "UPDATE checkpoint SET second = first",
    "steps": "UPDATE checkpoint SET steps = steps + 1",
    "round": "UPDATE checkpoint SET round = 1",
    "events": "UPDATE checkpoint SET events = '[]'",
    "no json": "UPDATE checkpoint SET events = 'x'",
    "digest": "UPDATE checkpoint SET sha256 = 'x'",
    "lost round": "DELETE FROM rounds WHERE number = 1",
    "other entry": """UPDATE rounds SET entry = '{"round": 1, "dropped": {}, "metrics": {}}' WHERE number = 1""",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_L2_a_checkpoint_that_is_not_what_was_saved_is_refused(folder, what):
    folder.save_checkpoint(make_checkpoint())
    with sqlite3.connect(folder.path / "run.sqlite") as database:
        database.execute(DAMAGE[what])
    with pytest.raises(StateError) as caught:
        folder.load_checkpoint()
    assert caught.value.code == "CHECKPOINT_DAMAGED"
    assert caught.value.advice


def test_a_checkpoint_of_another_configuration_is_refused(folder, tmp_path):
    folder.save_checkpoint(make_checkpoint())
    other = RunFolder(tmp_path / "other")
    other.begin(make_experiment(rounds=4))
    folder.store.close()
    shutil.copy(folder.path / "run.sqlite", other.path / "run.sqlite")
    with pytest.raises(StateError) as caught:
        other.load_checkpoint()
    assert caught.value.code == "OTHER_EXPERIMENT"


@pytest.mark.parametrize("content", [b"", b"rubbish" * 1000, None])
def test_another_kind_of_file_is_our_own_error_or_empty(folder, content):
    folder.save_checkpoint(make_checkpoint())
    folder.store.close()
    file = folder.path / "run.sqlite"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with contextlib.suppress(OSError):
        (folder.path / "run.sqlite-wal").unlink()
    if content == b"":  # SQLite takes it for a new file
        assert RunFolder(folder.path).load_checkpoint() is None
        return
    with pytest.raises(StateError) as caught:
        RunFolder(folder.path).load_checkpoint()
    assert caught.value.code in ("RUN_DAMAGED", "CHECKPOINT_DAMAGED")


def test_a_later_format_is_refused(folder):
    folder.add_event({"phase": "ONE"})
    folder.store.close()
    with sqlite3.connect(folder.path / "run.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(StateError) as caught:
        RunFolder(folder.path).events()
    assert caught.value.code == "RUN_VERSION"


@pytest.mark.parametrize("after_ms", [2, 5, 9, 14, 20, 30, 45, 70, 100, 150])
def test_L2_a_server_killed_while_saving_leaves_a_whole_checkpoint(folder, after_ms):
    """The last one that was acknowledged, or the next one, never a mixture."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        own = RunFolder(folder.path)
        for number in range(1, 100_000):
            own.save_checkpoint(make_checkpoint(number))
            os.write(writer, b".")
    time.sleep(after_ms / 1000)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        acknowledged = len(pipe.read())
    found = RunFolder(folder.path).load_checkpoint()
    if found is None:
        assert acknowledged == 0
        return
    assert found.round in (acknowledged, acknowledged + 1)
    assert_same(found, make_checkpoint(found.round))


def test_L2_a_completed_round_is_synced_to_the_disk_and_an_event_need_not_be(folder):
    full, normal = 2, 1
    folder.save_checkpoint(make_checkpoint())
    assert folder.store._rows("PRAGMA synchronous") == [(full,)]
    folder.add_event({"phase": "ONE"})
    assert folder.store._rows("PRAGMA synchronous") == [(normal,)]


def test_L2_a_round_and_its_drops_appear_together(folder):
    folder.save_checkpoint(make_checkpoint())
    assert [(d["round"], d["site"], d["code"]) for d in folder.store.drops()] == [
        (1, "south", "NO_REPLY"),
        (2, "south", "NO_REPLY"),
    ]
    assert [entry["round"] for entry in folder.store.rounds()] == [1, 2]


def test_looking_at_a_run_leaves_nothing_behind(folder):
    before = sorted(p.name for p in folder.path.iterdir())
    assert folder.load_checkpoint() is None
    assert folder.events() == []
    assert folder.store.attempts() == []
    assert folder.store.fact("final") is None
    assert (folder.server_life().alive, folder.supervisor_life().age_s) == (False, None)
    assert sorted(p.name for p in folder.path.iterdir()) == before


def test_events_come_back_in_order_from_where_the_reader_was(folder):
    assert folder.events() == []
    for number in range(4):
        folder.add_event({"phase": "ROUND_DONE", "round": number, "text": "a\nb\u2028c"})

    assert [event["round"] for event in folder.events()] == [0, 1, 2, 3]
    assert [event["round"] for event in folder.events(3)] == [3]
    assert folder.events(4) == []
    assert folder.events()[0]["text"] == "a\nb\u2028c"
    assert folder.events()[0]["at"] > 1.7e9


def test_another_process_reads_while_this_one_writes(folder):
    writer, reader = RunFolder(folder.path), RunFolder(folder.path)
    for number in (1, 2, 3):
        writer.save_checkpoint(make_checkpoint(number))
        writer.add_event({"phase": "ROUND_DONE", "round": number})
        assert reader.load_checkpoint().round == number
        assert len(reader.events()) == number


def test_abandoned_rounds_keep_their_drops(folder):
    folder.add_event(
        {
            "phase": "ROUND_ABANDONED",
            "round": 3,
            "attempt": 2,
            "dropped": {"north": "NO_REPLY: late"},
            "codes": {"north": "NO_REPLY"},
        }
    )
    assert folder.store.drops() == [
        {"round": 3, "attempt": 2, "site": "north", "code": "NO_REPLY", "reason": "NO_REPLY: late"}
    ]


def test_json_files_come_back_and_missing_ones_are_none(folder):
    assert folder.read_json("other.json") is None
    folder.write_json("other.json", {"north": {"personal_local": 0.5}})
    assert folder.read_json("other.json") == {"north": {"personal_local": 0.5}}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_json_file_is_our_own_error(folder, content):
    (folder.path / "sites.json").write_bytes(content)
    with pytest.raises(StateError) as caught:
        folder.read_json("sites.json")
    assert caught.value.code == "RUN_DAMAGED"
