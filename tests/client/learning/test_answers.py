"""When answers count as the same, and how far captions agree."""

import pytest

from dpfpl_client.learning.answers import normalised, same_answer, word_overlap


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Red.", "red"),
        ("  two   dogs", "Two dogs!"),
        ("\uff11\uff12", "12"),
        ("STRASSE", "stra\u00dfe"),
        ("(yes)", "yes"),
    ],
)
def test_what_does_not_count(given, expected):
    assert same_answer(given, expected)
    assert word_overlap(given, expected) == 1.0


def test_what_counts():
    assert not same_answer("a red dog", "a dog")
    assert not same_answer("...", "...")
    assert normalised("well-known, isn't it?") == "well-known isn't it"


@pytest.mark.parametrize(
    ("given", "expected", "overlap"),
    [
        ("a red dog", "a dog", 2 * 2 / 5),
        ("dog red a", "a red dog", 1.0),
        ("the the the the", "the cat", 2 * 1 / 6),
        ("a cat", "the dog", 0.0),
        ("", "a dog", 0.0),
        ("a dog", "...", 0.0),
        ("", "", 0.0),
        ("A Dog, barking!", "a dog barking loudly", 2 * 3 / 7),
    ],
)
def test_overlap_is_the_f1_of_words_with_repetitions(given, expected, overlap):
    assert word_overlap(given, expected) == pytest.approx(overlap)
    assert word_overlap(expected, given) == pytest.approx(overlap)
