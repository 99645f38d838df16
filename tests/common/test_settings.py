"""Tables become frozen values strictly: every wrong key, type or file is named."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpfpl_common.config import from_table, read_toml, to_table
from dpfpl_common.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    depth: int
    label: str = "x"


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float = 0.5
    on: bool = False
    limit: float | None = None
    names: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    inner: Inner = field(default_factory=lambda: Inner(1))


FULL = {
    "name": "n",
    "rate": 1.5,
    "on": True,
    "limit": 2.0,
    "names": ["a", "b"],
    "numbers": [1, 2],
    "words": {"k": "v"},
    "inner": {"depth": 3, "label": "y"},
}


def refused(table, code, *parts):
    with pytest.raises(ConfigError) as caught:
        from_table(Outer, table, "file.toml")
    assert caught.value.code == code
    for part in ("file.toml", *parts):
        assert part in str(caught.value)


def test_every_field_is_read_and_written_back():
    value = from_table(Outer, FULL, "file.toml")
    assert value == Outer("n", 1.5, True, 2.0, ("a", "b"), (1, 2), {"k": "v"}, Inner(3, "y"))
    assert to_table(value) == FULL
    assert from_table(Outer, to_table(value), "again") == value


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
    assert from_table(Outer, to_table(value), "again") == value


def test_defaults_fill_what_is_missing():
    assert from_table(Outer, {"name": "n"}, "file.toml") == Outer("n")
    assert from_table(Outer, {"name": "n", "limit": None}, "file.toml").limit is None


def test_a_whole_number_is_a_float_and_a_float_is_no_whole_number():
    rate = from_table(Outer, {"name": "n", "rate": 2}, "file.toml").rate
    assert isinstance(rate, float)
    assert rate == 2.0
    refused({"name": "n", "inner": {"depth": 2.0}}, "WRONG_TYPE", "inner depth", "2.0", "int")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("name", 3, "str"),
        ("rate", "0.5", "float"),
        ("rate", True, "float"),
        ("rate", float("nan"), "float"),
        ("rate", float("inf"), "float"),
        ("rate", 10**400, "float"),
        ("on", 1, "bool"),
        ("on", "true", "bool"),
        ("limit", "none", "float"),
        ("names", "ab", "a list"),
        ("names", ["a", 1], "names[1]"),
        ("numbers", [True], "numbers[0]"),
        ("words", {"k": 1}, "a table of strings"),
        ("words", ["k"], "a table of strings"),
        ("inner", 1, "a table"),
        ("inner", {"depth": True}, "int"),
        ("inner", None, "a table"),
    ],
)
def test_a_wrong_type_names_key_and_expectation(key, value, expected):
    refused({"name": "n", key: value}, "WRONG_TYPE", key, expected)


def test_unknown_and_missing_keys_are_named():
    refused({"name": "n", "ratee": 1}, "UNKNOWN_KEY", "'ratee'", "rate")
    refused({"name": "n", "inner": {"depth": 1, "deep": 1}}, "UNKNOWN_KEY", "inner", "'deep'")
    refused({}, "MISSING_KEY", "'name'")
    refused({"name": "n", "inner": {}}, "MISSING_KEY", "inner", "'depth'")
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
        from_table(Outer, read_toml(path), "site.toml")


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
