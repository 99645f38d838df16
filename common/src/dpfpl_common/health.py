"""What makes a process unhealthy, in words and as an exit code."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["HEALTHY", "UNHEALTHY", "Trouble", "report"]

HEALTHY, UNHEALTHY = 0, 1
"""Exit codes of the health commands, as container runtimes want them."""


@dataclass(frozen=True)
class Trouble:
    """One real reason: ``part`` is where, ``code`` is stable, ``message`` says it in words."""

    part: str
    code: str
    message: str


def report(troubles: Sequence[Trouble], *, words: bool = True) -> dict[str, object]:
    """The troubles as JSON; without ``words`` only parts and codes, for whoever may not read more."""
    reasons = [
        {"part": t.part, "code": t.code, "message": t.message} if words else {"part": t.part, "code": t.code}
        for t in troubles
    ]
    return {"status": "unhealthy" if troubles else "healthy", "reasons": reasons}
