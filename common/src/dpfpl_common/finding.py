"""What a doctor finds: in plain words, with what to do."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dpfpl_common.errors import DpfplError

__all__ = [
    "ERROR",
    "OK",
    "WARNING",
    "Finding",
    "certificate_end",
    "examine",
    "exit_code",
    "findings_json",
    "findings_text",
    "space",
]

OK, WARNING, ERROR = "ok", "warning", "error"
_WARN_DAYS = 30
_LITTLE_BYTES = 200 << 20


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``ok``, ``warning`` or ``error``.
        check: what was looked at, the same in every run.
        code: stable, for scripts; empty if all is well.
        message: in words.
        advice: what to do.
    """

    level: str
    check: str
    message: str
    code: str = ""
    advice: str = ""


Look = Callable[[], Iterable[Finding]]


def examine(check: str, look: Look, *, level: str = ERROR) -> list[Finding]:
    """What a look finds; an error of ours that it raises becomes a finding of this level."""
    try:
        return list(look())
    except DpfplError as error:
        return [Finding(level, check, error.message, error.code, error.advice)]


def exit_code(findings: Sequence[Finding]) -> int:
    """0 all well, 1 warnings only, 2 errors."""
    levels = {finding.level for finding in findings}
    return 2 if ERROR in levels else 1 if WARNING in levels else 0


def findings_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Ready for JSON."""
    words = {0: "well", 1: "warnings", 2: "errors"}
    return {"result": words[exit_code(findings)], "findings": [asdict(finding) for finding in findings]}


def findings_text(findings: Sequence[Finding]) -> str:
    """For people: one line a finding, what to do below it, and a last line that says it all."""
    signs = {OK: "ok     ", WARNING: "WARNING", ERROR: "ERROR  "}
    lines = []
    for finding in findings:
        code = f" [{finding.code}]" if finding.code else ""
        lines.append(f"{signs[finding.level]} {finding.check}: {finding.message}{code}")
        if finding.advice:
            lines.append(f"          -> {finding.advice}")
    bad = sum(finding.level == ERROR for finding in findings)
    odd = sum(finding.level == WARNING for finding in findings)
    lines.append(f"{bad} errors, {odd} warnings." if bad or odd else "All is well.")
    return "\n".join(lines)


def certificate_end(check: str, what: str, end: datetime, advice: str) -> Finding:
    """How long a certificate still lasts."""
    left = (end - datetime.now(UTC)).total_seconds() / 86400.0
    if left <= 0:
        return Finding(ERROR, check, f"{what} ended on {end:%Y-%m-%d}.", "CERTIFICATE_EXPIRED", advice)
    if left < _WARN_DAYS:
        return Finding(WARNING, check, f"{what} ends in {int(left)} days.", "CERTIFICATE_ENDS_SOON", advice)
    return Finding(OK, check, f"{what} lasts {int(left)} days.")


def space(check: str, folder: Path) -> Finding:
    """Whether the folder's disk has some room."""
    free = shutil.disk_usage(folder).free
    shown = f"{free / (1 << 30):.1f} GiB are free for {folder}."
    if free < _LITTLE_BYTES:
        return Finding(WARNING, check, shown, "DISK_NEARLY_FULL", "Free some space: a full disk stops every release.")
    return Finding(OK, check, shown)
