import hashlib
import shutil
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_images import messages, pool_of

from dpfpl_client.data import DataSettings, load_site_data
from dpfpl_client.data.records import SourceItem
from dpfpl_client.data.split import drawn_split, split_items

# An image as the split sees it: key, label, declared split, digest. Few digests, so that copies are frequent.
_images = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from([None, "train", "test"]), st.integers(0, 12)), max_size=20
).map(lambda rows: [(SourceItem(f"{i:02}", label, split, None), f"d{d}") for i, (label, split, d) in enumerate(rows)])


def split(images, fraction=0.5, seed=0):
    return split_items(images, fraction, seed, "upright")


@given(_images, st.integers(0, 5))
def test_no_picture_is_on_both_sides_or_twice_on_one(images, seed):
    records, _ = split(images, seed=seed)
    assert max(Counter(record.digest for record in records).values(), default=0) <= 1


@given(_images)
def test_every_image_is_kept_or_reported(images):
    records, problems = split(images)
    kept = {record.key for record in records}
    messages = " ".join(problem.message for problem in problems)
    assert all(item.key in kept or repr(item.key) in messages for item, _ in images)


@given(_images, st.sampled_from("ab"), st.sampled_from([None, "train"]), st.integers(0, 12), st.integers(0, 30))
def test_one_more_training_image_changes_the_training_set_by_at_most_one(images, label, declared, digest, place):
    # The unit of privacy: what the accountant counts as one example must be one example after cleaning, too.
    added = [*images, (SourceItem(f"{place:02}x", label, declared, None), f"d{digest}")]
    before, after = (
        Counter((r.digest, r.label) for r in split(rows)[0] if r.split == "train") for rows in (images, added)
    )
    assert ((before - after) + (after - before)).total() <= 1


@given(_images, st.integers(0, 5))
def test_a_copy_on_the_other_side_takes_an_example_away_and_brings_none(images, seed):
    records, _ = split(images, seed=seed)
    for record in records:
        other = "test" if record.split == "train" else "train"
        copy = (SourceItem("zz", record.label, other, None), record.digest)
        assert split([*images, copy], seed=seed)[0] == [r for r in records if r.digest != record.digest]


@given(_images, st.integers(0, 5))
def test_adding_images_moves_no_other(images, seed):
    half = images[: len(images) // 2]
    before, after = (
        {record.digest: record.split for record in split(undeclared, seed=seed)[0]}
        for undeclared in ([(SourceItem(item.key, "a", None, None), d) for item, d in rows] for rows in (half, images))
    )
    assert before.items() <= after.items()


@given(_images, st.randoms())
def test_the_order_of_the_listing_does_not_matter(images, random):
    shuffled = list(images)
    random.shuffle(shuffled)
    assert split(shuffled)[0] == split(images)[0]


def test_the_drawn_split_has_the_expected_size_and_depends_on_the_seed():
    sides = [[drawn_split(f"{i}", 0.25, seed) for i in range(4000)] for seed in (0, 1)]
    assert all(0.22 < side.count("test") / 4000 < 0.28 for side in sides)
    assert sides[0] != sides[1]
    assert {drawn_split(f"{i}", 0.0, 0) for i in range(100)} == {"train"}


def test_the_drawn_split_is_frozen():
    # Another rule would silently move images that a site has already trained on into its test set.
    for number in range(50):
        draw = int(hashlib.sha256(f"dpfpl split 7 {number:064x}".encode()).hexdigest()[:16], 16) / 2**64
        assert drawn_split(f"{number:064x}", 0.3, 7) == ("test" if draw < 0.3 else "train")


@pytest.fixture
def declared(tmp_path, fill):
    fill(tmp_path / "train" / "cat", 0, 10)
    fill(tmp_path / "train" / "dog", 20, 10)
    fill(tmp_path / "test" / "cat", 40, 5)
    fill(tmp_path / "test" / "dog", 50, 5)
    return tmp_path


def load(path):
    return load_site_data(DataSettings("folder", str(path)), ["cat", "dog"])


def test_a_picture_on_both_sides_under_any_name_counts_on_neither(declared, picture):
    shutil.copy(declared / "train" / "cat" / "3.png", declared / "test" / "cat" / "holiday.png")
    picture(24).save(declared / "test" / "dog" / "converted.bmp")
    data = load(declared)
    assert (len(data.train), len(data.test)) == (18, 10)
    assert not {record.digest for record in data.test} & {record.digest for record in data.train}
    found = messages(data, "DUPLICATE_ACROSS_SPLITS")
    assert len(found) == 4
    assert "'test/cat/holiday.png'" in found[0]
    assert "'train/cat/3.png'" in found[1]
    assert "'test/dog/converted.bmp'" in found[2]


def test_copies_land_on_one_side_of_the_drawn_split(tmp_path, fill, picture):
    fill(tmp_path / "cat", 0, 40)
    originals = pool_of(tmp_path).records
    for number in range(40):
        picture(number).save(tmp_path / "cat" / f"a_copy_{number}.tiff")
    pool = pool_of(tmp_path)
    assert {record.digest: record.split for record in pool.records} == {r.digest: r.split for r in originals}
    assert len(pool.records) == 40
    assert any("'cat/a_copy_0.tiff'" in message for message in messages(pool, "DUPLICATE_IMAGE"))


def test_a_copy_in_one_split_counts_once(declared):
    shutil.copy(declared / "train" / "cat" / "3.png", declared / "train" / "cat" / "x.png")
    data = load(declared)
    assert len(data.train) == 20
    (message,) = messages(data, "DUPLICATE_IMAGE")
    assert "'train/cat/x.png'" in message
    assert "'train/cat/3.png'" in message


def test_a_picture_under_two_labels_is_kept_under_neither(declared):
    shutil.copy(declared / "train" / "cat" / "3.png", declared / "train" / "dog" / "x.png")
    data = load(declared)
    assert len(data.train) == 19
    found = messages(data, "CONFLICTING_LABELS")
    assert len(found) == 2
    assert all("'cat' and 'dog'" in message for message in found)


def test_the_manifest_is_the_training_pictures_with_their_labels_and_nothing_else(declared, tmp_path_factory, picture):
    before = load(declared).manifest_digest
    (declared / "train" / "cat" / "3.png").rename(declared / "train" / "cat" / "renamed.png")
    shutil.rmtree(declared / "test" / "cat")
    (declared / "train" / "dog" / "20.png").unlink()
    picture(20).save(declared / "train" / "dog" / "20.bmp")
    assert load(declared).manifest_digest == before
    moved = declared / "train" / "dog" / "renamed.png"
    (declared / "train" / "cat" / "renamed.png").rename(moved)
    assert load(declared).manifest_digest != before
    moved.unlink()
    assert load(declared).manifest_digest != before
