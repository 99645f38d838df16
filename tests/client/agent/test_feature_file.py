"""The file of features under kills, concurrent readers and writers, and its bound on size."""

import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest

from dpfpl_client.agent.features import FeatureFile

SIZE = 24


def key(number):
    return number.to_bytes(32, "little")


def vector(number):
    return np.random.default_rng(number).normal(size=SIZE).astype(np.float32)


def write_for_ever(path, start, step):
    file = FeatureFile(path, SIZE, 10**9)
    for number in range(start, 10**9, step):
        file.add({key(number): vector(number)})


def check(path):
    """Everything that is in the file is right; gives how much that is."""
    file = FeatureFile(path, SIZE, 10**9)
    numbers = [int.from_bytes(each, "little") for each in file._index]
    for number in numbers:
        assert np.array_equal(file[key(number)], vector(number))
    return len(numbers)


def test_it_gives_back_what_was_put_in(tmp_path):
    file = FeatureFile(tmp_path / "f.bin", SIZE, 10**9)
    assert key(1) not in file
    file.add({key(number): vector(number) for number in range(10)})
    file.add({key(10): vector(10)})
    assert len(file) == 11
    assert check(tmp_path / "f.bin") == 11
    assert not (tmp_path / "f.bin").stat().st_mode & 0o077


@pytest.mark.processes
def test_killed_writers_beside_readers_and_writers_damage_nothing(tmp_path):
    path, generator = tmp_path / "f.bin", random.Random(3)
    context = multiprocessing.get_context("fork")
    lasting = context.Process(target=write_for_ever, args=(path, 0, 2), daemon=True)
    lasting.start()
    try:
        before = 0
        for kill in range(12):
            victim = context.Process(target=write_for_ever, args=(path, 1_000_001 + 1000 * kill, 2), daemon=True)
            victim.start()
            time.sleep(generator.uniform(0.02, 0.2))
            check(path)
            os.kill(victim.pid, signal.SIGKILL)
            victim.join()
            now = check(path)
            assert now >= before
            before = now
        assert lasting.is_alive()  # no lock is left behind
    finally:
        lasting.kill()
        lasting.join()
    assert check(path) > 12


@pytest.mark.parametrize("cut", range(1, 32 + 4 + 4 * SIZE, 17))
def test_a_piece_of_a_record_at_the_end_is_overwritten(tmp_path, cut):
    path = tmp_path / "f.bin"
    FeatureFile(path, SIZE, 10**9).add({key(number): vector(number) for number in range(3)})
    path.write_bytes(path.read_bytes()[:-cut])
    file = FeatureFile(path, SIZE, 10**9)
    assert len(file) == 2
    file.add({key(7): vector(7)})
    assert check(path) == 3


def test_it_stays_within_its_bound_and_keeps_the_newest(tmp_path):
    path = tmp_path / "f.bin"
    file = FeatureFile(path, SIZE, 132 * 20)
    reader = None
    for number in range(100):
        file.add({key(number): vector(number)})
        assert path.stat().st_size <= 132 * 20
        assert key(number) in file
        if number == 19:
            reader = FeatureFile(path, SIZE, 132 * 20)
    assert check(path) >= 10
    assert np.array_equal(reader[key(0)], vector(0))  # a reader keeps the file that it opened
    assert key(99) not in reader
    reader.refresh()
    assert key(99) in reader
    assert key(0) not in reader
