from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from dpfpl_client.data import VIEWPOINTS, DataSettings, apply_viewpoint, list_classes, load_pool, load_site_data
from dpfpl_client.data.builtin import list_shapes


@pytest.fixture(scope="module", params=["digits", "shapes"])
def source(request):
    return request.param


@pytest.fixture(scope="module")
def pool(source):
    return load_pool(DataSettings(source), None)


def test_there_are_ten_classes_and_enough_images(source, pool):
    assert len(pool) == {"digits": 1797, "shapes": 1500}[source]
    assert set(Counter(record.label for record in pool)) == set(list_classes(DataSettings(source)))
    assert min(Counter(record.label for record in pool).values()) >= 150
    assert len({record.digest for record in pool}) == len(pool)


def test_class_names_are_words_in_a_fixed_order():
    assert list_classes(DataSettings("digits"))[:3] == ("zero", "one", "two")
    assert len(list_classes(DataSettings("shapes"))) == 10


def test_images_are_32_by_32_rgb_with_contrast(pool):
    for record in pool[::97]:
        image = record.open()
        assert (image.mode, image.size) == ("RGB", (32, 32))
        assert np.asarray(image).std() > 5


def test_about_a_quarter_is_for_testing(pool):
    part = np.mean([record.split == "test" for record in pool])
    assert 0.22 < part < 0.28


def test_a_second_reading_is_the_same_but_for_the_viewpoint(source, pool):
    turned = load_pool(DataSettings(source, viewpoint="rotated"), None)
    assert turned == [replace(record, viewpoint="rotated") for record in pool]


def test_shapes_do_not_depend_on_global_random_state():
    np.random.seed(3)
    first = list_shapes(2).items[17].source.read().tobytes()
    np.random.seed(4)
    assert list_shapes(2).items[17].source.read().tobytes() == first


def test_digits_are_white_on_black_and_show_the_stroke(pool, source):
    if source == "digits":
        zeros = np.mean([np.asarray(r.open())[..., 0] for r in pool if r.label == "zero"], axis=0)
        assert zeros[:, 0].max() < 10
        assert zeros[16, 16] < zeros[16, 8]


def test_viewpoints_differ_and_are_applied(pool):
    pixels = {view: np.asarray(replace(pool[3], viewpoint=view).open()) for view in VIEWPOINTS}
    assert len({array.tobytes() for array in pixels.values()}) == 4
    np.testing.assert_array_equal(pixels["upside_down"], pixels["upright"][::-1, ::-1])
    np.testing.assert_array_equal(pixels["mirrored"], pixels["upright"][:, ::-1])
    np.testing.assert_array_equal(pixels["rotated"], np.rot90(pixels["upright"]))


def test_a_viewpoint_swaps_the_sides_of_an_oblong_image(picture):
    assert apply_viewpoint(picture(1, (6, 4)), "rotated").size == (4, 6)


def test_a_class_map_renames_the_built_in_classes():
    settings = DataSettings("digits", class_map={"zero": "nought"})
    assert list_classes(settings)[0] == "nought"
    assert load_site_data(settings, ["nought", "one"]).classes == ("nought", "one")


def test_opening_an_image_gives_a_copy_that_can_be_changed(pool):
    first = pool[0].open()
    first.putpixel((0, 0), (1, 2, 3))
    assert pool[0].open().getpixel((0, 0)) != (1, 2, 3)
