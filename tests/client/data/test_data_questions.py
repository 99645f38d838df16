"""Questions about images from JSON lines: what is read, split, skipped and refused."""

import json
import os
from collections import Counter

import pytest
from site_images import codes, messages, only

from dpfpl_client.agent.ledger.dataset import manifest_of
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


def test_questions_about_one_image_may_lie_on_both_sides_but_one_question_may_not(questions):
    """One line is one example: a training line takes no more than itself out of the test lines."""
    settings = questions([line(1, split="train"), line(1, question="and this?", split="test"), line(2, split="train")])
    assert [record.split for record in read_pool(settings, ()).records] == ["train", "train", "test"]
    pool = read_pool(questions([line(1, split="train"), line(1, split="test"), line(2, split="train")]), ())
    assert set(codes(pool)) == {"DUPLICATE_ACROSS_SPLITS"}
    assert all("a copy of it lies in" in text for text in messages(pool, "DUPLICATE_ACROSS_SPLITS"))
    assert [record.key for record in pool.records] == ["img/2.png: what is it?"]


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
        (line(2, answer="x" * 1001), "its answer is longer than 1000 characters"),
        (line(2, question="a\x00b"), "its question has the unprintable character U+0000"),
        (line(2, answer="a\u202eb"), "its answer has the unprintable character U+202E"),
        ('{"image": "img/2.png", "answer": "a", "answer": "b"}', "it has the field 'answer' twice"),
        ({"image": "img/2.png", "answer": "x", "Question": "what?"}, "no field 'question', but 'Question'"),
        ({"image": "img/2.png", "answer": "x", "prompt": "what?"}, "no field 'question', but 'prompt'"),
        ({"image": "img/2.png", "question": "what?", "anwser": "x"}, "no field 'answer', but 'anwser'"),
        (line(2, spilt="test"), "no field 'split', but 'spilt'"),
        (line(2, split="elsewhere"), "'elsewhere'"),
    ],
)
def test_a_wrong_line_is_named_and_skipped(questions, bad, words):
    pool = read_pool(questions([line(1), bad]), ())
    message = only(pool, "BAD_LINE")
    assert "line 2" in message
    assert words in message
    assert len(pool.records) == 1


def test_other_fields_are_ignored_and_named_once(questions):
    lines = [line(1, id=7, question_id=8, anwser="x"), line(2, id=9, source={"a": 1}), line(3, split="train")]
    pool = read_pool(questions([*lines, {"image": "img/4.png", "answer": "a dog", "id": 3, "license": "CC"}]), ())
    assert len(pool.records) == 4
    text = only(pool, "UNKNOWN_FIELDS")
    assert all(f"'{name}'" in text for name in ("id", "question_id", "anwser", "source", "license"))
    assert "question, answer, split" in text


@pytest.mark.parametrize("text", ["\u0645\u06cc\u200c\u0634\u0648\u062f", "\U0001f469\u200d\U0001f52c"])
def test_words_and_signs_that_need_joiners_are_text(questions, text):
    (record,) = read_pool(questions([line(1, question=f"{text}?", answer=text)]), ()).records
    assert (record.question, record.label) == (f"{text}?", text)


def test_one_line_in_another_encoding_is_named_and_skipped(questions, tmp_path):
    settings = questions([line(1), line(2), line(3)])
    file = tmp_path / "data" / "questions.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = '{"image": "img/2.png", "answer": "ein Tier namens \u00e9"}\n'.encode("latin-1")
    file.write_bytes(b"".join(lines))
    pool = read_pool(settings, ())
    message = only(pool, "BAD_LINE")
    assert "line 2" in message
    assert "not UTF-8 text (byte 0xe9)" in message
    assert len(pool.records) == 2


def test_a_missing_image_a_folder_and_a_broken_image_are_named(questions, tmp_path):
    (tmp_path / "data" / "img" / "7.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    settings = questions([line(1), line(99), {**line(1), "image": "img"}, line(7)])
    pool = read_pool(settings, ())
    assert [record.key for record in pool.records] == ["img/1.png: what is it?"]
    missing, folder = messages(pool, "MISSING_IMAGE")
    assert "img/99.png" in missing
    assert "not a file" in folder
    assert "img/7.png" in only(pool, "CORRUPT_IMAGE")
    assert pool.unreadable == ("img/7.png: what is it?",)


def test_a_path_outside_the_folder_is_never_opened(questions, tmp_path, fill):
    fill(tmp_path / "elsewhere", 50, 1)
    os.symlink(tmp_path / "elsewhere" / "50.png", tmp_path / "data" / "img" / "link.png")
    outside = ["../elsewhere/50.png", str(tmp_path / "elsewhere" / "50.png"), "img/link.png"]
    settings = questions([line(1), *({**line(1), "image": path} for path in outside)])
    pool = read_pool(settings, ())
    assert len(pool.records) == 1
    assert len(messages(pool, "OUTSIDE_PATH")) == 3


def test_the_same_question_twice_counts_once_and_contradictions_not_at_all(questions, tmp_path):
    lines = [line(1), line(1), line(2, answer="a dog"), line(2, answer="a cat"), line(3)]
    pool = read_pool(questions(lines), ())
    assert [record.key for record in pool.records] == ["img/1.png: what is it?", "img/3.png: what is it?"]
    assert "line 2" in only(pool, "DUPLICATE_QUESTION")
    assert len(messages(pool, "CONFLICTING_ANSWERS")) == 2


def test_one_answer_written_in_two_ways_counts_in_neither_and_is_said_to_be_one(questions):
    pool = read_pool(questions([line(1, answer="Red"), line(1, answer="red."), line(2, answer="-5")]), ())
    assert [record.label for record in pool.records] == ["-5"]
    told = messages(pool, "CONFLICTING_ANSWERS")
    assert len(told) == 2
    assert all("in another spelling" in text for text in told)
    pool = read_pool(questions([line(1, answer="-5"), line(1, answer="5"), line(2)]), ())
    assert len(messages(pool, "CONFLICTING_ANSWERS")) == 2


def test_a_line_on_both_sides_counts_on_neither(questions):
    drawn = read_pool(questions([line(2)]), ()).records[0].split
    other = "test" if drawn == "train" else "train"
    lines = [line(1, split="test"), line(1, split="train"), line(2), line(2, split=drawn), line(3), line(3)]
    pool = read_pool(questions(lines), ())
    assert {record.key for record in pool.records} == {"img/2.png: what is it?", "img/3.png: what is it?"}
    assert "line 5" in only(pool, "DUPLICATE_QUESTION")
    pool = read_pool(questions([line(2), line(2, split=other), line(3)]), ())
    assert [record.key for record in pool.records] == ["img/3.png: what is it?"]


def test_names_with_colons_are_told_apart(questions, tmp_path):
    for name in ("a", "a: b"):
        (tmp_path / "data" / name).write_bytes((tmp_path / "data" / "img" / f"{len(name)}.png").read_bytes())
    lines = [
        {"image": "a", "question": "b: c", "answer": "one"},
        {"image": "a: b", "question": "c", "answer": "two"},
    ]
    pool = read_pool(questions(lines), ())
    assert sorted((record.question, record.label) for record in pool.records) == [("b: c", "one"), ("c", "two")]
    assert len({record.key for record in pool.records}) == 2
    assert pool.problems == ()


def test_a_copy_under_another_name_counts_once_for_each_question(questions, tmp_path):
    (tmp_path / "data" / "img" / "copy.png").write_bytes((tmp_path / "data" / "img" / "1.png").read_bytes())
    copy = {**line(1), "image": "img/copy.png"}
    pool = read_pool(questions([line(1), copy, {**copy, "question": "how many?", "answer": "two"}]), ())
    assert sorted(record.question for record in pool.records) == ["how many?", "what is it?"]
    assert "same picture" in only(pool, "DUPLICATE_IMAGE")


def test_the_training_sets_identity_depends_on_the_questions(questions):
    def identity(question):
        lines = [line(n, question=question, split="train") for n in range(3)]
        return load_site_data(questions(lines), ()).manifest_digest

    assert identity("what is it?") != identity("how many?")


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (None, "DATA_UNREADABLE", r"questions\.jsonl"),
        ('{"image": "é"}'.encode("latin-1"), "DATA_UNREADABLE", "line 1: it is not UTF-8"),
        (b"\n", "NO_IMAGES", "has no image"),
        (b'{"img": "img/1.png", "q": "what?", "a": "dog"}\n', "JSONL_FIELDS", 'line 1.*"question"'),
    ],
)
def test_a_file_without_a_usable_line_is_refused(tmp_path, content, code, words):
    file = tmp_path / "questions.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_pool(DataSettings("questions", str(file)), ())
    assert caught.value.code == code
    assert caught.value.advice


@pytest.mark.parametrize("more", [{"partition": "iid", "num_sites": 2}, {"class_map": {"a": "b"}}])
def test_settings_that_mean_nothing_for_questions_are_refused(more):
    with pytest.raises(ConfigError, match=next(iter(more))):
        DataSettings("questions", "x.jsonl", **more)


def test_a_site_without_training_questions_is_refused(questions):
    with pytest.raises(DataError) as caught:
        load_site_data(questions([line(n, split="test") for n in range(3)]), ())
    assert caught.value.code == "NO_TRAINING_IMAGES"


def test_a_caption_is_a_line_without_a_question(questions):
    lines = [{"image": f"img/{n}.png", "answer": f"a dog  number {n}"} for n in range(10)]
    data = load_site_data(questions([*lines, lines[3]]), ())
    records = (*data.train, *data.test)
    assert {record.question for record in records} == {""}
    assert {record.label for record in records} == {f"a dog number {n}" for n in range(10)}
    assert codes(data) == ["DUPLICATE_QUESTION"]


def test_every_caption_of_a_picture_is_an_example_on_one_side(questions, tmp_path):
    (tmp_path / "data" / "img" / "copy.png").write_bytes((tmp_path / "data" / "img" / "0.png").read_bytes())
    lines = [{"image": f"img/{n}.png", "answer": f"caption {c} of {n}"} for n in range(20) for c in range(5)]
    copies = [{"image": "img/copy.png", "answer": "caption 1 of 0"}, {"image": "img/copy.png", "answer": "a copy"}]
    data = load_site_data(questions([*lines, *copies]), ())
    assert len(data.train) + len(data.test) == 101
    assert not {record.digest for record in data.train} & {record.digest for record in data.test}
    assert codes(data) == ["DUPLICATE_IMAGE"]
    manifest = manifest_of(data)
    assert sum(len(images) for images in manifest.images.values()) == 101  # every line has a name of its own


@pytest.mark.privacy
def test_one_line_more_is_at_most_one_example_more_or_less(questions):
    """The guarantee's unit: whatever line is added, and wherever, what is trained on differs by one example."""

    def examples(lines):
        records = read_pool(questions(lines), ()).records
        return Counter((r.digest, r.question, r.label) for r in records if r.split == "train")

    base = [
        line(1, split="train"),
        line(1, split="train"),
        {"image": "img/1.png", "answer": "a dog", "split": "train"},
        {"image": "img/1.png", "answer": "a cat", "split": "train"},
        line(2, split="train"),
    ]
    captions = [{"image": f"img/{n}.png", "answer": text} for n in (1, 2) for text in ("a dog", "A bird.")]
    more = [
        *captions,
        line(1),
        line(1, answer="a cat"),
        line(1, answer="A dog."),
        line(2, answer="A DOG"),
        line(2, split="test"),
        line(2, answer="a cat"),
        line(3),
    ]
    for added in more:
        for place in (0, len(base)):
            with_it = [*base[:place], {"split": "train", **added}, *base[place:]]
            one, other = examples(base), examples(with_it)
            assert ((one - other) + (other - one)).total() <= 1


def test_captions_and_questions_about_one_picture_are_examples_of_their_own(questions):
    pool = read_pool(questions([{"image": "img/1.png", "answer": "a dog"}, line(1), line(1, question="and this?")]), ())
    assert sorted(record.question for record in pool.records) == ["", "and this?", "what is it?"]
    assert len({record.split for record in pool.records}) == 1
    assert pool.problems == ()
