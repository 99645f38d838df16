"""Folders of a split in any spelling: recognised, or the question which is meant; never classes of that name."""

import pytest
from site_images import codes, only, pool_of

from dpfpl_client.data import DataSettings, list_classes, load_site_data, read_pool
from dpfpl_client.data.folder_names import find_parts, role_of
from dpfpl_client.data.hub import choose_splits
from dpfpl_common.errors import DataError

CLASSES = ["cat", "dog"]


@pytest.fixture
def parts(tmp_path, fill):
    """parts(names): a folder with these parts, four images of each class in each."""

    def make(*names):
        for place, name in enumerate(names):
            for number, label in enumerate(CLASSES):
                fill(tmp_path / name / label, 100 * place + 50 * number, 4)
        return DataSettings("folder", str(tmp_path))

    return make


def sides(settings):
    data = load_site_data(settings, CLASSES)
    return {r.key.split("/")[0] for r in data.train}, {r.key.split("/")[0] for r in data.test}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("training", "testing"),
        ("trainval", "test"),
        ("train_set", "test-set"),
        ("TrainingImages", "TestImages"),
        ("1 train", "2 test"),
        ("train2017", "val2017"),
        ("train", "val"),
        ("Train", "Valid"),
        ("training_data", "validation_data"),
        ("trainset", "tests"),
        ("Trainingsdaten", "Testdaten"),
        ("Training", "Validierung"),
        ("Entraînement", "Test"),
        ("entrenamiento", "prueba"),
        ("treino", "validação"),
        ("обучение", "тест"),
        ("学習用", "テストデータ"),
        ("训练集", "测试集"),
    ],
)
def test_two_parts_in_any_spelling(parts, train, test):
    settings = parts(train, test)
    assert list_classes(settings) == ("cat", "dog")
    assert sides(settings) == ({train}, {test})


@pytest.mark.parametrize(
    "names", [("Train", "Valid", "Test"), ("train", "dev", "test"), ("training", "VAL", "testing")]
)
def test_beside_a_test_part_the_validation_part_is_not_read_and_said(parts, names):
    settings = parts(*names)
    assert sides(settings) == ({names[0]}, {names[2]})
    assert repr(names[1]) in only(read_pool(settings), "IGNORED_PART")


@pytest.mark.parametrize("name", ["Train", "training", "train_images"])
def test_a_training_part_alone_is_split(parts, name):
    settings = parts(name)
    assert list_classes(settings) == ("cat", "dog")
    assert len(read_pool(settings).records) == 8


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("dev", "test"), ["'dev'", "'test'", "no folder train"]),
        (("Test",), ["'Test'", "no folder train"]),
        (("train", "training", "test"), ["'train', 'training'", "Which one is it?"]),
        (("train", "test", "testing"), ["'test', 'testing'", "Which one is it?"]),
        (("train", "val", "validation"), ["'val', 'validation'", "Which one is it?"]),
        (("seg_train", "seg_test"), ["'seg_train', 'seg_test'", "call them train and test"]),
        (("xray train v2", "xray val v2"), ["call them train and test"]),
        (("chest/train", "chest/test"), ["'chest'", "point [data] path at it"]),
        (("train/train", "test/test"), ["'test' holds one folder", "Which is meant?"]),
    ],
)
def test_what_may_be_parts_or_classes_is_asked(parts, names, words):
    with pytest.raises(DataError) as raised:
        read_pool(parts(*names))
    assert raised.value.code == "SPLIT_UNCLEAR"
    for text in words:
        assert text in str(raised.value)


def test_a_training_part_beside_another_class_is_asked(tmp_path, fill):
    fill(tmp_path / "train" / "2024", 0, 4)
    fill(tmp_path / "bus", 20, 4)
    with pytest.raises(DataError, match="'train' may be the training part of a split, with 'bus' beside it") as raised:
        pool_of(tmp_path)
    assert "If 'train' is a class, put its images directly into it" in raised.value.advice


def test_parts_inside_the_classes_are_asked(tmp_path, fill):
    for number, label in enumerate(CLASSES):
        for place, part in enumerate(("train", "test")):
            fill(tmp_path / label / part, 100 * number + 50 * place, 4)
    with pytest.raises(DataError, match="'cat' holds 'test', 'train'") as raised:
        pool_of(tmp_path)
    assert "train/cat, test/cat" in raised.value.advice


@pytest.mark.parametrize(
    "names",
    [("train", "bus"), ("train", "test", "plane"), ("valid", "invalid"), ("test tube", "flask"), ("Dev", "Ops")],
)
def test_classes_may_have_such_names_where_they_hold_images_themselves(tmp_path, fill, names):
    for number, name in enumerate(names):
        fill(tmp_path / name, 50 * number, 4)
    assert set(list_classes(DataSettings("folder", str(tmp_path)))) == set(names)


def test_a_class_of_such_a_name_may_have_folders_too_where_it_holds_images(tmp_path, fill):
    for number, name in enumerate(("train", "train/steam", "bus")):
        fill(tmp_path / name, 50 * number, 4)
    assert list_classes(DataSettings("folder", str(tmp_path))) == ("bus", "train")


def test_folders_by_year_are_no_parts(tmp_path, fill):
    for number, name in enumerate(("cat/2023", "cat/2024", "dog/2023", "dog/2024")):
        fill(tmp_path / name, 50 * number, 4)
    assert list_classes(DataSettings("folder", str(tmp_path))) == ("cat", "dog")


def test_pictures_without_a_class_beside_the_training_part_are_reported(tmp_path, fill):
    fill(tmp_path / "train" / "cat", 0, 6)
    fill(tmp_path / "train" / "dog", 50, 6)
    fill(tmp_path / "test", 100, 3)  # as competitions have it: nobody knows their classes
    pool = pool_of(tmp_path)
    assert {record.label for record in pool.records} == {"cat", "dog"}
    assert "'test'" in only(pool, "IGNORED_PART")


@pytest.mark.parametrize(
    "name", ["cat", "train station", "contest", "blood test", "devices", "2024", "set", "evil", ""]
)
def test_other_names_have_no_role(name):
    assert role_of(name) == ""


def test_no_folders_are_no_parts():
    assert find_parts({}, []) == {}
    assert find_parts({"train": [], "test": []}, ["train", "test"]) == {}


@pytest.mark.parametrize(
    ("train", "test"), [("Training", "Testing"), ("train_set", "TEST"), ("trn", "Valid"), ("train", "holdout")]
)
def test_a_tables_split_column_may_be_spelled_so_too(tmp_path, fill, train, test):
    fill(tmp_path, 0, 10)
    rows = "".join(f"{n}.png,{CLASSES[n % 2]},{train if n < 6 else test}\n" for n in range(10))
    (tmp_path / "index.csv").write_text("path,label,split\n" + rows)
    pool = read_pool(DataSettings("csv", str(tmp_path / "index.csv")))
    assert {r.key for r in pool.records if r.split == "test"} == {f"{n}.png" for n in range(6, 10)}
    assert not pool.problems


def test_validation_rows_are_held_back_whatever_other_rows_say(tmp_path, fill):
    fill(tmp_path, 0, 10)
    parts = ["train"] * 4 + ["val"] * 3 + ["test"] * 2 + ["neither"]
    rows = "".join(f"{n}.png,{CLASSES[n % 2]},{part}\n" for n, part in enumerate(parts))
    (tmp_path / "index.csv").write_text("path,label,split\n" + rows)
    pool = read_pool(DataSettings("csv", str(tmp_path / "index.csv")))
    assert {r.key for r in pool.records if r.split == "test"} == {f"{n}.png" for n in range(4, 9)}
    assert codes(pool) == ["BAD_ROW"]


@pytest.mark.parametrize(
    ("names", "parts", "unread"),
    [
        (["train", "test"], [("train", "train"), ("test", "test")], ""),
        (["test", "train"], [("train", "train"), ("test", "test")], ""),
        (["Training", "Test"], [("Training", "train"), ("Test", "test")], ""),
        (["train", "validation"], [("train", "train"), ("validation", "test")], ""),
        (["train", "validation", "test"], [("train", "train"), ("test", "test")], "'validation'"),
        (["all"], [("all", None)], ""),
        (["part_a", "part_b"], [("part_a", None)], "'part_b'"),
        (["extra", "train"], [("train", None)], "'extra'"),
    ],
)
def test_splits_of_a_hub_data_set_and_what_is_not_read_of_it(names, parts, unread):
    found, problems = choose_splits(names)
    assert found == parts
    assert [unread in problem.message for problem in problems] == ([True] if unread else [])
