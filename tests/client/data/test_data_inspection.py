"""Pictures that machines made: folders that are left out and listed, near copies that are warned about."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageFilter
from site_images import messages, only, pool_of

from dpfpl_client.data import DataSettings, list_classes, read_pool

MACHINES = [
    "@eaDir", "lost+found", "$RECYCLE.BIN", ".thumbnails", "__MACOSX", "#recycle", "@Recycle", "@Recently-Snapshot",
    "System Volume Information", "#snapshot", "FOUND.000", "RECYCLER", ".@__thumb", "Network Trash Folder", ".viewer",
]  # fmt: skip


def scene(number, size=(160, 120)):
    """A picture with large and small shapes, different for every number."""
    rng = np.random.default_rng(number)
    rough = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return Image.blend(rough, grain.filter(ImageFilter.GaussianBlur(1)), 0.15)


@pytest.fixture
def scenes(tmp_path):
    for label, first in (("cat", 0), ("dog", 50)):
        (tmp_path / label).mkdir()
        for number in range(first, first + 8):
            scene(number).save(tmp_path / label / f"{number}.png")
    return tmp_path


def test_unlike_pictures_are_no_warning(scenes):
    assert pool_of(scenes).problems == ()


def test_machines_folders_are_no_classes_and_are_listed(scenes):
    for name in MACHINES:
        (scenes / name).mkdir()
        scene(1).resize((40, 30)).save(scenes / name / "1.png")
    pool = pool_of(scenes)
    assert {record.label for record in pool.records} == {"cat", "dog"}
    assert list_classes(DataSettings("folder", str(scenes))) == ("cat", "dog")
    message = only(pool, "DERIVED_FOLDERS")
    assert [name for name in MACHINES if repr(name) not in message] == []


def test_machines_folders_inside_a_class_are_not_read(scenes):
    names = [*MACHINES, "thumbs", "previews", "Shop.lrdata"]
    for label, name in itertools.product(("cat", "dog"), names):
        (scenes / label / "2024" / name).mkdir(parents=True)
        scene(1).resize((40, 30)).save(scenes / label / "2024" / name / "1.jpg")
    pool = pool_of(scenes)
    assert len(pool.records) == 16
    message = only(pool, "DERIVED_FOLDERS")
    assert [name for name in names if f"{name!r} (2 times)" not in message] == []


def test_a_synology_thumbnail_never_becomes_a_test_image(scenes):
    """One picture in three files would be three examples, and its thumbnail a test on a training image."""
    for file in list(scenes.rglob("*.png")):
        small = file.parent / "@eaDir" / file.name
        small.mkdir(parents=True)
        for name, size in (("SYNOFILE_THUMB_M.jpg", (80, 60)), ("SYNOFILE_THUMB_S.png", (40, 30))):
            scene(int(file.stem)).resize(size).save(small / name)
    assert len(pool_of(scenes).records) == 16


def test_classes_may_have_names_like_them(scenes):
    names = {"thumbs", "recycling", "eadir", "found", "snapshot", "lost", "trash", "cache"}
    for name in names:
        (scenes / name).mkdir()
        scene(77).save(scenes / name / "77.png")
    assert set(list_classes(DataSettings("folder", str(scenes)))) == {*names, "cat", "dog"}


def test_a_table_that_lists_thumbnails_too_does_not_make_them_examples(scenes):
    (scenes / "cat" / "@eaDir").mkdir()
    scene(1).resize((40, 30)).save(scenes / "cat" / "@eaDir" / "1.png")
    rows = [f"{path.relative_to(scenes).as_posix()},{path.relative_to(scenes).parts[0]}" for path in
            sorted(scenes.rglob("*.png"))]  # fmt: skip
    (scenes / "index.csv").write_text("path,label\n" + "\n".join(rows))
    pool = read_pool(DataSettings("csv", str(scenes / "index.csv")))
    assert len(pool.records) == 16
    message = only(pool, "BAD_ROW")
    assert "@eaDir" in message
    assert "thumbnails" in message


COPIES = {
    "half.png": lambda image: image.resize((80, 60)),
    "quarter.jpg": lambda image: image.resize((40, 30)),
    "large.png": lambda image: image.resize((400, 300)),
    "poor.jpg": lambda image: image,
    "squeezed.png": lambda image: image.resize((120, 120)),
    "grey.png": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_in_another_size_or_encoding_is_warned_about(scenes, name):
    COPIES[name](scene(3)).save(scenes / "cat" / name, **({"quality": 25} if name.endswith("jpg") else {}))
    pool = pool_of(scenes)
    message = only(pool, "NEAR_COPIES")
    assert "1 of 17 images look like another" in message
    assert "'cat/3.png'" in message
    assert f"'cat/{name}'" in message
    assert len(pool.records) == 17  # nothing is left out: what is kept depends on exact copies alone


def test_a_copy_of_a_training_image_among_the_test_images_is_said(tmp_path):
    for part, first, size in (("train", 0, (160, 120)), ("test", 4, (80, 60))):
        for label in (0, 100):
            (tmp_path / part / f"c{label}").mkdir(parents=True)
            for number in range(first, first + 8):
                scene(label + number).resize(size).save(tmp_path / part / f"c{label}" / f"{number}.png")
    message = only(pool_of(tmp_path), "NEAR_COPIES")
    assert "8 of 32 images look like another" in message
    assert "8 of the pairs have one image in train and one in test" in message


def test_pictures_of_one_colour_are_copies_of_nothing(tmp_path):
    for label, level in (("cat", 10), ("dog", 90)):
        (tmp_path / label).mkdir()
        for number in range(4):
            Image.new("L", (20 + number, 20), level + number).save(tmp_path / label / f"{number}.png")
    assert not messages(pool_of(tmp_path), "NEAR_COPIES")


def test_where_digests_were_remembered_no_incomplete_count_is_given(scenes, tmp_path):
    scene(3).resize((80, 60)).save(scenes / "cat" / "half.png")
    settings, index = DataSettings("folder", str(scenes)), tmp_path / "images.json"
    assert messages(read_pool(settings, None, index), "NEAR_COPIES")
    assert not messages(read_pool(settings, None, index), "NEAR_COPIES")
    assert messages(read_pool(settings), "NEAR_COPIES")  # what check does
