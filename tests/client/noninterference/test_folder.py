"""NI1: sites whose folders differ in one image look the same, but for the noised payloads."""

import shutil

import pytest
from every_state import WHOLE_SITE, every_state, save_image

pytestmark = pytest.mark.privacy

CLASSES = ("bright", "dark", "lonely")


def split_folder(folder):
    """train/ and test/ of two classes, and a test image of a third."""
    for split, count in (("train", 4), ("test", 2)):
        for number, (name, level) in enumerate((("bright", 180), ("dark", 20))):
            for image in range(count):
                save_image(folder / split / name / f"{image}.png", (number, split == "test", image), level)
    save_image(folder / "test" / "lonely" / "0.png", 900, 90)
    return folder


def drawn_folder(folder):
    """One level of class folders, whose division is drawn."""
    for number, (name, level) in enumerate((("bright", 180), ("dark", 20))):
        for image in range(6):
            save_image(folder / name / f"{image}.png", (7, number, image), level)
    return folder


def more(path, seed=77, level=100):
    return lambda folder: save_image(folder / path, seed, level)


def copied(source, target):
    def copy(folder):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / source, folder / target)

    return copy


def broken(path):
    def write(folder):
        (folder / path).write_bytes(b"no image")

    return write


NEIGHBOURS = {
    "one more": (split_folder, more("train/bright/new.png")),
    "first of its class": (split_folder, more("train/lonely/new.png")),
    "first of a class nobody names": (split_folder, more("train/other/new.png")),
    "last test image of its class": (split_folder, lambda folder: (folder / "test/lonely/0.png").unlink()),
    "one more to test": (split_folder, more("test/bright/new.png")),
    "a copy of another": (split_folder, copied("train/bright/0.png", "train/bright/copy.png")),
    "a copy under another label": (split_folder, copied("train/bright/0.png", "train/dark/copy.png")),
    "a copy across train and test": (split_folder, copied("test/dark/0.png", "train/dark/copy.png")),
    "a broken one": (split_folder, broken("train/dark/broken.png")),
    "one more, drawn": (drawn_folder, more("bright/new.png")),
    "first of its class, drawn": (drawn_folder, more("lonely/new.png")),
}


# Under ``none`` only less leaves than under ``noised``: there the cases that change which classes there are.
CASES = [(case, "noised") for case in NEIGHBOURS] + [(case, "none") for case in NEIGHBOURS if "of its class" in case]
EVERY_STATE = every_state(CLASSES)
EVERY_STATE_OF_WHOLE_SITES = every_state(("bright", "dark"), mechanisms=WHOLE_SITE)


@pytest.mark.parametrize(("case", "metrics"), CASES)
def test_ni1_neighbouring_folders_look_the_same(case, metrics, neighbours_differ):
    found = neighbours_differ("folder", *NEIGHBOURS[case], EVERY_STATE, metrics)
    assert not found, found


def test_ni1_neighbouring_folders_look_the_same_under_the_unit_site_too(neighbours_differ):
    found = neighbours_differ("folder", *NEIGHBOURS["first of its class"], EVERY_STATE_OF_WHOLE_SITES, "noised")
    assert not found, found
