"""Two policies as one: of every rule the stricter one."""

import dataclasses
from collections.abc import Callable
from typing import Any

from dpfpl_client.agent.policy import METRICS, Policy

__all__ = ["loosened", "stricter"]


def stricter(one: Policy, other: Policy) -> Policy:
    """The policy that lets pass only what both let pass."""
    return Policy(**{name: rule(getattr(one, name), getattr(other, name)) for name, rule in _RULES.items()})


def loosened(old: Policy, new: Policy) -> list[str]:
    """The rules in which ``new`` would let more pass than ``old``."""
    both = stricter(old, new)
    return [name for name in _RULES if _as_set(getattr(both, name)) != _as_set(getattr(new, name))]


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(entry for entry in other if entry in one)


def _both(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({*one, *other}))


def _approved(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """Approvals by both; ``name@digest`` is within ``name``, and all within ``*``."""

    def within(entry: str, entries: tuple[str, ...]) -> bool:
        return any(
            general in ("*", entry)
            or (entry != "*" and (entry.split("@")[0] == general or (entry.startswith(general) and "@" in general)))
            for general in entries
        )

    kept = [entry for entry in other if within(entry, one)] + [entry for entry in one if within(entry, other)]
    return tuple(dict.fromkeys(kept))


def _fewer_metrics(one: str, other: str) -> str:
    return min(one, other, key=METRICS.index)


def _as_set(value: Any) -> Any:
    return set(value) if isinstance(value, tuple) else value


_SPECIAL: dict[str, Callable[[Any, Any], Any]] = {
    "experiments": _approved,
    "trust": _common,
    "units": _common,
    "mechanisms": _common,
    "methods": _common,
    "quiet_hours": _both,
    "metrics": _fewer_metrics,
    "min_noise_multiplier": max,
    "reply_slot": max,
}
_RULES = {field.name: _SPECIAL.get(field.name, min) for field in dataclasses.fields(Policy)}
"""How two values of each rule become one; all others are upper limits."""
