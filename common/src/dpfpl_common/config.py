"""Settings: frozen, strict pydantic dataclasses, built once at the edge; every mistake is a ConfigError.

A file (TOML), a message (JSON) or flags become a table of plain values; ``build`` makes settings of it. A message about
a mistake names the key as it stands in the file, the value and what was expected.
"""

import dataclasses
import functools
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args

import pydantic

from dpfpl_common.errors import ConfigError

__all__ = [
    "ImpossibleError", "Texts", "build", "key_values", "matching", "read_toml", "set_keys", "settings", "shown",
    "to_table",
]  # fmt: skip

T = TypeVar("T")
Texts = Annotated[tuple[str, ...], pydantic.Strict(False)]
"""A list of texts: TOML and JSON have lists, frozen settings have tuples."""

STRICT = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class ImpossibleError(ValueError):
    """What a check of a settings class raises; it becomes a ConfigError that also names file and table.

    Args:
        key: within the class that checks, with dots: ``rounds.min_sites``.
        value: what it is.
        expected: what it should have been.
    """

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(key)
        self.key, self.value, self.expected = tuple(key.split(".")) if key else (), value, expected


def matching(pattern: str, expected: str) -> pydantic.AfterValidator:
    """For ``Annotated[str, ...]``: text of which the whole matches, or what was expected."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ImpossibleError("", text, expected)
        return text

    return pydantic.AfterValidator(check)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(cls: type[T]) -> type[T]:
    """Make a class a frozen pydantic dataclass: no unknown key, no converted type, no NaN or infinity.

    Instances are made by ``build`` from a table, by their constructor, or from another one by ``dataclasses.replace``;
    all three check everything and raise a ConfigError.
    """

    def accept_tables(of: type[T], source: Any, handler: Callable[[Any], Any]) -> Any:
        schema = inner = handler(source)
        while inner["type"] != "dataclass":
            inner = inner["schema"]
        inner["strict"] = False  # of the class itself: a table will do; its fields stay strict
        return schema

    cls.__get_pydantic_core_schema__ = classmethod(accept_tables)  # type: ignore[attr-defined]
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=STRICT)(cls)
    checked = made.__init__

    @functools.wraps(checked)
    def construct(self: T, *args: Any, **kwargs: Any) -> None:
        try:
            checked(self, *args, **kwargs)
        except pydantic.ValidationError as error:
            raise _config_error(error, made, "") from None

    made.__init__ = construct
    return made  # type: ignore[no-any-return]


def build(cls: type[T], table: Any, where: str) -> T:
    """The settings that a table of TOML or JSON stands for.

    Args:
        cls: a class made by ``settings``.
        table: as parsed.
        where: the file's name in messages.

    Raises:
        ConfigError: an unknown or missing key, a value of another type, or an impossible value.
    """
    try:
        return pydantic.TypeAdapter(cls).validate_python(table)
    except pydantic.ValidationError as error:
        raise _config_error(error, cls, where) from None


def to_table(value: Any) -> Any:
    """The inverse of ``build``, for any dataclass: plain dicts, lists and scalars, ready for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_table(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_table(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_table(item) for key, item in value.items()}
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; duplicate keys and bad syntax are errors that name the file and the place."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows' Notepad writes a byte order mark
    except FileNotFoundError:
        raise ConfigError(code="FILE_MISSING", message=f"{path} does not exist.", advice="Check the path.") from None
    except OSError as error:
        raise ConfigError(
            code="FILE_UNREADABLE",
            message=f"{path} cannot be read ({error.strerror}).",
            advice="Check the file's owner and permissions.",
        ) from None
    except (ValueError, RecursionError) as error:  # bad syntax or UTF-8, a number of 5,000 digits, 5,000 brackets
        raise ConfigError(
            code="BAD_TOML", message=f"{path} is not valid TOML: {error}.", advice="Correct the file at that place."
        ) from None


def set_keys(table: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of the table with ``privacy.target_epsilon=2`` and the like set: what ``--set KEY=VALUE`` does.

    A value is read as TOML; what is no TOML is text, so that text needs no quotes.
    """
    changed = dict(table)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        *sections, last = key.strip().split(".")
        if not (equals and last and all(sections)):
            raise ConfigError(
                code="BAD_ASSIGNMENT",
                message=f"--set is {assignment!r}, expected KEY=VALUE.",
                advice="Write the key as in experiment.toml, with its table: --set privacy.target_epsilon=2.",
            )
        inner = changed
        for section in sections:
            part = inner.get(section, {})
            inner[section] = dict(part) if isinstance(part, Mapping) else {}
            inner = inner[section]
        inner[last] = _toml_value(text.strip())
    return changed


def key_values(flag: str, given: Iterable[str]) -> dict[str, str]:
    """The pairs of a flag that is given as KEY=VALUE once for each; the first equals sign parts them.

    Raises:
        ConfigError: one is no pair, or a key comes twice.
    """
    pairs: dict[str, str] = {}
    for text in given:
        key, _, value = text.partition("=")
        if not (key and value) or key in pairs:
            raise ConfigError(
                code="BAD_ASSIGNMENT",
                message=f"{flag} is {text!r}, expected NAME=VALUE, each name once.",
                advice="Correct it; --help has an example.",
            )
        pairs[key] = value
    return pairs


def shown(value: object) -> str:
    """A wrong value as a message shows it; Python refuses to write out whole numbers of thousands of digits."""
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 300 else text[:300] + "..."


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


_TYPES = {
    "bool_type": "true or false",
    "dataclass_type": "a table",
    "dict_type": "a table",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "text",
    "tuple_type": "a list",
}
"""Pydantic's names of errors about types, and what was expected."""
_UNKNOWN = ("unexpected_keyword_argument", "unexpected_positional_argument")
_Place = tuple[int | str, ...]


def _config_error(error: pydantic.ValidationError, cls: type, where: str) -> ConfigError:
    """Pydantic's first complaint in our words; unknown keys come before missing ones, which they often misspell."""
    first = min(error.errors(include_url=False), key=lambda detail: detail["type"] not in _UNKNOWN)
    kind, at, value = first["type"], first["loc"], first["input"]
    if at and isinstance(at[0], int) and kind not in _UNKNOWN:  # a positional argument of the constructor
        at = (list(_fields_at(cls, ()))[at[0]], *at[1:])
    if kind in _UNKNOWN:
        return ConfigError(
            code="UNKNOWN_KEY",
            message=f"{_name(where, at[:-1], table=True)} has the unknown key {str(at[-1])!r}.",
            advice=f"Known keys: {', '.join(_fields_at(cls, at[:-1]))}.",
        )
    if kind == "missing":
        return ConfigError(
            code="MISSING_KEY",
            message=f"{_name(where, at[:-1], table=True)} lacks the key {str(at[-1])!r}.",
            advice="Add it; see the documentation.",
        )
    expected = _expected(first, cls, at)
    ours = first.get("ctx", {}).get("error")
    if isinstance(ours, ImpossibleError):
        at, value = (*at, *ours.key), ours.value
    return ConfigError(
        code="WRONG_TYPE" if kind in _TYPES or kind == "finite_number" else "IMPOSSIBLE_VALUE",
        message=f"{_name(where, at)} is {shown(value)}, expected {expected}.",
        advice="Correct the value.",
    )


def _expected(detail: Mapping[str, Any], cls: type, at: _Place) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if isinstance(context.get("error"), ImpossibleError):
        return str(context["error"].expected)
    if kind.startswith(("greater_than", "less_than")):
        return _interval(cls, at)
    return _TYPES.get(kind) or str(context.get("expected") or detail["msg"].removeprefix("Input should be "))


def _interval(cls: type, at: _Place) -> str:
    """Both limits of a number, not only the one that was passed."""
    limits = {
        name: value
        for part in _fields_at(cls, at[:-1])[str(at[-1])].metadata
        for name in ("ge", "gt", "le", "lt")
        if (value := getattr(part, name, None)) is not None
    }
    words = {"ge": "from {:g}", "gt": "above {:g}", "le": "up to {:g}", "lt": "below {:g}"}
    return " ".join(["a number", *(words[name].format(limits[name]) for name in words if name in limits)])


def _name(where: str, at: _Place, *, table: bool = False) -> str:
    """A key or a table as it stands in the file: ``experiment.toml [privacy] trust``, ``[privacy]``, ``sites[1]``."""
    names = [part for part in at if isinstance(part, str)]
    key = "" if table or not names else names.pop() + "".join(f"[{part}]" for part in at if isinstance(part, int))
    return " ".join(part for part in (where, f"[{'.'.join(names)}]" if names else "", key) if part) or "The table"


def _fields_at(cls: Any, at: _Place) -> dict[str, Any]:
    """The keys of the table at that place, with what pydantic knows of them."""
    for part in at:
        hint = cls.__pydantic_fields__[part].annotation
        cls = next(arg for arg in (hint, *get_args(hint)) if hasattr(arg, "__pydantic_fields__"))
    return dict(cls.__pydantic_fields__)
