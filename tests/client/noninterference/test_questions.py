"""NI2: sites whose files of questions differ in one line look the same, but for the noised payloads."""

import json

import pytest
from every_state import MECHANISMS, every_state

from dpfpl_bench.demo.drawn_questions import drawn_sites, write_questions

pytestmark = pytest.mark.privacy


def questions(folder):
    return write_questions(folder, drawn_sites(1, 6, 4, seed=9)[0])


def captions(folder):
    return write_questions(folder, drawn_sites(1, 6, 4, seed=9, captions=True)[0])


def line(file, **fields):
    with file.open("a", encoding="utf-8") as text:
        text.write(json.dumps(fields, ensure_ascii=False) + "\n")


def first(file):
    return json.loads(file.read_text(encoding="utf-8").splitlines()[0])


def another_answer(answer):
    return lambda file: line(file, **(first(file) | {"answer": answer}))


def asked_too(answer):
    return lambda file: line(file, **(first(file) | {"question": "and what else?", "answer": answer}))


def another_spelling(file):
    line(file, **(first(file) | {"answer": first(file)["answer"].upper()}))


def the_other_side(file):
    line(file, **(first(file) | {"split": "test"}))


def same_picture_tested(file):
    line(file, image=first(file)["image"], question="is it raining?", answer="no", split="test")


NEIGHBOURS = {
    "one more": (questions, "vqa", lambda f: line(f, image="pictures/0001.png", question="how many?", answer="two")),
    "one fewer": (questions, "vqa", lambda f: f.write_text("\n".join(f.read_text().splitlines()[1:]) + "\n")),
    "the same twice": (questions, "vqa", lambda f: line(f, **first(f))),
    "another answer": (questions, "vqa", another_answer("a horse")),
    "another spelling": (questions, "vqa", another_spelling),
    "a copy across train and test": (questions, "vqa", the_other_side),
    "a question about a trained picture in test": (questions, "vqa", same_picture_tested),
    "an answer that is too long": (questions, "vqa", asked_too("very " * 100 + "long")),
    "a line without an image": (questions, "vqa", lambda f: line(f, image="none.png", question="what?", answer="it")),
    "another caption of a picture": (captions, "caption", another_answer("a thing in a place")),
}


# Under ``none`` only less leaves than under ``noised``.
CASES = [(case, "noised") for case in NEIGHBOURS] + [("one more", "none"), ("an answer that is too long", "none")]
MECHANISMS_OF_WORDS = {name: MECHANISMS[name] for name in ("per-step", "local")}
EVERY_STATE = {task: every_state((), task=task, mechanisms=MECHANISMS_OF_WORDS) for task in ("vqa", "caption")}


@pytest.mark.parametrize(("case", "metrics"), CASES)
def test_ni2_neighbouring_questions_look_the_same(case, metrics, neighbours_differ):
    make, task, change = NEIGHBOURS[case]
    found = neighbours_differ("questions", make, change, EVERY_STATE[task], metrics)
    assert not found, found
