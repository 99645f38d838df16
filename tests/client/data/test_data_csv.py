import pytest
from site_images import only

from dpfpl_client.data import DataSettings, list_classes, load_site_data, read_pool
from dpfpl_common.errors import DataError


@pytest.fixture
def table(tmp_path, fill):
    """table(text): a CSV beside the folder img/ with pictures 0 to 29."""
    fill(tmp_path / "data" / "img", 0, 30)
    file = tmp_path / "data" / "index.csv"

    def write(text, encoding="utf-8"):
        file.write_bytes(text.encode(encoding))
        return DataSettings("csv", str(file))

    return write


def rows(start, stop, label, *more):
    return "".join(",".join([f"img/{number}.png", label, *more]) + "\n" for number in range(start, stop))


def test_paths_are_relative_to_the_file_and_the_split_is_drawn(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = table("path,label\n" + rows(0, 15, "cat") + rows(15, 30, "dog"))
    data = load_site_data(settings, ["dog", "cat"])
    assert data.classes == ("dog", "cat")
    assert len(data.train) + len(data.test) == 30
    assert data.test
    assert list_classes(settings) == ("cat", "dog")
    assert data.problems == ()


def test_a_split_column_is_kept_and_its_empty_cells_are_drawn(table):
    settings = table(
        "path,label,split\n" + rows(0, 10, "cat", "train") + rows(10, 14, "cat", "Test") + rows(14, 30, "dog", "")
    )
    pool = read_pool(settings)
    declared = {record.key: record.split for record in pool.records}
    assert all(declared[f"img/{number}.png"] == "train" for number in range(10))
    assert all(declared[f"img/{number}.png"] == "test" for number in range(10, 14))
    assert {declared[f"img/{number}.png"] for number in range(14, 30)} == {"train", "test"}


@pytest.mark.parametrize("text", ["\ufeffpath,label\n", "Path;Label\n", 'label,"path"\n', "id,path,label\n"])
def test_what_spreadsheets_write_is_read(table, text):
    order = text.lower().replace('"', "").replace("\ufeff", "").strip().replace(";", ",").split(",")
    delimiter = ";" if ";" in text else ","
    cells = {"id": "7", "path": "img/1.png", "label": "cat"}
    settings = table(text + delimiter.join(cells[name] for name in order) + "\r\n\r\n")
    assert [record.key for record in read_pool(settings).records] == ["img/1.png"]


@pytest.mark.parametrize("header", ["path,label,label", "path;label;Path", "split,path,label,Split"])
def test_a_column_that_is_there_twice_is_refused(table, header):
    with pytest.raises(DataError, match="twice") as raised:
        read_pool(table(f"{header}\nimg/1.png,cat,dog\n"))
    assert raised.value.code == "CSV_COLUMNS"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("img/nothing.png,cat", "cannot be found"),
        (",cat", "path is empty"),
        ("img/2.png,", "label is empty"),
        ("img/2.png", "label is empty"),
        ("img,cat", "not a file"),
        ("../secret.png,cat", "outside"),
        ("img/2.png,cat,elsewhere", "'elsewhere'"),
        ("link.png,cat", "outside"),
        ("img/\0.png,cat", "cannot be found"),
        ("img/2.png,Nevus, dysplastic,train", "more cells than the first line has columns"),
    ],
)
def test_a_bad_row_is_skipped_and_named_with_its_line(table, tmp_path, picture, row, reason):
    picture(99).save(tmp_path / "secret.png")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    pool = read_pool(table(f"path,label,split\nimg/1.png,cat,\n{row}\n"))
    assert [record.key for record in pool.records] == ["img/1.png"]
    message = only(pool, "BAD_ROW")
    assert "line 3" in message
    assert reason in message


def test_an_absolute_path_outside_is_skipped(table, tmp_path, picture):
    picture(99).save(tmp_path / "secret.png")
    pool = read_pool(table(f"path,label\nimg/1.png,cat\n{tmp_path}/secret.png,cat\n{tmp_path}/data/img/2.png,cat\n"))
    assert len(pool.records) == 2
    assert "secret.png" in only(pool, "BAD_ROW")


def test_a_file_that_is_no_image_is_corrupt(table, tmp_path):
    (tmp_path / "data" / "notes.txt").write_text("x")
    assert "notes.txt" in only(read_pool(table("path,label\nimg/1.png,cat\nnotes.txt,cat\n")), "CORRUPT_IMAGE")


@pytest.mark.parametrize(
    ("text", "encoding", "code"),
    [
        ("file,class\na,b\n", "utf-8", "CSV_COLUMNS"),
        ("", "utf-8", "CSV_COLUMNS"),
        ("path,label\n", "utf-8", "NO_IMAGES"),
        ("path,label\nimg/nothing.png,cat\n", "utf-8", "NO_IMAGES"),
        ("path,label\nimg/1.png,b\xe4r\n", "latin-1", "DATA_UNREADABLE"),
        ('path,label\n"img/1.png,cat\n', "utf-8", "DATA_UNREADABLE"),
    ],
)
def test_an_unusable_file_is_an_error_that_names_it(table, text, encoding, code):
    with pytest.raises(DataError, match=r"index\.csv") as raised:
        read_pool(table(text, encoding))
    assert raised.value.code == code
    assert raised.value.advice


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            list_classes(DataSettings("csv", str(path)))
