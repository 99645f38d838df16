"""Records of rounds: exact, whole or absent, and the same on disk as in memory."""

import dataclasses
import errno
import os
import stat

import numpy as np
import pytest
from safetensors.numpy import load, save

from dpfpl_client.agent.store import Choice, DiskStore, MemoryStore, Record
from dpfpl_client.learning.learner import PersonalState
from dpfpl_common.errors import StateError
from dpfpl_common.optimizer import OptimizerState
from dpfpl_common.wire.payloads import SiteReply

RANDOM = np.random.default_rng(0)


def record(number=1, seed=0):
    rng = np.random.default_rng(seed)
    shape = (4, 8)
    update = rng.normal(size=shape).astype("<f4")
    update[0, :3] = [-0.0, 1e-45, 3e38]
    state = PersonalState(
        rng.normal(size=shape) * 1e-9, OptimizerState(rng.normal(size=shape), rng.normal(size=shape) ** 2, 17)
    )
    reply = SiteReply("north", number, update, {"personal_local": 1 / 3, "zero_shot_neighbour": 0.1})
    return Record("f" * 64, reply, rng.normal(size=shape).astype("<f4"), state)


def arrays(kept):
    state = kept.state
    return (kept.reply.update, kept.global_context, state.context, state.optimizer.first, state.optimizer.second)


def assert_same(kept, expected):
    for one, other in zip(arrays(kept), arrays(expected), strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    assert (kept.request_digest, kept.reply.site, kept.reply.round) == ("f" * 64, "north", expected.reply.round)
    assert kept.reply.metrics == expected.reply.metrics
    assert kept.state.optimizer.steps == 17


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    return DiskStore(tmp_path) if request.param == "disk" else MemoryStore()


def test_a_record_comes_back_exactly():
    kept = Record.from_bytes(record().to_bytes())
    assert_same(kept, record())
    assert kept.to_bytes() == record().to_bytes()
    assert kept.digest() == record().digest() != record(seed=1).digest()


def test_what_a_method_trains_beside_the_context_is_kept_and_older_records_have_none():
    made = record()
    assert b"personal_parameters" not in made.to_bytes(), "as written by earlier versions"
    assert Record.from_bytes(made.to_bytes()).state.parameters is None
    parameters = np.random.default_rng(3).normal(size=(12, 2))
    state = dataclasses.replace(made.state, parameters=parameters, optimizer=OptimizerState.zeros((12, 2)))
    kept = Record.from_bytes(dataclasses.replace(made, state=state).to_bytes()).state
    assert kept.parameters.tobytes() == parameters.tobytes()
    assert kept.optimizer.first.shape == (12, 2)


def test_contexts_in_another_memory_order_are_kept_too():
    made = record()
    made.state.optimizer.first[:] = 1.0
    turned = PersonalState(np.asfortranarray(made.state.context), made.state.optimizer)
    assert Record(made.request_digest, made.reply, made.global_context, turned).digest() == made.digest()


@pytest.mark.parametrize("own", [None, [0.0], [0.0, 0.5]])
def test_both_stores_give_back_what_a_site_uses(store, own):
    kept = Choice("evidence", np.ones((2, 5), "<f4"), np.array([0.25, 0.75]), None if own is None else np.array(own))
    store.write_final("pilot", record().global_context, kept)
    found = store.read_choice("pilot")
    assert found.chosen == "evidence"
    assert (found.own is None) if own is None else (found.own.tolist() == own)
    np.testing.assert_array_equal(found.pool, kept.pool)
    np.testing.assert_array_equal(found.shares, kept.shares)


@pytest.mark.parametrize(
    "damage",
    [
        {"shares": None},
        {"own": np.zeros(1, bool)},
        {"own": np.zeros((1, 1))},
        {"own": np.zeros(0)},
        {"own": np.zeros(4)},
        {"own": np.full(2, np.nan)},
    ],
)
def test_a_choice_that_lacks_something_is_an_error(tmp_path, damage):
    store = DiskStore(tmp_path)
    store.write_final(
        "pilot", record().global_context, Choice("evidence", np.ones((2, 5), "<f4"), np.ones(2), np.zeros(1))
    )
    path = tmp_path / "experiments/pilot/final.safetensors"
    tensors = {name: value for name, value in (load(path.read_bytes()) | damage).items() if value is not None}
    path.write_bytes(save(tensors))
    with pytest.raises(StateError, match="DAMAGED"):
        store.read_choice("pilot")


@pytest.mark.parametrize("kept_bytes", [0, 4, 8, 40, 200, -1])
def test_a_truncated_record_is_an_error(kept_bytes):
    with pytest.raises(StateError, match="RECORD_DAMAGED"):
        Record.from_bytes(record().to_bytes()[:kept_bytes])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"request_digest", b"request_digesX"),
        (b'"update"', b'"updatX"'),
        (b"0.333", b"7.333"),
        (b"__metadata__", b"__metadatX__"),
        (b"personal_local", b"personal_lokal"),
        (b"record", b"recorX"),
    ],
)
def test_a_damaged_record_is_an_error(old, new):
    content = record().to_bytes()
    assert old in content
    with pytest.raises(StateError, match="RECORD_DAMAGED"):
        Record.from_bytes(content.replace(old, new))


def test_noise_is_no_record():
    for length in (1, 9, 100, 5000):
        with pytest.raises(StateError, match="RECORD_DAMAGED"):
            Record.from_bytes(RANDOM.bytes(length))


def test_both_stores_give_back_the_last_round(store, experiment):
    assert (store.last_round("pilot"), store.read("pilot", 1), store.read_final("pilot")) == (0, None, None)
    store.remember(experiment)
    store.write("pilot", 1, record(1))
    store.write("pilot", 2, record(2))
    store.write("other", 1, record(1, seed=5))
    assert store.last_round("pilot") == 2
    assert_same(store.read("pilot", 2), record(2))
    assert_same(store.read("other", 1), record(1, seed=5))
    assert store.read("pilot", 3) is None
    context = np.full((4, 8), 0.25, "<f4")
    store.write_final("pilot", context)
    np.testing.assert_array_equal(store.read_final("pilot"), context)
    assert store.read_final("other") is None


def test_the_disk_keeps_every_round_over_a_restart(tmp_path, experiment):
    store = DiskStore(tmp_path)
    store.remember(experiment)
    for number in (1, 2, 11):
        store.write("pilot", number, record(number))
    again = DiskStore(tmp_path)
    assert again.experiments() == ["pilot"]
    assert again.rounds("pilot") == [1, 2, 11]
    assert_same(again.read("pilot", 1), record(1))
    assert again.experiment("pilot") == experiment
    with pytest.raises(StateError, match="NO_EXPERIMENT"):
        again.experiment("other")


def test_looking_makes_nothing(tmp_path):
    store = DiskStore(tmp_path / "state")
    assert (store.experiments(), store.rounds("a"), store.last_round("a"), store.read("a", 1)) == ([], [], 0, None)
    assert list(tmp_path.iterdir()) == []


def test_files_are_this_users_alone(tmp_path):
    previous = os.umask(0)
    try:
        store = DiskStore(tmp_path)
        store.write("pilot", 1, record())
        store.write_final("pilot", record().global_context)
    finally:
        os.umask(previous)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"experiments": 0o700, "pilot": 0o700, "round-00001.safetensors": 0o600, "final.safetensors": 0o600}


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_an_interrupted_write_leaves_the_old_record_whole(tmp_path, monkeypatch, step):
    store = DiskStore(tmp_path)
    store.write("pilot", 1, record(1))

    def fail(*_args):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        for number in (1, 2):
            with pytest.raises(StateError, match="STORAGE_FULL"):
                store.write("pilot", number, record(number, seed=9))
    assert store.rounds("pilot") == [1]
    assert_same(store.read("pilot", 1), record(1))
    store.write("pilot", 2, record(2))
    assert store.last_round("pilot") == 2


def test_a_damaged_file_is_an_error(tmp_path):
    store = DiskStore(tmp_path)
    store.write("pilot", 1, record())
    store.write_final("pilot", record().global_context)
    for path in (tmp_path / "experiments/pilot").iterdir():
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StateError, match="RECORD_DAMAGED"):
        store.read("pilot", 1)
    with pytest.raises(StateError, match="RECORD_DAMAGED"):
        store.read_final("pilot")
