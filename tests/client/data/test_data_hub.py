import sys
from types import SimpleNamespace

import numpy as np
import pytest
from site_images import codes, messages, only

from dpfpl_client.data import DataSettings, list_classes, load_site_data, read_pool
from dpfpl_common.errors import DataError


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("datasets")


@pytest.fixture
def serve(monkeypatch, datasets, picture):
    """serve(split -> [(picture number or None, label)]): what ``load_dataset`` then returns."""

    def put(splits, names=("cat", "dog"), label="label", image="image"):
        kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
        features = datasets.Features({image: datasets.Image(), label: kind})
        tables = {
            split: datasets.Dataset.from_dict(
                {
                    image: [None if number is None else picture(number) for number, _ in rows],
                    label: [value for _, value in rows],
                },
                features=features,
            )
            for split, rows in splits.items()
        }
        monkeypatch.setattr(datasets, "load_dataset", lambda name, config: datasets.DatasetDict(tables))

    return put


SETTINGS = DataSettings("huggingface", "owner/animals")


def many(first, count, label):
    return [(number, label) for number in range(first, first + count)]


def test_train_and_test_are_kept_and_class_labels_named(serve, picture):
    serve({"train": many(0, 6, 0) + many(10, 6, 1), "test": many(20, 4, 1)})
    data = load_site_data(SETTINGS, ["cat", "dog"])
    assert (len(data.train), len(data.test), data.classes) == (12, 4, ("cat", "dog"))
    record = next(record for record in data.test if record.key == "test/2")
    np.testing.assert_array_equal(np.asarray(record.open()), np.asarray(picture(22)))


def test_validation_stands_in_for_test_and_leaks_are_dropped(serve):
    serve({"train": many(0, 6, 0), "validation": many(5, 3, 0), "other": many(50, 3, 0)})
    data = load_site_data(SETTINGS, ["cat", "dog"])
    assert (len(data.train), len(data.test)) == (6, 2)
    assert "DUPLICATE_ACROSS_SPLITS" in codes(data)


def test_a_single_split_is_drawn_and_text_labels_are_read(serve):
    serve({"train": many(0, 20, "cat") + many(30, 20, "dog")}, names=None, image="picture")
    assert {record.split for record in read_pool(SETTINGS).records} == {"train", "test"}
    assert list_classes(SETTINGS) == ("cat", "dog")


def test_rows_without_label_or_image_are_skipped_and_named(serve):
    serve({"train": [*many(0, 6, 0), (None, 1), (40, -1), (41, None)]})
    pool = read_pool(SETTINGS)
    assert "'train/6'" in only(pool, "CORRUPT_IMAGE")
    no_class, no_label = messages(pool, "BAD_ROW")
    assert ["'train/7'" in no_class, "'train/8'" in no_label] == [True, True]


def test_a_data_set_without_images_or_labels_is_an_error(serve, datasets, monkeypatch):
    serve({"train": many(0, 3, "cat")}, names=None, label="caption")
    with pytest.raises(DataError, match="no label column") as raised:
        read_pool(SETTINGS)
    assert raised.value.code == "HUGGINGFACE_COLUMNS"
    table = datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: {"train": table})
    with pytest.raises(DataError, match="no image column"):
        read_pool(SETTINGS)


def test_a_local_folder_in_the_hubs_format_can_be_read(datasets, tmp_path, picture, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [picture(i) for i in range(6)], "label": [0, 0, 0, 1, 1, 1]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    settings = DataSettings("huggingface", str(tmp_path / "set"), test_fraction=0)
    data = load_site_data(settings, ["dog", "cat"])
    assert len(data.train) == 6
    assert data.classes == ("dog", "cat")
    np.testing.assert_array_equal(np.asarray(data.train[4].open()), np.asarray(picture(4)))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConnectionError("Couldn't reach the Hub"), "HUGGINGFACE_UNREACHABLE"),
        (TimeoutError("slow"), "HUGGINGFACE_UNREACHABLE"),
        (FileNotFoundError("no such data set"), "HUGGINGFACE_NOT_FOUND"),
        (ValueError("Config name is missing"), "HUGGINGFACE_UNUSABLE"),
        (RuntimeError("Dataset scripts are no longer supported"), "HUGGINGFACE_UNUSABLE"),
    ],
)
def test_what_the_hub_refuses_is_an_error_that_names_the_data_set(datasets, monkeypatch, error, code):
    def refuse(name, config):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match="owner/animals") as raised:
        read_pool(SETTINGS)
    assert raised.value.code == code
    assert raised.value.advice


def test_a_configuration_is_named_after_a_colon_and_no_code_is_trusted(datasets, monkeypatch):
    asked = []

    def answer(*names, **options):
        asked.append((names, options))
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", answer)
    for path in ("owner/animals:small", "owner/animals"):
        with pytest.raises(DataError):
            read_pool(DataSettings("huggingface", path))
    assert asked == [(("owner/animals", "small"), {}), (("owner/animals", None), {})]


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"dpfpl-client\[huggingface\]") as raised:
        read_pool(SETTINGS)
    assert raised.value.code == "HUGGINGFACE_MISSING"


def test_other_sources_do_not_need_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert SimpleNamespace(data=list_classes(DataSettings("shapes"))).data
