"""Checks of an experiment's values; what fails them is an error that names key, value and expectation."""

from dpfpl_common.errors import ConfigError
from dpfpl_common.settings import shown

__all__ = ["choice", "impossible", "within"]


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
