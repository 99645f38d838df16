"""When answers count as the same, and how far captions agree."""

import pytest

from dpfpl_client.data.questions import normalised, same_answer, word_overlap


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Red.", "red"),
        ("  two   dogs", "Two dogs!"),
        ("\uff11\uff12", "12"),
        ("STRASSE", "stra\u00dfe"),
        ("(yes)", "yes"),
        ("\u00ab oui \u00bb !", "oui"),
        ("\u00bfs\u00ed?", "s\u00ed"),
        ("yes \u2014", "yes"),
        ("- yes", "yes"),
        ("--yes--", "yes"),
    ],
)
def test_how_an_answer_is_written_does_not_count(given, expected):
    assert same_answer(given, expected)
    assert word_overlap(given, expected) == 1.0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("-5", "5"),
        ("-.5", ".5"),
        (".5", "5"),
        ("50%", "50"),
        ("10-", "10"),
        ("A-", "A"),
        ("A-", "A+"),
        ("5+", "5"),
        ("#3", "3"),
        ("T2*", "T2"),
        ("5\u00b0", "5"),
        ("5\u2032", "5\u2032\u2032"),
        ("5 mm", "5 cm"),
        ("<5", "5"),
        ("10\u00b2", "102"),
        ("1\u00bd", "11/2"),
        ("R&D", "RD"),
        ("-", "/"),
        ("?", "!"),
        ("-", "--"),
        ("a red dog", "a dog"),
        ("3-5", "35"),
    ],
)
def test_what_an_answer_says_counts(given, expected):
    assert not same_answer(given, expected)
    assert not same_answer(f"({given}).", f"{expected},")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("\u22125", "-5"),
        ("\u20135", "-5"),
        ("(-5).", "-5"),
        ("A\u2212", "A-"),
        ("Cl\u207b.", "Cl-"),
        ("3\u20135", "3-5"),
        ("50 %", "50%"),
        ("20 \u00b0C.", "20\u00b0C"),
        ("T2*.", "t2*"),
        ("10\u00b2", "10^2"),
        ("10\u207b\u2075", "10^-5"),
        ("\u00bd", "1/2"),
        ("1\u00bd", "1 1/2"),
        ("1\u1d57\u02b0", "1th"),
        ("...5", "5"),
        ("1,000.5.", "1,000.5"),
    ],
)
def test_one_value_written_in_two_ways_is_one_answer(given, expected):
    assert same_answer(given, expected)


@pytest.mark.parametrize("answer", ["-", "/", "?", "...", "+", "%", "\u2212", "( )", "\u2014"])
def test_an_answer_of_nothing_but_punctuation_can_be_right(answer):
    assert same_answer(answer, answer)
    assert same_answer(f" {answer}  ", answer)
    assert not same_answer("", answer)
    assert not same_answer("yes", answer)


def test_inside_a_word_everything_counts():
    assert normalised("well-known, isn't it?") == "well-known isn't it"


def test_around_the_words_of_a_caption_no_punctuation_counts():
    assert word_overlap("#3, 50% (T2*)", "3 50 t2") == 1.0


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
