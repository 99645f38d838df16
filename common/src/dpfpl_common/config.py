"""Turns a table of TOML or JSON into a frozen dataclass, strictly."""

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from dpfpl_common.errors import ConfigError

__all__ = ["from_table", "read_toml", "shown", "to_table"]

T = TypeVar("T")


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


def from_table(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build the dataclass ``cls`` from a table.

    Args:
        cls: a dataclass whose fields are str, int, float, bool, tuples of these, optional values,
            ``Mapping[str, str]`` or other dataclasses (nested tables).
        table: the table, as parsed.
        where: its name in messages, for instance ``experiment.toml [privacy]``.

    Raises:
        ConfigError: an unknown key, a missing key or a value of another type; the message names key and value.
    """
    if not isinstance(table, Mapping):
        raise _wrong(where, table, "a table")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - set(fields))
    if unknown:
        raise ConfigError(
            code="UNKNOWN_KEY",
            message=f"{where} has the unknown key {unknown[0]!r}.",
            advice=f"Known keys: {', '.join(fields)}.",
        )
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _convert(hints[name], table[name], f"{where} {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(
                code="MISSING_KEY", message=f"{where} lacks the key {name!r}.", advice="Add it; see the documentation."
            )
    return cls(**values)


def to_table(value: Any) -> Any:
    """The inverse of ``from_table``: plain dicts, lists and scalars, ready for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_table(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_table(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_table(item) for key, item in value.items()}
    return value


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        return None if value is None else _convert(options[0], value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(where, value, "a list")
        inner = typing.get_args(hint)[0]
        return tuple(_convert(inner, item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(v, str) for v in value.values()):
            raise _wrong(where, value, "a table of strings")
        return dict(value)
    if dataclasses.is_dataclass(hint):
        return from_table(typing.cast(type, hint), value, where)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and _finite(value):
        return float(value)
    if hint is str and isinstance(value, str):
        return value
    raise _wrong(where, value, getattr(hint, "__name__", str(hint)))


def _wrong(where: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(
        code="WRONG_TYPE", message=f"{where} is {shown(value)}, expected {expected}.", advice="Correct the value."
    )


def shown(value: object) -> str:
    """A wrong value as a message shows it; Python refuses to write out whole numbers of thousands of digits."""
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False
