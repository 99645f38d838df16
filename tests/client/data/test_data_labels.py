import tomllib
import unicodedata

import pytest
from site_images import only

from dpfpl_client.data import DataSettings, count_labels, left_out, list_classes, load_site_data, read_pool
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.config import build
from dpfpl_common.errors import ConfigError, DataError


@pytest.fixture
def animals(tmp_path, fill):
    fill(tmp_path / "cats", 0, 12)
    fill(tmp_path / "dog", 20, 12)
    fill(tmp_path / "Zebra (wild)", 40, 12)
    return tmp_path


def test_unknown_classes_are_skipped_counted_and_the_line_to_write_is_valid_toml(animals):
    data = load_site_data(DataSettings("folder", str(animals)), ["cat", "dog"])
    assert data.classes == ("dog",)
    message = only(data, "UNKNOWN_CLASS")
    assert "24 of 36 images are left out" in message
    assert "'cats' (12)" in message
    assert "'Zebra (wild)' (12)" in message
    line = message[message.index("class_map") :]
    assert tomllib.loads(line)["class_map"]["cats"] == "cat"
    assert "Zebra (wild)" in tomllib.loads(line)["class_map"]


def test_the_class_map_renames_and_two_folders_may_share_a_class(animals):
    settings = DataSettings("folder", str(animals), class_map={"cats": "cat", "Zebra (wild)": "dog"})
    data = load_site_data(settings, ["dog", "cat", "horse"])
    assert data.classes == ("dog", "cat")
    assert list_classes(settings) == ("cat", "dog")
    assert data.problems == ()
    assert {record.label for record in data.train if record.key.startswith("Zebra")} == {"dog"}


def test_a_line_of_the_class_map_without_a_class_is_reported(animals):
    settings = DataSettings("folder", str(animals), class_map={"catz": "cat"})
    assert "'catz'" in only(load_site_data(settings, ["cats", "dog"]), "CLASS_MAP_UNUSED")


def test_nothing_known_is_an_error_that_names_both_lists(animals):
    with pytest.raises(DataError, match="'cats'") as raised:
        load_site_data(DataSettings("folder", str(animals)), ["ship", "plane"])
    assert raised.value.code == "NO_KNOWN_CLASS"
    assert "'ship', 'plane'" in raised.value.message
    assert "class_map" in raised.value.advice


def test_names_match_in_either_unicode_form(tmp_path, fill):
    fill(tmp_path / unicodedata.normalize("NFD", "Bär"), 0, 12)
    composed = unicodedata.normalize("NFC", "Bär")
    data = load_site_data(DataSettings("folder", str(tmp_path)), [composed])
    assert data.classes == (composed,)
    mapped = DataSettings("folder", str(tmp_path), class_map={composed: "bear"})
    assert load_site_data(mapped, ["bear"]).classes == ("bear",)


@pytest.mark.parametrize(
    ("own", "meant"),
    [("Dog", "dog"), ("big_bird", "big bird"), ("BigBird", "big bird"), ("big-bird ", "big bird"), ("DOG", "dog")],
)
def test_names_that_differ_in_capitals_blanks_or_underscores_alone_are_proposed(own, meant):
    problem = left_out({own: 5, "cat": 3, "bag of dogs": 2}, ["cat", "dog", "big bird", "bog"])
    assert "7 of 10 images" in problem.message
    assert f"{own!r} differs from a class of the experiment in capital letters" in problem.message
    assert tomllib.loads(problem.message[problem.message.index("class_map") :])["class_map"][own] == meant


def test_two_classes_that_would_fit_are_not_guessed_between():
    problem = left_out({"big_bird": 5}, ["Big Bird", "BIGBIRD"])
    assert "differs from a class" not in problem.message


def test_nothing_is_left_out_where_all_is_known():
    assert left_out({"cat": 3, unicodedata.normalize("NFD", "Bär"): 2, "dog": 0}, ["cat", "Bär"]) is None


def test_labels_are_counted_without_reading_a_pixel(animals):
    (animals / "dog" / "broken.png").write_bytes(b"x")
    settings = DataSettings("folder", str(animals), class_map={"cats": "dog"})
    assert count_labels(settings) == {"dog": 25, "Zebra (wild)": 12}


@pytest.mark.parametrize("names", [[], ["cat", "cat"], "cat"])
def test_an_impossible_class_list_is_refused(animals, names):
    with pytest.raises(ConfigError, match="class_names"):
        read_pool(DataSettings("folder", str(animals)), names)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"source": "ftp"}, "source"),
        ({"source": "folder"}, "path"),
        ({"test_fraction": 1.0}, "test_fraction"),
        ({"test_fraction": -0.1}, "test_fraction"),
        ({"test_fraction": float("nan")}, "test_fraction"),
        ({"partition": "random"}, "partition"),
        ({"num_sites": 0}, "num_sites"),
        ({"num_sites": 3, "site_index": 3}, "site_index"),
        ({"site_index": -1}, "site_index"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("inf")}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"viewpoint": "inside out"}, "viewpoint"),
        ({"bits": 8}, "bits"),
        ({"bits": 17}, "bits"),
        ({"frames": "all"}, "frames"),
        ({"viewpoint": "mirrored", "partition": "domain"}, "viewpoint"),
    ],
)
def test_impossible_settings_name_key_value_and_expectation(values, key):
    with pytest.raises(ConfigError) as raised:
        build(SiteSettings, {"name": "north", "data": {"source": "digits"} | values}, "site.toml")
    shown = repr(values.get(key, ""))
    assert raised.value.message.startswith(f"site.toml [data] {key} is {shown}, expected ")
    with pytest.raises(ConfigError, match=f"{key} is"):
        DataSettings(**{"source": "digits"} | values)
