"""The report where answers are words: questions or captions, and nowhere classes."""

import io
import re

import pytest
from report_samples import catalogue, fields, make_result, plain
from rich.console import Console

from dpfpl_common.experiment import TASKS
from dpfpl_server.report import render_report
from dpfpl_server.report.texts import LANGUAGES, OWN_WORDS, Texts
from dpfpl_server.runs.words import MEASURED
from dpfpl_server.watch.terminal import print_result


def page(task, language="en", counts=None):
    result = make_result(rounds=4)
    result["config"]["task"] = {"kind": task}
    result["config"]["classes"] = [] if task in OWN_WORDS else result["config"]["classes"]
    for site in result["sites"]:
        site["num_classes"] = 0 if task in OWN_WORDS else 2
        if counts:
            site["test_images"] = counts
    return render_report(result, language)


ALONE = ("local_only_evidence", "local_only_no_noise_evidence")
EVIDENCE = {
    *(f"baselines.{key}" for way in ALONE for key in (way, f"{way}_meaning")),
    *("baselines.chosen_evidence", "baselines.chosen_text", "baselines.chosen_nothing"),
    *("baselines.text", "answer.nothing_found", "left.evidence", "left.evidence_secure"),
    *(f"scores.{key}" for key in ("text", "alone", "both", "evidence")),
    *(key for key in catalogue("en") if key.startswith("change.")),
}
"""Texts about class vectors, which only an experiment with classes has."""


@pytest.mark.parametrize("task", OWN_WORDS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_tasks_texts_stand_for_existing_ones_with_the_same_numbers(task, language):
    base, own = catalogue(language), catalogue(language, task)
    assert set(own) == set(catalogue("en", task))
    assert set(own) <= set(base)
    for key, text in own.items():
        dropped = {"uncertainty.known", "uncertainty.unknown"} if task == "caption" else set()
        assert fields(text) == fields(base[key]) or key in dropped, key
    classes = {key for key, text in base.items() if re.search("class|クラス", text)} - {"accuracy.classes", *EVIDENCE}
    assert classes <= set(own), "texts about classes that have no others"


@pytest.mark.parametrize(("language", "word"), [("en", r"\b[Cc]lass"), ("ja", "クラス")])
@pytest.mark.parametrize("task", OWN_WORDS)
def test_nothing_is_said_of_classes(task, language, word):
    shown = page(task, language)
    configuration = shown.index(Texts(language)("details.config_caption"))  # key by key, no prose
    assert re.findall(word, plain(shown[shown.index("<main>") : configuration])) == []
    assert re.search(word, plain(page("classify", language)))


def test_questions_are_called_questions():
    shown = plain(page("vqa", counts=40))
    assert "To a site's own questions 79.9 % of the answers are right" in shown
    assert "Others' questions, %" in shown
    assert "one training question with its image and answer" in shown
    assert "95 % interval after" in shown


def test_the_overlap_of_captions_is_no_accuracy_and_has_no_interval():
    shown = plain(page("caption", counts=40))
    assert "The word overlap with a site's own captions is 79.9 %" in shown
    assert "95 % interval after" not in shown
    assert "Wilson" not in shown
    assert "No interval is stated" in shown
    assert "Wilson" in plain(page("classify", counts=40))


@pytest.mark.parametrize(("task", "things", "measured"), [(task, *words) for task, words in MEASURED.items()])
def test_the_terminals_table_says_what_was_measured(task, things, measured):
    result = make_result()
    result["config"]["task"] = {"kind": task}
    console = Console(file=io.StringIO(), width=160)
    print_result(result, console)
    shown = console.file.getvalue()
    assert f"{measured} before → after" in shown
    assert {match for match in ("classes", "questions", "captions") if match in shown} == {things}


def test_every_task_has_words():
    assert set(MEASURED) == set(TASKS)
