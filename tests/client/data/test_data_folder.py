import os
import shutil
from collections import Counter

import pytest
from site_images import codes, messages, only, pool_of

from dpfpl_client.data import DataSettings, list_classes, load_site_data, read_pool
from dpfpl_common.errors import DataError


def site(path, names=("cat", "dog"), **settings):
    return load_site_data(DataSettings("folder", str(path), **settings), names)


@pytest.fixture
def animals(tmp_path, fill):
    fill(tmp_path / "cat", 0, 20)
    fill(tmp_path / "dog", 100, 20)
    return tmp_path


def test_one_level_of_class_folders_is_split(animals):
    data = site(animals)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.test) == 40
    assert data.train
    assert data.test
    assert data.neighbour_test == ()
    assert data.problems == ()
    assert all(record.key.startswith(record.label + "/") for record in data.train + data.test)


def test_all_test_images_are_the_sites_whatever_it_trains_on(tmp_path, fill):
    fill(tmp_path / "train" / "cat", 0, 4)
    fill(tmp_path / "test" / "cat", 20, 3)
    fill(tmp_path / "test" / "dog", 30, 2)
    data = site(tmp_path)
    assert sorted(record.label for record in data.test) == ["cat"] * 3 + ["dog"] * 2
    assert data.neighbour_test == ()
    assert "'dog'" in only(data, "NO_TRAINING_IMAGES")


def test_an_image_in_no_class_folder_is_reported(animals, fill):
    fill(animals, 500, 1)
    assert "'500.png'" in only(site(animals), "IGNORED_FILE")


def test_sub_folders_of_a_class_belong_to_it(tmp_path, fill):
    fill(tmp_path / "cat" / "2024" / "may", 0, 5)
    fill(tmp_path / "dog", 10, 5)
    assert Counter(record.label for record in pool_of(tmp_path).records) == {"cat": 5, "dog": 5}


def test_extensions_count_in_any_case_and_hidden_files_not_at_all(tmp_path, picture):
    (tmp_path / "cat" / ".thumbnails").mkdir(parents=True)
    for number, name in enumerate(
        ["a.PNG", "b.JpG", "c.jpeg", "d.bmp", "e.webp", "f.tif", "g.tiff", "h.GIF", ".i.png", ".thumbnails/j.png"]
    ):
        picture(number).save(tmp_path / "cat" / name)
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    data = site(tmp_path)
    assert sorted(record.key[4:] for record in data.train + data.test) == [
        "a.PNG", "b.JpG", "c.jpeg", "d.bmp", "e.webp", "f.tif", "g.tiff", "h.GIF",
    ]  # fmt: skip
    assert "'.thumbnails'" in only(data, "DERIVED_FOLDERS")
    assert set(codes(data)) <= {"ONE_CLASS", "NO_TEST_IMAGES", "DERIVED_FOLDERS"}


def test_other_files_in_class_folders_are_counted(animals):
    for name in ("scan1.nii", "scan2.NII", "README"):
        (animals / "cat" / name).write_bytes(b"x")
    message = only(site(animals), "UNSUPPORTED_FILES")
    assert "2 .nii" in message
    assert "1 without extension" in message


def test_corrupt_images_are_skipped_and_named(animals):
    (animals / "cat" / "broken.png").write_bytes(b"no image")
    whole = (animals / "dog" / "100.png").read_bytes()
    (animals / "dog" / "half.png").write_bytes(whole[: len(whole) // 2])
    data = site(animals)
    broken, half = messages(data, "CORRUPT_IMAGE")
    assert "'cat/broken.png'" in broken
    assert "'dog/half.png'" in half
    assert len(data.train + data.test) == 40


def test_many_problems_of_one_kind_are_summed_up(animals):
    for number in range(33):
        (animals / "cat" / f"broken{number:02}.png").write_bytes(b"x")
    told = messages(site(animals), "CORRUPT_IMAGE")
    assert len(told) == 21
    assert "13 more" in told[-1]


def test_an_empty_class_folder_is_reported(animals):
    (animals / "bird").mkdir()
    assert "'bird'" in only(site(animals), "EMPTY_CLASS")
    assert list_classes(DataSettings("folder", str(animals))) == ("cat", "dog")


def test_a_class_whose_images_are_all_skipped_is_reported(animals):
    (animals / "bird").mkdir()
    (animals / "bird" / "x.png").write_bytes(b"x")
    assert "'bird'" in only(site(animals, ("cat", "dog", "bird")), "EMPTY_CLASS")


def test_classes_without_a_held_back_image_are_named(tmp_path, fill):
    for first, name in ((10, "cat"), (20, "dog"), (30, "emu")):
        fill(tmp_path / "train" / name, first, 3)
    fill(tmp_path / "test" / "cat", 7, 2)
    assert "No image of 'dog', 'emu' is held back" in only(site(tmp_path, ("cat", "dog", "emu")), "NO_TEST_IMAGES")


def test_one_class_is_allowed_and_explained(tmp_path, fill):
    fill(tmp_path / "cat", 0, 30)
    data = site(tmp_path)
    assert data.classes == ("cat",)
    assert "'cat'" in only(data, "ONE_CLASS")


def test_links_are_followed_inside_the_folder_only(tmp_path, fill, picture):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    fill(data / "cat", 0, 5)
    fill(elsewhere / "dog", 50, 5)
    fill(data / "cat" / "shelf", 20, 1)
    (data / "cat" / "private.png").symlink_to(elsewhere / "dog" / "50.png")
    (data / "dog").symlink_to(elsewhere / "dog")
    (data / "bird").symlink_to(data / "cat" / "shelf")
    (data / "cat" / "gone.png").symlink_to(data / "nothing.png")
    (data / "cat" / "self.png").symlink_to(data / "cat" / "self.png")
    pool = pool_of(data, test_fraction=0)
    outside = "".join(messages(pool, "OUTSIDE_LINK"))
    assert "'dog'" in outside
    assert "'cat/private.png'" in outside
    assert "mount" in outside, "how to bring it in"
    assert {record.label for record in pool.records} == {"cat"}
    # cat/shelf/20.png and bird/20.png are one picture under two labels: kept under neither
    assert {record.key for record in pool.records} == {f"cat/{number}.png" for number in range(5)}


@pytest.fixture
def half_outside(tmp_path, fill):
    """half_outside(name): a folder with train/ and test/, of which the named one is a link to another place."""

    def make(name):
        data = tmp_path / "data"
        for split, first in (("train", 0), ("test", 50)):
            fill((tmp_path / "elsewhere" if split == name else data) / split / "cat", first, 5)
        (data / name).symlink_to(tmp_path / "elsewhere" / name)
        return DataSettings("folder", str(data))

    return make


def test_a_test_folder_that_is_a_link_to_the_outside_is_not_read(half_outside):
    pool = read_pool(half_outside("test"))
    assert "'test'" in only(pool, "OUTSIDE_LINK")
    assert not [record for record in pool.records if record.key.startswith("test")]


def test_without_the_training_folder_behind_a_link_the_test_folder_is_no_class(half_outside):
    with pytest.raises(DataError, match="'test'") as raised:
        read_pool(half_outside("train"))
    assert raised.value.code == "SPLIT_UNCLEAR"
    assert "'train' is skipped: the link leads out" in raised.value.advice


def test_a_circle_of_links_ends(animals):
    (animals / "cat" / "again").symlink_to(animals / "cat")
    (animals / "cat" / "up").symlink_to(animals)
    assert len(pool_of(animals).records) <= 40


def test_a_pipe_with_an_images_name_does_not_hang_the_site(animals):
    os.mkfifo(animals / "cat" / "pipe.png")
    assert len(site(animals).train) > 0


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda path: shutil.rmtree(path), "DATA_UNREADABLE"),
        (lambda path: None, "NO_CLASSES"),
        (lambda path: (path / "cat").mkdir(), "NO_IMAGES"),
        (lambda path: (path / "x.png").write_bytes(b""), "NO_CLASSES"),
        (lambda path: (shutil.rmtree(path), path.write_text("x")), "DATA_UNREADABLE"),
    ],
    ids=["missing", "no folders", "empty class only", "no class folder", "a file"],
)
def test_a_folder_without_images_is_an_error_that_names_it(tmp_path, make, code):
    folder = tmp_path / "scans"
    folder.mkdir()
    make(folder)
    with pytest.raises(DataError, match="scans") as raised:
        site(folder)
    assert raised.value.code == code
    assert raised.value.advice
