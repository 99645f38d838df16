"""DR11: file names with escape sequences and cells that begin a formula are shown and written harmlessly."""

import csv
import io
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpfpl_client.cli import main as client
from dpfpl_client.cli.options import say
from dpfpl_client.use.predict import FileResult, as_line, write_csv
from dpfpl_common.errors import ConfigError
from dpfpl_common.ops.telemetry import PlainFormatter
from dpfpl_common.ops.text import FORMULA_STARTS, first_line, harmless_cell, printable, printable_lines

HOSTILE = "cat\x1b]0;owned\x07\x1b[2J\u202egnp.exe\x9b31m"
FORMULAS = ("=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1")


@given(st.text())
def test_DR11_nothing_that_steers_a_terminal_gets_through(text):
    for shown in (printable(text), printable_lines(text), harmless_cell(text)):
        assert not {
            char for char in shown if not char.isprintable() and char not in "\n\t" and not "\udc80" <= char <= "\udcff"
        }
    assert "\n" not in printable(text) + harmless_cell(text)


@given(st.text())
def test_DR11_an_errors_first_line_is_one_line_whatever_it_says(text):
    shown = first_line(ValueError(text))
    assert shown
    assert shown.isprintable()
    assert len(shown) <= 200


@pytest.mark.parametrize("text", ["", "\n", " \n\t"])
def test_an_error_without_text_is_called_by_its_type(text):
    assert first_line(ValueError(text)) == "ValueError"


def test_an_error_of_several_lines_is_its_first_one():
    assert first_line(ValueError("\nno such name\nsee there")) == "no such name"


@pytest.mark.parametrize("cell", FORMULAS)
def test_DR11_no_cell_begins_a_formula(cell):
    assert harmless_cell(cell).startswith("'")
    assert not harmless_cell(cell).lstrip(" ").startswith(FORMULA_STARTS)


def test_DR11_ordinary_names_stay_as_they_are():
    for name in ("photo 1.png", "x-ray_3.png", "\u99ac.png", "na\u00efve.png", "bad\udcff.png"):
        assert harmless_cell(name) == name


def test_DR11_predict_and_its_table(tmp_path, capsys):
    results = [FileResult(Path(HOSTILE), error="=cmd"), FileResult(Path("=1+1.png"), error="it does not exist")]
    say(as_line(results[0]))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    write_csv(tmp_path / "table.csv", results)
    text = (tmp_path / "table.csv").read_text()
    assert "\x1b" not in text
    rows = list(csv.reader(io.StringIO(text)))
    assert [row[0][0] for row in rows[1:]] == ["c", "'"]
    assert rows[1][1] == "'=cmd"


def test_DR11_errors_and_logs(capsys):
    with pytest.raises(SystemExit):
        client._fail(ConfigError(code="NO_DATA", message=f"{HOSTILE} is missing.", advice="Look."))
    record = logging.LogRecord("dpfpl_client", logging.INFO, "", 0, "%s is damaged", (HOSTILE,), None)
    for shown in (capsys.readouterr().err, PlainFormatter().format(record)):
        assert "\x1b]" not in shown
        assert "\x07" not in shown
        assert "\u202e" not in shown
