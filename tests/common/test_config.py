"""Tables become frozen values strictly: every wrong key, type or file is named."""

import dataclasses
from dataclasses import field
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, Strict

from dpfpl_common.config import ImpossibleError, Texts, build, read_toml, set_keys, settings, to_table
from dpfpl_common.errors import ConfigError


@settings
class Inner:
    depth: int
    label: str = "x"

    def __post_init__(self):
        if self.label == "deep" and self.depth < 9:
            raise ImpossibleError("depth", self.depth, "9 or more where label is deep")


@settings
class Outer:
    name: str
    rate: float = 0.5
    on: bool = False
    limit: float | None = None
    names: Texts = ()
    numbers: Annotated[tuple[int, ...], Strict(False)] = ()
    kind: Literal["good", "better"] = "good"
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    maybe: Inner | None = None
    words: dict[str, str] = field(default_factory=dict)
    inner: Inner = field(default_factory=lambda: Inner(1))


FULL = {
    "name": "n",
    "rate": 1.5,
    "on": True,
    "limit": 2.0,
    "names": ["a", "b"],
    "numbers": [1, 2],
    "kind": "better",
    "share": 0.5,
    "maybe": None,
    "words": {"k": "v"},
    "inner": {"depth": 3, "label": "y"},
}


def refused(table, code, *parts):
    with pytest.raises(ConfigError) as caught:
        build(Outer, table, "file.toml")
    assert caught.value.code == code
    for part in ("file.toml", *parts):
        assert part in str(caught.value)


def test_every_field_is_read_and_written_back():
    value = build(Outer, FULL, "file.toml")
    assert value == Outer("n", 1.5, True, 2.0, ("a", "b"), (1, 2), "better", 0.5, None, {"k": "v"}, Inner(3, "y"))
    assert to_table(value) == FULL
    assert build(Outer, to_table(value), "again") == value


@given(
    st.builds(
        Outer,
        name=st.text(),
        rate=st.floats(allow_nan=False, allow_infinity=False),
        on=st.booleans(),
        limit=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        names=st.lists(st.text()).map(tuple),
        numbers=st.lists(st.integers()).map(tuple),
        words=st.dictionaries(st.text(), st.text()),
        inner=st.builds(Inner, depth=st.integers(), label=st.text()),
    )
)
def test_round_trip(value):
    assert build(Outer, to_table(value), "again") == value


def test_defaults_fill_what_is_missing():
    assert build(Outer, {"name": "n"}, "file.toml") == Outer("n")
    assert build(Outer, {"name": "n", "limit": None}, "file.toml").limit is None


def test_a_whole_number_is_a_float_and_a_float_is_no_whole_number():
    rate = build(Outer, {"name": "n", "rate": 2}, "file.toml").rate
    assert isinstance(rate, float)
    assert rate == 2.0


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("name", 3, "name is 3, expected text"),
        ("rate", "0.5", "rate is '0.5', expected a number"),
        ("rate", True, "rate is True, expected a number"),
        ("rate", float("nan"), "rate is nan, expected a finite number"),
        ("rate", float("inf"), "rate is inf, expected a finite number"),
        ("rate", 10**400, "expected a number"),
        ("rate", 10**5000, "rate is a number of thousands of digits, expected a number"),
        ("on", 1, "on is 1, expected true or false"),
        ("on", "true", "on is 'true', expected true or false"),
        ("limit", "none", "limit is 'none', expected a number"),
        ("names", "ab", "names is 'ab', expected a list"),
        ("names", ["a", 1], "names[1] is 1, expected text"),
        ("numbers", [True], "numbers[0] is True, expected a whole number"),
        ("words", {"k": 1}, "[words] k is 1, expected text"),
        ("words", ["k"], "words is ['k'], expected a table"),
        ("inner", 1, "inner is 1, expected a table"),
        ("inner", {"depth": True}, "[inner] depth is True, expected a whole number"),
        ("inner", {"depth": 2.0}, "[inner] depth is 2.0, expected a whole number"),
        ("inner", None, "inner is None, expected a table"),
        ("maybe", {"depth": "1"}, "[maybe] depth is '1', expected a whole number"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_wrong_type_names_key_value_and_expectation(key, value, words):
    refused({"name": "n", key: value}, "WRONG_TYPE", words)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("kind", "best", "kind is 'best', expected 'good' or 'better'"),
        ("share", 0, "share is 0, expected a number above 0 up to 1"),
        ("share", 1.5, "share is 1.5, expected a number above 0 up to 1"),
        ("inner", {"depth": 3, "label": "deep"}, "[inner] depth is 3, expected 9 or more where label is deep"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_an_impossible_value_names_key_value_and_expectation(key, value, words):
    refused({"name": "n", key: value}, "IMPOSSIBLE_VALUE", words)


def test_construction_and_replacement_are_checked_like_a_file():
    """A value that no file may hold cannot come in by another way, and its error has the same face."""
    good = Outer("n")
    for wrong in (
        lambda: Outer("n", share=2.0),
        lambda: Outer("n", rate="0.5"),
        lambda: Outer(3),
        lambda: dataclasses.replace(good, share=2.0),
        lambda: dataclasses.replace(Inner(3), label="deep"),
    ):
        with pytest.raises(ConfigError, match=r"(share|rate|name|depth) is .*, expected"):
            wrong()
    with pytest.raises(dataclasses.FrozenInstanceError):
        good.name = "other"


def test_set_changes_a_copy_and_reads_values_as_toml():
    table = {"name": "n", "inner": {"depth": 1}}
    changed = set_keys(table, ["inner.depth=3", "inner.label=two words", "names=['a', 'b']", "on=true", "rate=1e-5"])
    assert changed == {
        "name": "n",
        "inner": {"depth": 3, "label": "two words"},
        "names": ["a", "b"],
        "on": True,
        "rate": 1e-5,
    }
    assert table == {"name": "n", "inner": {"depth": 1}}
    assert set_keys({}, ["a.b.c='x=y'"]) == {"a": {"b": {"c": "x=y"}}}
    assert set_keys({}, ["a=1\nb=2"]) == {"a": "1\nb=2"}  # one key at a time
    for wrong in ("a", "=1", "a.=1", ".a=1", ""):
        with pytest.raises(ConfigError, match="KEY=VALUE") as caught:
            set_keys({}, [wrong])
        assert caught.value.code == "BAD_ASSIGNMENT"


def test_unknown_and_missing_keys_are_named():
    refused({"name": "n", "ratee": 1}, "UNKNOWN_KEY", "'ratee'", "rate")
    refused({"name": "n", "inner": {"depth": 1, "deep": 1}}, "UNKNOWN_KEY", "[inner] has", "'deep'", "depth, label")
    refused({"name": "n", "maybe": {"depth": 1, "deep": 1}}, "UNKNOWN_KEY", "[maybe] has", "'deep'", "depth, label")
    refused({"nam": "n"}, "UNKNOWN_KEY", "'nam'")  # not that name is missing
    refused({}, "MISSING_KEY", "'name'")
    refused({"name": "n", "inner": {}}, "MISSING_KEY", "[inner] lacks", "'depth'")
    refused([], "WRONG_TYPE", "a table")


@pytest.mark.parametrize(
    "content",
    [b"a = 1\na = 2\n", b"a = ", b"\xff\xfe", b"[t]\n[t]\n", b"a = " + b"9" * 5000, b"a = " + b"[" * 50_000],
    ids=["duplicate", "syntax", "not utf-8", "duplicate table", "number of 5000 digits", "nested"],
)
def test_bad_toml_is_a_config_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "site.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"site\.toml is not valid TOML") as caught:
        read_toml(path)
    assert caught.value.code == "BAD_TOML"


def test_a_number_too_long_to_print_is_still_refused_by_name(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text("name = 'n'\nrate = 0x" + "f" * 6000)
    with pytest.raises(ConfigError, match="rate"):
        build(Outer, read_toml(path), "site.toml")


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_toml(tmp_path / "none.toml")
    assert caught.value.code == "FILE_MISSING"
    with pytest.raises(ConfigError) as caught:
        read_toml(tmp_path)
    assert caught.value.code == "FILE_UNREADABLE"


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "notepad.toml").write_bytes(b'\xef\xbb\xbfname = "a"\n')
    assert read_toml(tmp_path / "notepad.toml") == {"name": "a"}
