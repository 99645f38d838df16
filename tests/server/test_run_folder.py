"""What a run leaves on disk comes back as it was, or is refused."""

import json

import numpy as np
import pytest

from dpfpl_common.errors import ConfigError, StateError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.optimizer import OptimizerState
from dpfpl_server.run_folder import Checkpoint, RunFolder


def make_experiment(rounds=3):
    return Experiment(
        name="pilot",
        classes=("cat", "dög"),
        sites=("north", "south"),
        model=ModelSettings(width=8),
        privacy=PrivacySettings(noise_multiplier=1.0),
        rounds=RoundSettings(number=rounds),
    )


def make_checkpoint(number=2):
    rng = np.random.default_rng(number)
    return Checkpoint(
        round=number,
        global_context=rng.normal(size=(4, 8)).astype("<f4"),
        optimizer=OptimizerState(rng.normal(size=(4, 8)), rng.normal(size=(4, 8)) ** 2, number),
        history=tuple({"round": k, "dropped": {"south": "NO_REPLY: é"}, "metrics": {}} for k in range(1, number + 1)),
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
    assert sorted(p.name for p in folder.path.iterdir()) == ["checkpoint.npz", "experiment.json"]


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


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1]"])
def test_a_damaged_experiment_is_our_own_error(folder, content):
    (folder.path / "experiment.json").write_bytes(content)
    with pytest.raises((ConfigError, StateError)):
        folder.experiment()


def test_every_truncation_of_a_checkpoint_is_refused(folder):
    folder.save_checkpoint(make_checkpoint())
    file = folder.path / "checkpoint.npz"
    whole = file.read_bytes()
    for length in [0, 1, 3, 4, 21, 22, *range(30, len(whole), 97), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(StateError) as caught:
            folder.load_checkpoint()
        assert caught.value.code == "CHECKPOINT_DAMAGED"


def test_a_flipped_byte_is_refused_or_harmless(folder):
    folder.save_checkpoint(make_checkpoint())
    file = folder.path / "checkpoint.npz"
    whole = file.read_bytes()
    refused = 0
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        file.write_bytes(damaged)
        try:
            assert_same(folder.load_checkpoint(), make_checkpoint())
        except StateError:
            refused += 1
    assert refused > len(whole) / 7 / 2


@pytest.mark.parametrize("save", [np.save, lambda f, a: np.savez(f, round=a), lambda f, a: np.savez(f, other=1)])
def test_another_kind_of_file_is_refused(folder, save):
    with (folder.path / "checkpoint.npz").open("wb") as file:
        save(file, np.zeros((2, 2)))
    with pytest.raises(StateError):
        folder.load_checkpoint()


def test_a_pickle_in_a_checkpoint_is_never_loaded(folder):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    good = make_checkpoint()
    with (folder.path / "checkpoint.npz").open("wb") as file:
        np.savez(
            file,
            round=np.int64(1),
            global_context=np.array([Bomb()], dtype=object),
            first=good.optimizer.first,
            second=good.optimizer.second,
            steps=np.int64(1),
            history=np.frombuffer(b"[]", dtype=np.uint8),
        )
    with pytest.raises(StateError):
        folder.load_checkpoint()


def test_events_come_back_in_order_from_where_the_reader_was(folder):
    assert folder.events() == []
    for number in range(4):
        folder.add_event({"phase": "ROUND_DONE", "round": number, "text": "a\nb\u2028c"})

    assert [event["round"] for event in folder.events()] == [0, 1, 2, 3]
    assert [event["round"] for event in folder.events(3)] == [3]
    assert folder.events(4) == []
    assert folder.events()[0]["text"] == "a\nb\u2028c"
    assert folder.events()[0]["at"] > 1.7e9


def test_a_line_still_being_written_is_left_for_later(folder):
    folder.add_event({"phase": "ONE"})
    line = json.dumps({"phase": "TWO"}) + "\n"
    file = folder.path / "events.jsonl"
    for cut in (1, 5, len(line) - 1):
        before = file.read_text()
        file.write_text(before + line[:cut])
        assert [event["phase"] for event in folder.events()] == ["ONE"]
        assert folder.events(1) == []
        file.write_text(before)
    file.write_text(file.read_text() + line)
    assert [event["phase"] for event in folder.events(1)] == ["TWO"]


def test_a_line_that_a_killed_server_left_half_does_not_hide_the_others(folder):
    folder.add_event({"phase": "ONE"})
    with (folder.path / "events.jsonl").open("a") as file:
        file.write('{"phase": "TW')  # killed here; the resumed run writes on behind it
    folder.add_event({"phase": "THREE"})
    folder.add_event({"phase": "FOUR"})

    phases = [event["phase"] for event in folder.events()]

    assert phases[0] == "ONE"
    assert phases[-1] == "FOUR"
    assert [event["phase"] for event in folder.events(len(phases) - 1)] == ["FOUR"]


def test_json_files_come_back_and_missing_ones_are_none(folder):
    assert folder.read_json("final.json") is None
    folder.write_json("final.json", {"north": {"personal_local": 0.5}})
    assert folder.read_json("final.json") == {"north": {"personal_local": 0.5}}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_json_file_is_our_own_error(folder, content):
    (folder.path / "sites.json").write_bytes(content)
    with pytest.raises(StateError) as caught:
        folder.read_json("sites.json")
    assert caught.value.code == "RUN_DAMAGED"
