"""Checks of an experiment's values; what fails them is an error that names key, value and expectation."""

import dataclasses
from typing import Any

from dpfpl_common.errors import ConfigError
from dpfpl_common.settings import shown

__all__ = ["choice", "floats_as_floats", "impossible", "within"]


def choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not one of these."""
    if value not in allowed:
        raise impossible(key, value, "one of " + ", ".join(allowed))


def within(key: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside of an interval; NaN is outside."""
    if not low <= value <= high:
        raise impossible(key, value, f"a number from {low:g} to {high:g}")


def impossible(key: str, value: object, expected: str) -> ConfigError:
    """The error for a value that cannot be."""
    return ConfigError(
        code="IMPOSSIBLE_VALUE",
        message=f"The experiment's {key} is {shown(value)}, expected {expected}.",
        advice="Correct experiment.toml.",
    )


def floats_as_floats(settings: Any) -> None:
    """A whole number given for a float is the same setting, so it must give the same digest."""
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if f.type in (float, float | None) and isinstance(value, int) and not isinstance(value, bool):
            try:
                object.__setattr__(settings, f.name, float(value))
            except OverflowError:
                raise impossible(f.name, value, "a number") from None
