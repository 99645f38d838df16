import json
import pickle
import re
from dataclasses import FrozenInstanceError

import pytest

import dpfpl_client.data as package
from dpfpl_client.data import DataSettings, decode, load_pool, load_site_data, read_pool
from dpfpl_common.errors import DataError


@pytest.fixture
def animals(tmp_path, fill):
    fill(tmp_path / "data" / "cat", 0, 8)
    fill(tmp_path / "data" / "dog", 20, 8)
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch):
    """The paths that were decoded, in any order."""
    paths = []

    def spy(source, *rules):
        paths.append(source)
        return original(source, *rules)

    original = decode.decode_picture
    monkeypatch.setattr(decode, "decode_picture", spy)
    return paths


def settings(folder):
    return DataSettings("folder", str(folder))


def test_every_public_name_is_exported():
    assert all(hasattr(package, name) for name in package.__all__)
    assert {"ImageRecord", "DataProblem", "SiteData", "DataSettings"} <= set(package.__all__)
    assert {"load_site_data", "load_pool", "partition_sites", "list_classes"} <= set(package.__all__)


def test_records_are_frozen_and_can_be_sent_to_a_worker(animals):
    record = load_pool(settings(animals), None)[0]
    with pytest.raises(FrozenInstanceError):
        record.split = "test"
    assert pickle.loads(pickle.dumps(record)).open().tobytes() == record.open().tobytes()


def test_a_file_that_changed_after_it_was_read_is_refused(animals, picture):
    record = load_pool(settings(animals), None)[0]
    picture(999).save(animals / record.key)
    with pytest.raises(DataError, match=record.key) as raised:
        record.open()
    assert raised.value.code == "IMAGE_CHANGED"


def test_a_file_that_went_away_is_an_error_that_names_it(animals):
    record = load_pool(settings(animals), None)[0]
    (animals / record.key).unlink()
    with pytest.raises(DataError, match=record.key) as raised:
        record.open()
    assert raised.value.code == "IMAGE_UNREADABLE"


def test_a_file_replaced_by_a_link_to_the_outside_is_refused(animals, tmp_path, picture):
    record = load_pool(settings(animals), None)[0]
    picture(999).save(tmp_path / "secret.png")
    (animals / record.key).unlink()
    (animals / record.key).symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError):
        record.open()


def test_the_index_saves_decoding_and_changes_nothing(animals, tmp_path, decoded):
    index = tmp_path / "state" / "digests.json"
    first = load_site_data(settings(animals), ["cat", "dog"], index)
    assert len(decoded) == 16
    assert load_site_data(settings(animals), ["cat", "dog"], index) == first
    assert len(decoded) == 16
    assert load_site_data(settings(animals), ["cat", "dog"]) == first


def test_the_index_notices_new_changed_and_removed_files(animals, tmp_path, decoded, picture):
    index = tmp_path / "digests.json"
    load_pool(settings(animals), None, index)
    decoded.clear()
    picture(500).save(animals / "cat" / "new.png")
    picture(501, (9, 9)).save(animals / "cat" / "1.png")
    (animals / "cat" / "2.png").unlink()
    pool = load_pool(settings(animals), None, index)
    assert {path.name for path in decoded} == {"new.png", "1.png"}
    assert {r.digest for r in pool} == {r.digest for r in load_pool(settings(animals), None)}
    assert not [name for name in json.loads(index.read_text())["files"] if name.endswith("cat/2.png")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"[1, 2]",
        lambda content: b'{"version": 1, "decoder": 3, "files": []}',
        lambda content: content.replace(b"Pillow", b"Other "),
        lambda content: content.replace(b'"version": 1', b'"version": 2'),
        lambda content: b"[" * 100_000,
        lambda content: b"\xff\xfe",
        lambda content: re.sub(rb'"[0-9a-f]{64}"', b'"short"', content, count=1),
        lambda content: json.dumps(json.loads(content) | {"files": {"x": [1]}}).encode(),
        lambda content: json.dumps(json.loads(content) | {"files": ["x"]}).encode(),
    ],
)
def test_a_damaged_index_is_ignored_and_replaced(animals, tmp_path, damage, decoded):
    index = tmp_path / "digests.json"
    first = read_pool(settings(animals), None, index)
    good = index.read_bytes()
    index.write_bytes(damage(good))
    decoded.clear()
    assert read_pool(settings(animals), None, index) == first
    assert len(decoded) == 16
    assert json.loads(index.read_bytes()) == json.loads(good)


def test_a_forged_index_cannot_pass_a_picture_off_as_another(animals, tmp_path):
    index = tmp_path / "digests.json"
    load_pool(settings(animals), None, index)
    content = json.loads(index.read_text())
    name = next(iter(content["files"]))
    content["files"][name][2] = "0" * 64
    index.write_text(json.dumps(content))
    (record,) = [r for r in load_pool(settings(animals), None, index) if r.digest == "0" * 64]
    with pytest.raises(DataError) as raised:
        record.open()
    assert raised.value.code == "IMAGE_CHANGED"


def test_an_index_that_cannot_be_written_is_a_warning(animals, tmp_path):
    (tmp_path / "file").write_text("x")
    pool = read_pool(settings(animals), None, tmp_path / "file" / "digests.json")
    assert [problem.code for problem in pool.problems] == ["INDEX_NOT_WRITTEN"]
    assert len(pool.records) == 16


def test_a_corrupt_file_is_looked_at_again(animals, tmp_path, picture):
    index = tmp_path / "digests.json"
    (animals / "cat" / "x.png").write_bytes(b"x")
    assert len(load_pool(settings(animals), None, index)) == 16
    picture(77).save(animals / "cat" / "x.png")
    assert len(load_pool(settings(animals), None, index)) == 17


def test_no_pixels_are_kept_for_files(animals):
    assert all(set(vars(record.source)) == {"path", "rules"} for record in load_pool(settings(animals), None))


def test_unknown_classes_are_not_even_decoded(animals, decoded):
    load_pool(settings(animals), ["cat"])
    assert {path.parent.name for path in decoded} == {"cat"}
