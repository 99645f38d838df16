"""Images named on the command line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpfpl_client.images import expand_images, open_image
from dpfpl_common.errors import DataError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b" / ".cache").mkdir(parents=True)
    for name in ("b/2.PNG", "b/1.jpg", "a.png", "b/.hidden.png", "b/notes.txt"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name, format="PNG")
    return tmp_path


def test_folders_become_their_images_in_order(folder):
    found = expand_images([folder / "a.png", folder / "b"])
    assert [str(path.relative_to(folder)) for path in found] == ["a.png", "b/1.jpg", "b/2.PNG"]


def test_a_named_file_is_taken_whatever_it_is_called(folder):
    assert expand_images([folder / "b/notes.txt"]) == [folder / "b/notes.txt"]
    assert open_image(folder / "b/notes.txt").mode == "RGB"


@pytest.mark.parametrize("named", ["nowhere.png", "b/.cache"])
def test_nothing_to_classify_is_an_error(folder, named):
    with pytest.raises(DataError) as error:
        expand_images([folder / named])
    assert (error.value.code, named in error.value.message) == ("NO_IMAGE", True)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_a_corrupt_image_is_named(tmp_path, content):
    path = tmp_path / "scan.png"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        open_image(path)
    assert (error.value.code, str(path) in error.value.message) == ("CORRUPT_IMAGE", True)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(DataError):
        open_image(Path(tmp_path))
