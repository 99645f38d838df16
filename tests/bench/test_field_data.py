"""The field's image sets by name: folders found, classes called as in the comparisons, clear words otherwise."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from dpfpl_bench.simulation import sources as field_data
from dpfpl_bench.simulation.run import data_digest
from dpfpl_bench.simulation.sources import (
    FIELD,
    FLOWERS,
    check_archive,
    data_settings,
    domain_parts,
    named_classes,
    own_classes,
    own_sites,
)
from dpfpl_client.data import DataSettings, partition_sites, read_pool
from dpfpl_common.errors import DataError
from dpfpl_common.experiment import PromptSettings


def write_images(folder, count, seed=0):
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def root(monkeypatch, tmp_path):
    monkeypatch.setenv(field_data.DATA_ROOT, str(tmp_path))
    return tmp_path


def test_the_flowers_are_all_there_once_and_in_their_order():
    assert len(FLOWERS) == len(set(FLOWERS)) == FIELD["oxford_flowers"].classes
    assert (FLOWERS[0], FLOWERS[50], FLOWERS[101]) == ("pink primrose", "petunia", "blackberry lily")


@pytest.mark.parametrize(("labels", "first"), [(["1", "2", "102"], "pink primrose"), (["0", "1"], "pink primrose")])
def test_numbered_labels_count_from_one_or_from_zero(labels, first):
    assert FIELD["oxford_flowers"].class_map(labels)[labels[0]] == first


def test_classes_are_renamed_and_left_out_as_in_the_comparisons():
    found = FIELD["caltech101"].class_map(["Faces", "Faces_easy", "BACKGROUND_Google", "sea_horse"])
    assert found == {"Faces": "face", "sea_horse": "sea horse"}
    assert FIELD["oxford_pets"].class_map(["Egyptian_Mau"]) == {"Egyptian_Mau": "Egyptian Mau"}


def test_a_learned_prompt_starts_from_what_stands_before_the_class_name():
    assert FIELD["food101"].init_text == "a photo of"
    assert FIELD["oxford_pets"].init_text == FIELD["dtd"].init_text == PromptSettings().init_text == "a photo of a"


def test_a_set_that_is_not_at_hand_says_where_it_is_had(monkeypatch, tmp_path):
    monkeypatch.delenv(field_data.DATA_ROOT, raising=False)
    with pytest.raises(DataError, match="OxfordPets are not at hand") as error:
        data_settings("oxford_pets", 0)
    assert "timm/oxford-iiit-pet" in error.value.advice
    monkeypatch.setenv(field_data.DATA_ROOT, str(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        data_settings("oxford_pets", 0)


def test_a_folder_under_the_root_is_used_with_the_field_s_names(root):
    names = [f"digit_{number}" for number in range(10)]
    for number, name in enumerate(names):
        write_images(root / "cifar10" / name, 1, number)
    settings = data_settings("cifar10", 3)
    assert (settings.source, settings.split_seed) == ("folder", 3)
    assert named_classes("cifar10", settings) == tuple(f"digit {number}" for number in range(10))


def test_half_a_set_is_refused(root):
    write_images(root / "cifar10" / "cat", 1)
    with pytest.raises(DataError, match="has 1 classes; CIFAR-10 has 10"):
        data_settings("cifar10", 0)


def test_an_archive_is_checked_against_the_published_checksum(monkeypatch, tmp_path):
    archive = tmp_path / "archive"
    archive.write_bytes(b"whole")
    known = FIELD["dtd"]
    with pytest.raises(DataError, match="is not dtd-r1"):
        check_archive(known, archive)
    right = hashlib.md5(b"whole").hexdigest()
    check_archive(field_data.FieldData("x", "X", "h/x", 1, "{}", "page", "archive", right), archive)


def test_every_domain_is_a_site_and_is_tested_on_the_others_images(tmp_path):
    for seed, domain in enumerate(("art", "clipart", "product")):
        for number, name in enumerate(("cat", "dog")):
            for split, count in (("train", 3), ("test", 2)):
                write_images(tmp_path / domain / split / name, count, 100 * seed + 10 * number + len(split))
    settings = DataSettings("folder", str(tmp_path))
    parts = domain_parts(settings)
    classes = own_classes(parts)
    sites = own_sites(parts, classes)
    assert classes == ("cat", "dog")
    assert [len(site.train) for site in sites] == [6, 6, 6]
    assert [len(site.neighbour_test) for site in sites] == [8, 8, 8]
    own = {record.digest for record in sites[0].test}
    assert not own & {record.digest for record in sites[0].neighbour_test}


def test_the_digest_is_of_the_images_not_of_how_they_are_dealt_out_or_called(tmp_path):
    for number, name in enumerate(("cat", "dog")):
        write_images(tmp_path / "a" / "train" / name, 4, number)
        write_images(tmp_path / "a" / "test" / name, 2, number + 10)
    pool = read_pool(DataSettings("folder", str(tmp_path / "a"))).records
    two, one = (data_digest(partition_sites(pool, ("cat", "dog"), "iid", count, 0)) for count in (2, 1))
    assert two == one
    fewer = data_digest(partition_sites(pool[1:], ("cat", "dog"), "iid", 1, 0))
    assert fewer != one
