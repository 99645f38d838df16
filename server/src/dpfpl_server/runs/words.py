"""How the numbers and keys of a result read in plain words: in a terminal, and where a page has no words of its own."""

from collections.abc import Mapping
from decimal import ROUND_CEILING, Context, Decimal
from types import MappingProxyType
from typing import Any

__all__ = [
    "DASH",
    "MEASURED",
    "amount",
    "bytes_text",
    "change",
    "epsilon_text",
    "exact",
    "noise_is_real",
    "percent",
    "points",
    "seconds_text",
    "site_sample_rate",
]

DASH = "–"
"""Stands for a value that is not there."""

MEASURED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "classify": ("classes", "accuracy"),
        "vqa": ("questions", "right answers"),
        "caption": ("captions", "word overlap"),
    }
)
"""On what a prompt is tested, a site's own and the others', and what is measured, by the experiment's task."""

THREE_DIGITS_UP = Context(prec=3, rounding=ROUND_CEILING)


def site_sample_rate(result: Mapping[str, Any]) -> float:
    """Chance that a site joined a round; 1 where sites were not sampled."""
    return float(result["config"].get("privacy", {}).get("site_sample_rate", 1.0))


def percent(accuracy: float | None) -> str:
    """An accuracy in [0, 1] as "71.3 %"."""
    return DASH if accuracy is None else f"{100 * accuracy:.1f} %"


def points(before: float | None, after: float | None) -> str:
    """The way from one accuracy to another in percentage points, "+17.3"."""
    return DASH if before is None or after is None else f"{100 * (after - before):+.1f}"


def change(before: float | None, after: float | None) -> str:
    """Two accuracies in percent as "61.0 → 78.3"."""
    if before is None and after is None:
        return DASH
    return " → ".join(DASH if value is None else f"{100 * value:.1f}" for value in (before, after))


def epsilon_text(epsilon: float | str) -> str:
    """An epsilon of result.json with three digits, rounded up so that it never claims more than was computed."""
    if isinstance(epsilon, str):
        return epsilon
    rounded = THREE_DIGITS_UP.create_decimal(Decimal(repr(float(epsilon))))
    return f"{rounded:f}"


def exact(value: Any) -> str:
    """A setting as it is; floats in their shortest form."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def seconds_text(seconds: float | None) -> str:
    """A duration: "3.2 s" or "2 min 05 s"."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def bytes_text(count: float | None) -> str:
    """A number of bytes: "640 B", "12.3 kB" (of 1000 bytes)."""
    if count is None:
        return DASH
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000 or unit == "GB":
            break
    return f"{count:.1f} {unit}"


def amount(count: int, thing: str) -> str:
    """ "1 round", "3 rounds"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def noise_is_real(result: Mapping[str, Any]) -> bool:
    """Whether the noise came from the operating system; anything else is a simulation."""
    return bool(result["privacy"].get("noise") == "operating system")
