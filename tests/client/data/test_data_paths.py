"""Names and permissions of real disks: the advice fits what is wrong."""

import errno
import os
from pathlib import Path

import pytest
from site_images import codes, messages, only, pool_of

from dpfpl_client.agent.ledger.dataset import manifest_of
from dpfpl_client.data import DataSettings, load_site_data, read_pool
from dpfpl_common.errors import DataError


@pytest.fixture
def animals(tmp_path, fill):
    fill(tmp_path / "animals" / "cat", 0, 8)
    fill(tmp_path / "animals" / "dog", 50, 8)
    return tmp_path / "animals"


# Names that are not UTF-8


@pytest.fixture
def old_names(animals, picture):
    """old_names(bytes): a folder of that name beside cat and dog, with four images."""

    def make(name):
        folder = os.fsencode(animals) + b"/" + name
        try:
            os.makedirs(folder)
        except OSError:
            pytest.skip("this file system has UTF-8 names only")
        for number in range(4):
            picture(100 + number).save(os.fsdecode(folder) + f"/{number}.png")
        return animals

    return make


@pytest.mark.parametrize("name", [b"B\xe4r", b"\xff", b"Gr\xfcn \xdf"])
def test_a_class_folder_that_is_not_utf8_is_left_out_and_the_renaming_is_named(old_names, name):
    pool = pool_of(old_names(name))
    assert {record.label for record in pool.records} == {"cat", "dog"}
    message = only(pool, "NOT_UTF8")
    assert "not UTF-8" in message
    assert "convmv" in message
    message.encode()  # it can be printed


def test_only_such_folders_are_an_error_with_that_advice(old_names, tmp_path):
    import shutil

    folder = old_names(b"B\xe4r")
    for name in ("cat", "dog"):
        shutil.rmtree(folder / name)
    with pytest.raises(DataError, match="convmv"):
        pool_of(folder)


@pytest.mark.parametrize("name", [b"b\xe4r.png", b"old \xfcber/1.png", b"\xff\xfe.png"])
def test_an_image_that_is_not_utf8_by_name_is_used_under_a_name_that_can_be_written(animals, picture, name):
    path = os.fsencode(animals) + b"/cat/" + name
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        picture(300).save(os.fsdecode(path))
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    data = load_site_data(DataSettings("folder", str(animals), test_fraction=0), ["cat", "dog"])
    assert len(data.train) == 17
    assert len(manifest_of(data).digest()) == 64  # it is written as UTF-8
    (record,) = [record for record in data.train if "\\x" in record.key]
    assert record.open().size == (6, 5)


# Links


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/nowhere/fox", "leads to '/nowhere/fox', which does not exist"),
        ("fox", "leads to itself"),
        ("../gone", "gone"),
    ],
)
def test_a_broken_link_is_called_one_and_not_a_matter_of_permissions(animals, target, reason):
    (animals / "fox").symlink_to(target)
    pool = pool_of(animals)
    message = only(pool, "BROKEN_LINK")
    assert reason in message
    assert "permissions" not in message
    assert codes(pool) == ["BROKEN_LINK"]


def test_a_data_folder_of_nothing_but_links_says_so_and_not_that_it_has_no_classes(tmp_path, animals):
    (tmp_path / "links").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "links" / name).symlink_to(animals / name)
    with pytest.raises(DataError, match="can be read") as raised:
        pool_of(tmp_path / "links")
    assert "the link leads out" in raised.value.advice


# Permissions and disks


def refuse(monkeypatch, name, error, methods=("iterdir", "open")):
    """Every access to what is called so fails."""
    for method in methods:
        original = getattr(Path, method)

        def refusing(path, *args, original=original, **kwargs):
            if path.name == name:
                raise error
            return original(path, *args, **kwargs)

        monkeypatch.setattr(Path, method, refusing)


@pytest.mark.parametrize(
    ("error", "advice", "wrong"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "owner and permissions", "disk"),
        (OSError(errno.EIO, "Input/output error"), "disk", "permissions"),
        (OSError(errno.ESTALE, "Stale file handle"), "network drive", "permissions"),
    ],
)
def test_an_unreadable_folder_is_not_an_empty_one(animals, monkeypatch, error, advice, wrong):
    refuse(monkeypatch, "dog", error)
    pool = pool_of(animals)
    message = only(pool, "UNREADABLE")
    assert "'dog'" in message
    assert advice in message
    assert wrong not in message
    assert "EMPTY_CLASS" not in codes(pool)


@pytest.mark.parametrize(("method", "unreadable"), [("open", ("cat/3.png",)), ("stat", ())])
def test_an_unreadable_file_is_a_matter_of_permissions_and_not_to_be_replaced(animals, monkeypatch, method, unreadable):
    refuse(monkeypatch, "3.png", PermissionError(errno.EACCES, "Permission denied"), [method])
    pool = pool_of(animals)
    message = only(pool, "UNREADABLE")
    assert "'cat/3.png'" in message
    assert "owner and permissions" in message
    assert pool.unreadable == unreadable


@pytest.mark.skipif(not hasattr(os, "fork") or os.geteuid() != 0, reason="needs root, to become somebody else")
def test_what_another_user_owns(animals, tmp_path):
    """The same, with a real user who may not read."""
    folder = tmp_path
    while folder != folder.parent:
        folder.chmod(folder.stat().st_mode | 0o055)
        folder = folder.parent
        if folder.parent == folder.root:
            break
    (animals / "cat" / "0.png").chmod(0)
    (animals / "dog").chmod(0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            text = "\n".join(f"{problem.code} {problem.message}" for problem in pool_of(animals).problems)
        except BaseException as error:  # noqa: BLE001  (the child must end here)
            text = repr(error)
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        text = told.read()
    os.waitpid(child, 0)
    assert "UNREADABLE 'dog' is skipped: the folder cannot be read (Permission denied). Check its owner" in text
    assert "UNREADABLE 'cat/0.png' is skipped: this user may not read it. Check its owner" in text


@pytest.mark.parametrize("source", ["csv", "questions"])
def test_a_table_that_may_not_be_read_is_no_matter_of_the_path(tmp_path, monkeypatch, source):
    (tmp_path / "table").write_text("path,label\n")
    refuse(monkeypatch, "table", PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(DataError, match="owner and permissions"):
        read_pool(DataSettings(source, str(tmp_path / "table")))


# Tables


@pytest.fixture
def table(tmp_path, fill):
    """table(text): a CSV beside the folder Img/ with pictures 0 to 29."""
    fill(tmp_path / "data" / "Img" / "a", 0, 30)

    def write(text):
        (tmp_path / "data" / "index.csv").write_text("path,label,split\n" + text)
        return read_pool(DataSettings("csv", str(tmp_path / "data" / "index.csv"), test_fraction=0))

    return write


def test_backslashes_are_read_as_windows_writes_them(table):
    pool = table("".join(f"Img\\a\\{n}.png,{'cat' if n % 2 else 'dog'},\n" for n in range(10)))
    assert [record.key for record in pool.records] == sorted(f"Img/a/{n}.png" for n in range(10))
    assert pool.problems == ()


def test_a_file_that_really_has_a_backslash_is_that_file(table, tmp_path, picture):
    picture(500).save(tmp_path / "data" / "Img\\a\\1.png")
    (record,) = table("Img\\a\\1.png,cat,\n").records
    assert record.open().tobytes() == picture(500).tobytes()


@pytest.mark.parametrize("path", ["C:\\scans\\1.png", "d:\\1.png", "\\\\server\\share\\1.png"])
def test_a_path_on_a_windows_drive_is_called_one(table, path):
    pool = table(f"Img/a/1.png,cat,\n{path},cat,\n")
    assert "Windows drive" in only(pool, "BAD_ROW")
    assert len(pool.records) == 1


@pytest.mark.parametrize("path", ["img/a/2.png", "Img/A/2.PNG", "IMG\\a\\2.png"])
def test_other_capital_letters_are_named(table, path):
    assert "there is 'Img/a/2.png': capital letters count" in only(table(f"Img/a/1.png,cat,\n{path},cat,\n"), "BAD_ROW")


def test_a_hint_never_names_what_lies_outside(table, tmp_path, picture):
    picture(9).save(tmp_path / "secret.png")
    assert "secret.png'" not in only(table("Img/a/1.png,cat,\n../Secret.png,cat,\n"), "BAD_ROW").replace(
        "../S", "../s!"
    )


@pytest.mark.parametrize(
    "again", ["Img/a/1.png", "./Img/a/1.png", "Img//a/1.png", "Img/../Img/a/1.png", "Img\\a\\1.png"]
)
def test_a_path_that_is_listed_twice_is_one_line_too_many_and_no_copy_to_remove(table, again):
    pool = table(f"Img/a/1.png,cat,\nImg/a/2.png,dog,\n{again},cat,\n")
    message = only(pool, "LISTED_TWICE")
    assert "line 4: Img/a/1.png" in message
    assert "line 2 lists it too" in message
    assert "Remove one of the lines" in message
    assert [record.key for record in pool.records] == ["Img/a/1.png", "Img/a/2.png"]
    assert codes(pool) == ["LISTED_TWICE"]


def test_a_path_with_two_labels_counts_under_neither_and_both_lines_are_named(table):
    pool = table("Img/a/1.png,cat,\nImg/a/2.png,dog,\n./Img/a/1.png,dog,\n")
    first, _ = messages(pool, "LISTED_TWICE")
    assert "'cat' here and 'dog' in line 4" in first
    assert [record.key for record in pool.records] == ["Img/a/2.png"]


@pytest.mark.privacy
@pytest.mark.parametrize("first", ["", "test", "train"])
@pytest.mark.parametrize("second", ["", "test", "train"])
def test_ni4_one_line_more_changes_one_part_by_at_most_one_image(table, first, second):
    rows = f"Img/a/1.png,cat,{first}\nImg/a/2.png,dog,train\n"
    before = {(r.key, r.split) for r in table(rows).records}
    after = {(r.key, r.split) for r in table(rows + f"Img/a/1.png,cat,{second}\n").records}
    assert len(before ^ after) <= 1
    assert len(after) == (2 if first == second else 1)


@pytest.mark.parametrize("named", ["Img\\\\a\\\\1.png", "./Img/a/1.png"])
def test_a_file_of_questions_finds_images_the_same_way(table, tmp_path, named):
    lines = [f'{{"image": "{name}", "question": "what?", "answer": "cat"}}\n' for name in ("Img/a/1.png", named)]
    (tmp_path / "data" / "questions.jsonl").write_text("".join(lines))
    pool = read_pool(DataSettings("questions", str(tmp_path / "data" / "questions.jsonl"), test_fraction=0))
    assert len(pool.records) == 1
    assert "line 1 says the same" in only(pool, "DUPLICATE_QUESTION")
