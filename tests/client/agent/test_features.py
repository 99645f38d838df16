"""Image features: computed once for one model, image and viewpoint, and never taken from a damaged file.

Then the file itself, under kills, concurrent readers and writers, and its bound on size.
"""

import hashlib
import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from dpfpl_client.agent.features import FeatureCache, FeatureFile, site_features
from dpfpl_client.data import ImageRecord, SiteData
from dpfpl_client.data.decode import pixel_digest


@dataclass(frozen=True)
class Picture:
    number: int

    def read(self):
        pixels = np.random.default_rng(self.number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


def image(number, label="cat", viewpoint="upright", key=None):
    picture = Picture(number)
    return ImageRecord(key or f"p/{number}", label, pixel_digest(picture.read()), "train", picture, viewpoint)


class Spy:
    """The backbone, counting the images that it is really given."""

    def __init__(self, backbone, fingerprint=None):
        self._backbone, self.seen = backbone, 0
        self.feature_size, self.feature_identity = backbone.feature_size, fingerprint or backbone.feature_identity

    def image_features(self, images):
        def counted():
            for one in images:
                self.seen += 1
                yield one

        return self._backbone.image_features(counted())


@pytest.fixture
def spy(backbone):
    return Spy(backbone)


RECORDS = [image(number) for number in range(5)]


def test_features_are_those_of_the_model_in_the_order_asked(tmp_path, spy, backbone):
    features = FeatureCache(tmp_path, spy).features(RECORDS)
    assert features.shape == (5, backbone.feature_size)
    expected = torch.stack(list(backbone.image_features(record.open() for record in RECORDS)))
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(FeatureCache(tmp_path, spy).features(RECORDS[::-1]), expected.flip(0))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))


def test_an_image_is_computed_once_and_for_all(tmp_path, spy):
    cache = FeatureCache(tmp_path, spy)
    first = cache.features(RECORDS)
    assert spy.seen == 5
    assert torch.equal(cache.features(RECORDS), first)
    assert torch.equal(FeatureCache(tmp_path, spy).features(RECORDS), first)
    assert spy.seen == 5
    FeatureCache(tmp_path, spy).features([*RECORDS, image(77)])
    assert spy.seen == 6


def test_equal_pictures_are_computed_once(tmp_path, spy):
    done = []
    features = FeatureCache(tmp_path, spy).features(
        [image(1), image(1, key="copy"), image(2)], lambda *step: done.append(step)
    )
    assert spy.seen == 2
    assert done == [(1, 2), (2, 2)]
    assert torch.equal(features[0], features[1])


def test_a_turned_picture_is_another_one(tmp_path, spy):
    upright, turned = FeatureCache(tmp_path, spy).features([image(1), image(1, viewpoint="upside_down")])
    assert spy.seen == 2
    assert not torch.allclose(upright, turned)


def test_another_model_has_another_file(tmp_path, spy, backbone):
    FeatureCache(tmp_path, spy).features(RECORDS)
    other = Spy(backbone, "0" * 64)
    FeatureCache(tmp_path, other).features(RECORDS)
    assert other.seen == 5
    assert len(list(tmp_path.glob("features-*.bin"))) == 2


def test_another_preprocessing_has_another_file(backbone):
    other = type(backbone._image_processor)(**{**backbone._image_processor.to_dict(), "image_mean": [0.0, 0.0, 0.0]})
    tokenizer, model = backbone.tokenizer, backbone._model
    changed = type(backbone)(model, tokenizer, other, backbone.fingerprint)
    same = type(backbone)(model, tokenizer, backbone._image_processor, backbone.fingerprint)
    assert changed.feature_identity != backbone.feature_identity == same.feature_identity


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "foreign", "noise", "torn"])
def test_a_damaged_file_costs_time_and_never_correctness(tmp_path, spy, damage):
    expected = FeatureCache(tmp_path, spy).features(RECORDS)
    (path,) = tmp_path.glob("features-*.bin")
    content = bytearray(path.read_bytes())
    lost = 5
    match damage:
        case "empty":
            content = b""
        case "truncated":  # what a kill leaves: the last record is a piece
            content, lost = content[:-50], 1
        case "flipped":
            content[-100] ^= 0x40
            content[len(content) // 2] ^= 0x40
            lost = 2
        case "torn":  # what a loss of power may leave: a page of zeros in the middle
            content[len(content) // 2 - 4 : len(content) // 2 + 4] = b"\0" * 8
            lost = 1
        case "foreign":
            content = b"\x02\0\0\0\0\0\0\0{}"
        case _:
            content = hashlib.sha512(b"x").digest() * 40
    path.write_bytes(content)
    again = Spy(spy._backbone)
    mended = FeatureCache(tmp_path, again).features(RECORDS)
    torch.testing.assert_close(mended, expected)  # another batch size rounds differently
    assert again.seen == lost
    third = Spy(spy._backbone)
    assert torch.equal(FeatureCache(tmp_path, third).features(RECORDS), mended)
    assert third.seen == 0


def test_what_is_computed_is_kept_even_if_the_rest_fails(tmp_path, spy, monkeypatch):
    monkeypatch.setattr("dpfpl_client.agent.features.SAVED_AT_ONCE", 2)

    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path, spy).features(RECORDS, stop)
    again = Spy(spy._backbone)
    FeatureCache(tmp_path, again).features(RECORDS)
    assert again.seen == 1


def test_two_caches_on_one_folder_see_each_others_work(tmp_path, backbone):
    one, other = Spy(backbone), Spy(backbone)
    first, second = FeatureCache(tmp_path, one), FeatureCache(tmp_path, other)
    expected = first.features(RECORDS)
    assert torch.equal(second.features([*RECORDS, image(9)])[:5], expected)
    assert (one.seen, other.seen) == (5, 1)


def test_models_long_unused_make_room(tmp_path, backbone):
    size = None
    for number in range(4):
        spy = Spy(backbone, f"{number:032d}" + "0" * 32)
        FeatureCache(tmp_path, spy, size or 10**9).features(RECORDS)
        (path,) = tmp_path.glob(f"features-{number:032d}.bin")
        os.utime(path, (number, number))
        size = size or int(2.5 * path.stat().st_size)
    kept = sorted(path.name[9:41].lstrip("0") for path in tmp_path.glob("features-*.bin"))
    assert kept == ["1", "2", "3"]  # 0 went when 3 came, the size of 3 itself being unknown then


def test_without_a_folder_it_remembers_in_memory(spy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = FeatureCache(None, spy)
    assert torch.equal(cache.features(RECORDS), cache.features(RECORDS))
    assert spy.seen == 5
    assert list(tmp_path.iterdir()) == []


def test_no_images_no_features(spy):
    assert FeatureCache(None, spy).features([]).shape == (0, spy.feature_size)


def test_labels_index_the_class_names(spy):
    data = SiteData((image(1, "dog"), image(2, "cat")), (image(3, "dog"),), (), ("cat", "dog"), ())
    features = site_features(FeatureCache(None, spy), data, ["cat", "dog"])
    assert features.train.labels.tolist() == [1, 0]
    assert features.test.labels.tolist() == [1]
    assert len(features.neighbour_test) == 0
    assert features.classes == ("cat", "dog")
    unknown = replace(data, test=(image(3, "bird"),))
    with pytest.raises(KeyError):
        site_features(FeatureCache(None, spy), unknown, ["cat", "dog"])


# The file


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
