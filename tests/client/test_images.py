"""Images named on the command line."""

import csv
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dpfpl_client.use.predict import FileResult, classify_files, count_skipped, expand_images, write_csv
from dpfpl_client.use.prompt import Prediction
from dpfpl_common.errors import DataError, StateError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b" / ".cache").mkdir(parents=True)
    for name in ("b/2.PNG", "b/1.jpg", "a.png", "b/.hidden.png", "b/notes.txt"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name, format="PNG")
    return tmp_path


def test_folders_become_their_images_in_order(folder):
    found = expand_images([folder / "a.png", folder / "b"])
    assert [str(path.relative_to(folder)) for path in found] == ["a.png", "b/1.jpg", "b/2.PNG"]


def test_what_is_not_looked_at_is_counted(folder):
    assert count_skipped([folder / "a.png", folder / "b"]) == 2  # .hidden.png and notes.txt
    assert count_skipped([folder / "b/notes.txt"]) == 0


def test_a_name_that_is_not_utf8_gets_its_row(tmp_path):
    strange = tmp_path / os.fsdecode(b"bad\xff.png")
    write_csv(tmp_path / "out.csv", [FileResult(strange, Prediction(("cat",), (1.0,)))])
    assert b"bad\xff.png,,cat,1.0" in (tmp_path / "out.csv").read_bytes()


def test_a_named_file_is_taken_whatever_it_is_called(folder):
    assert expand_images([folder / "b/notes.txt"]) == [folder / "b/notes.txt"]


def test_an_empty_folder_is_an_error(folder):
    with pytest.raises(DataError) as error:
        expand_images([folder / "b/.cache"])
    assert (error.value.code, "b/.cache" in error.value.message) == ("NO_IMAGE", True)


class Levels:
    """Stands for a classifier: says how bright an image is, and how many came together."""

    def __init__(self):
        self.batches = []

    def classify(self, images, top):
        images = list(images)
        self.batches.append(len(images))
        return iter([Prediction((str(image.getpixel((0, 0))[0]),), (1.0,)) for image in images])


def write_image(path, level, size=(4, 4)):
    Image.new("RGB", size, (level,) * 3).save(path)
    return path


def test_a_bad_image_never_stops_the_others(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(write_image(tmp_path / "whole.png", 1, (64, 64)).read_bytes()[:90])
    paths = [
        write_image(tmp_path / "first.png", 7),
        *(tmp_path / f"{name}.png" for name in ("empty", "text", "cut", "nowhere", "pipe")),
        tmp_path,
        write_image(tmp_path / "last.png", 9),
    ]
    results = list(classify_files(Levels(), paths, 1))
    assert [result.path for result in results] == paths
    assert [result.prediction.classes[0] for result in (results[0], results[-1])] == ["7", "9"]
    for result in results[1:-1]:
        assert result.prediction is None
        assert result.error
    assert "does not exist" in results[4].error
    assert "no regular file" in results[5].error


def test_a_huge_image_is_named_and_not_unpacked(tmp_path):
    """A few kilobytes that would unpack to two gigabytes."""
    size = 30_000
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    (tmp_path / "bomb.png").write_bytes(bomb)
    (result,) = classify_files(Levels(), [tmp_path / "bomb.png"], 1)
    assert result.prediction is None
    assert "more than 89,478,485 pixels" in result.error


def test_images_go_through_the_model_in_batches_of_bounded_size(tmp_path, monkeypatch):
    path, levels = write_image(tmp_path / "a.png", 3), Levels()
    assert len(list(classify_files(levels, [path] * 150, 1))) == 150
    assert levels.batches == [64, 64, 22]
    monkeypatch.setattr("dpfpl_client.use.predict.BATCH_PIXELS", 40)
    levels = Levels()
    assert len(list(classify_files(levels, [path] * 7, 1))) == 7
    assert levels.batches == [3, 3, 1]


def test_csv_has_one_row_an_image_and_no_formula(tmp_path):
    results = [
        FileResult(tmp_path / "a.png", Prediction(("=1+1", "cat"), (0.75, 0.25))),
        FileResult(tmp_path / "b.png", error="it is damaged"),
    ]
    write_csv(tmp_path / "out.csv", results)
    head, first, second = list(csv.reader((tmp_path / "out.csv").read_text().splitlines()))
    assert head == ["image", "error", "class_1", "probability_1", "class_2", "probability_2"]
    assert first == [str(tmp_path / "a.png"), "", "'=1+1", "0.75", "cat", "0.25"]
    assert second == [str(tmp_path / "b.png"), "it is damaged", "", "", "", ""]
    with pytest.raises(StateError, match="CANNOT_WRITE"):
        write_csv(tmp_path / "nowhere" / "out.csv", results)
