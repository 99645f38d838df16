"""Questions about images from JSON lines: what is read, split, skipped and refused."""

import json
import os

import pytest

from dpfpl_client.data import DataSettings, list_classes, load_site_data, read_pool
from dpfpl_common.errors import ConfigError, DataError


@pytest.fixture
def questions(tmp_path, fill):
    """questions(lines): a file of JSON lines beside the folder img/ with pictures 0 to 29."""
    fill(tmp_path / "data" / "img", 0, 30)
    file = tmp_path / "data" / "questions.jsonl"

    def write(lines):
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        file.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return DataSettings("questions", str(file))

    return write


def line(number, question="what is it?", answer="a dog", **more):
    return {"image": f"img/{number}.png", "question": question, "answer": answer, **more}


def problem(pool, code):
    (found,) = [each for each in pool.problems if each.code == code]
    return found.message


def test_questions_come_with_their_answers_and_without_classes(questions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = questions([line(n, answer=f"dog {n}") for n in range(30)])
    data = load_site_data(settings, list_classes(settings))
    assert list_classes(settings) == data.classes == ()
    assert len(data.train) + len(data.test) == 30
    assert data.test
    assert data.problems == ()
    assert {record.label for record in (*data.train, *data.test)} == {f"dog {n}" for n in range(30)}
    assert {record.question for record in data.train} == {"what is it?"}


def test_all_questions_about_one_image_fall_on_one_side(questions):
    lines = [line(n, question=f"question {q}?") for n in range(30) for q in range(4)]
    data = load_site_data(questions(lines), ())
    assert len(data.train) + len(data.test) == 120
    train, test = ({record.digest for record in part} for part in (data.train, data.test))
    assert train
    assert test
    assert not train & test


def test_a_declared_split_is_kept(questions):
    settings = questions([line(n, split="test" if n < 5 else "train") for n in range(10)])
    data = load_site_data(settings, ())
    assert (len(data.train), len(data.test)) == (5, 5)


def test_a_test_question_about_a_training_image_is_dropped(questions):
    settings = questions([line(1, split="train"), line(1, question="and this?", split="test"), line(2, split="train")])
    pool = read_pool(settings, ())
    assert "training image" in problem(pool, "DUPLICATE_ACROSS_SPLITS")
    assert [record.split for record in pool.records] == ["train", "train"]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{", "it is not JSON"),
        ("[]", "no JSON object"),
        ({"image": "img/2.png", "qestion": "what?", "answer": "x"}, "'qestion'"),
        ({"image": "img/2.png", "question": "x"}, "'answer'"),
        ({"question": "x", "answer": "x"}, "'image'"),
        (line(2, answer=3), "its answer is no text"),
        (line(2, question="  "), "its question is no text"),
        (line(2, answer="x" * 1001), "longer than 1000"),
        (line(2, question="a\x00b"), "unprintable"),
        (line(2, anwser="x"), "'anwser'"),
        (line(2, split="validation"), "'validation'"),
    ],
)
def test_a_wrong_line_is_named_and_skipped(questions, bad, words):
    pool = read_pool(questions([line(1), bad]), ())
    message = problem(pool, "BAD_LINE")
    assert "line 2" in message
    assert words in message
    assert len(pool.records) == 1


def test_a_file_of_nothing_but_wrong_lines_is_refused(questions):
    settings = questions([{"img": "img/1.png", "q": "what?", "a": "dog"}] * 3)
    with pytest.raises(DataError, match="line 1") as caught:
        read_pool(settings, ())
    assert caught.value.code == "JSONL_FIELDS"
    assert '"question"' in caught.value.advice


def test_a_missing_image_a_folder_and_a_broken_image_are_named(questions, tmp_path):
    (tmp_path / "data" / "img" / "7.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    settings = questions([line(1), line(99), {**line(1), "image": "img"}, line(7)])
    pool = read_pool(settings, ())
    assert [record.key for record in pool.records] == ["img/1.png: what is it?"]
    messages = [each.message for each in pool.problems if each.code == "MISSING_IMAGE"]
    assert any("img/99.png" in message for message in messages)
    assert any("not a file" in message for message in messages)
    assert "img/7.png" in problem(pool, "CORRUPT_IMAGE")
    assert pool.unreadable == ("img/7.png: what is it?",)


def test_a_path_outside_the_folder_is_never_opened(questions, tmp_path, fill):
    fill(tmp_path / "elsewhere", 50, 1)
    os.symlink(tmp_path / "elsewhere" / "50.png", tmp_path / "data" / "img" / "link.png")
    outside = ["../elsewhere/50.png", str(tmp_path / "elsewhere" / "50.png"), "img/link.png"]
    settings = questions([line(1), *({**line(1), "image": path} for path in outside)])
    pool = read_pool(settings, ())
    assert len(pool.records) == 1
    assert len([each for each in pool.problems if each.code == "OUTSIDE_PATH"]) == 3


def test_the_same_question_twice_counts_once_and_contradictions_not_at_all(questions, tmp_path):
    lines = [line(1), line(1), line(2, answer="a dog"), line(2, answer="a cat"), line(3)]
    pool = read_pool(questions(lines), ())
    assert [record.key for record in pool.records] == ["img/1.png: what is it?", "img/3.png: what is it?"]
    assert "line 2" in problem(pool, "DUPLICATE_QUESTION")
    assert len([each for each in pool.problems if each.code == "CONFLICTING_ANSWERS"]) == 2


def test_a_copy_under_another_name_counts_once_for_each_question(questions, tmp_path):
    (tmp_path / "data" / "img" / "copy.png").write_bytes((tmp_path / "data" / "img" / "1.png").read_bytes())
    copy = {**line(1), "image": "img/copy.png"}
    pool = read_pool(questions([line(1), copy, {**copy, "question": "how many?", "answer": "two"}]), ())
    assert sorted(record.question for record in pool.records) == ["how many?", "what is it?"]
    assert "same picture" in problem(pool, "DUPLICATE_IMAGE")


def test_the_training_sets_identity_depends_on_the_questions(questions):
    def identity(question):
        lines = [line(n, question=question, split="train") for n in range(3)]
        return load_site_data(questions(lines), ()).manifest_digest

    assert identity("what is it?") != identity("how many?")


def test_an_unreadable_file_and_settings_without_meaning(questions, tmp_path):
    for settings in (DataSettings("questions", str(tmp_path / "none.jsonl")),):
        with pytest.raises(DataError) as caught:
            read_pool(settings, ())
        assert caught.value.code == "DATA_UNREADABLE"
    (tmp_path / "latin.jsonl").write_bytes('{"image": "é"}'.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        read_pool(DataSettings("questions", str(tmp_path / "latin.jsonl")), ())
    assert caught.value.code == "DATA_UNREADABLE"
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError) as caught:
        read_pool(DataSettings("questions", str(tmp_path / "empty.jsonl")), ())
    assert caught.value.code == "NO_IMAGES"
    with pytest.raises(ConfigError, match="partition"):
        DataSettings("questions", "x.jsonl", partition="iid", num_sites=2)
    with pytest.raises(ConfigError, match="class_map"):
        DataSettings("questions", "x.jsonl", class_map={"a": "b"})


def test_a_site_without_training_questions_is_refused(questions):
    with pytest.raises(DataError) as caught:
        load_site_data(questions([line(n, split="test") for n in range(3)]), ())
    assert caught.value.code == "NO_TRAINING_IMAGES"


def test_a_caption_is_a_line_without_a_question(questions):
    lines = [{"image": f"img/{n}.png", "answer": f"a dog  number {n}"} for n in range(10)]
    data = load_site_data(questions([*lines, lines[3], {"image": "img/4.png", "answer": "a cat"}]), ())
    records = (*data.train, *data.test)
    assert {record.question for record in records} == {""}
    assert {record.label for record in records} == {f"a dog number {n}" for n in range(10) if n != 4}
    assert {each.code for each in data.problems} == {"DUPLICATE_QUESTION", "CONFLICTING_ANSWERS"}


def test_captions_and_questions_about_one_picture_are_examples_of_their_own(questions):
    pool = read_pool(questions([{"image": "img/1.png", "answer": "a dog"}, line(1), line(1, question="and this?")]), ())
    assert sorted(record.question for record in pool.records) == ["", "and this?", "what is it?"]
    assert len({record.split for record in pool.records}) == 1
    assert pool.problems == ()
