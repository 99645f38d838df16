"""What a doctor finds around our processes, what makes one unhealthy, and how both are told to people and scripts."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dpfpl_common.errors import DeploymentError, DpfplError
from dpfpl_common.ops.files import write_durably
from dpfpl_common.ops.telemetry import quiet_environment

__all__ = [
    "ERROR",
    "HEALTHY",
    "OK",
    "UNHEALTHY",
    "WARNING",
    "Finding",
    "Trouble",
    "certificate_end",
    "durable_folder",
    "examine",
    "exit_code",
    "findings_json",
    "findings_text",
    "flower_version",
    "insecure_processes",
    "private_modes",
    "report",
    "require_flower",
    "space",
    "telemetry",
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
    counts = [f"{n} {word}{'s' * (n != 1)}" for n, word in ((bad, "error"), (odd, "warning"))]
    lines.append(", ".join(counts) + "." if bad or odd else "All is well.")
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


HEALTHY, UNHEALTHY = 0, 1
"""Exit codes of the health commands, as container runtimes want them."""


@dataclass(frozen=True)
class Trouble:
    """One real reason: ``part`` is where, ``code`` is stable, ``message`` says it in words."""

    part: str
    code: str
    message: str


def report(troubles: Sequence[Trouble], *, words: bool = True) -> dict[str, object]:
    """The troubles as JSON; without ``words`` only parts and codes, for callers that may not read more."""
    reasons = [
        {"part": t.part, "code": t.code, "message": t.message} if words else {"part": t.part, "code": t.code}
        for t in troubles
    ]
    return {"status": "unhealthy" if troubles else "healthy", "reasons": reasons}


_NO_FSYNC = {"tmpfs": "memory", "ramfs": "memory", "overlay": "a container's own layer", "nfs": "NFS", "nfs4": "NFS"}
_FLOWER = ("flower-superlink", "flower-supernode", "flwr", "dpfpl_client.node.warm_node")
_SERIES = (1, 39)


def telemetry(environment: Mapping[str, str] | None = None) -> list[Finding]:
    """Whether the environment that this command was started with asks for telemetry that we switch off.

    Our own processes are quiet whatever it says; Flower's commands, typed by hand, would not be.
    """
    given = _own_environment() if environment is None else environment
    loud = sorted(name for name, quiet in quiet_environment().items() if name in given and given[name] != quiet)
    if not loud:
        return [Finding(OK, "telemetry", "Telemetry and update checks are off in every process of ours.")]
    return [
        Finding(
            WARNING,
            "telemetry",
            f"The environment asks for telemetry: {', '.join(f'{name}={given[name]}' for name in loud)}.",
            "TELEMETRY_ON",
            "Unset it. Commands of this package ignore it, Flower's own commands typed by hand would obey.",
        )
    ]


def insecure_processes(proc: Path = Path("/proc")) -> list[Finding]:
    """Whether a Flower process of this user runs with ``--insecure``."""
    insecure = [(pid, words) for pid, words in _commands(proc) if "--insecure" in words]
    found = [pid for pid, words in insecure if any(f in word for word in words for f in _FLOWER)]
    if not found:
        return [Finding(OK, "encryption", "No Flower process here runs without TLS.")]
    return [
        Finding(
            ERROR,
            "encryption",
            f"Flower runs here with --insecure (process {', '.join(map(str, found))}).",
            "INSECURE_FLAG",
            "Stop it and use the commands of this package: they start Flower with TLS and registered keys only.",
        )
    ]


def flower_version() -> list[Finding]:
    """Whether the installed Flower is of the series that both sides must run."""
    version = metadata.version("flwr")
    wanted = ".".join(map(str, _SERIES))
    if tuple(int(part) for part in version.split(".")[:2]) == _SERIES:
        return [Finding(OK, "version", f"Flower {version}; both sides must run {wanted}.x.")]
    return [
        Finding(
            ERROR,
            "version",
            f"Flower {version} is installed, {wanted}.x is needed on both sides.",
            "VERSION_MISMATCH",
            "Install this package again in an environment of its own.",
        )
    ]


def require_flower() -> None:
    """Refuse to start under a Flower of another series: 1.38 would be let in without a word, 1.40 never meets ours.

    Raises:
        DeploymentError: VERSION_MISMATCH.
    """
    for found in flower_version():
        if found.code:
            raise DeploymentError(code=found.code, message=found.message, advice=found.advice)


def durable_folder(check: str, folder: Path, mounts: Path = Path("/proc/self/mounts")) -> list[Finding]:
    """Whether what is written into a folder is kept: it can be written and synced, on a file system that means it."""
    probe = folder / ".doctor"
    try:
        write_durably(probe, b"x")
        probe.unlink()
    except OSError as error:
        advice = "Give this user the folder, on a disk that is neither full nor read-only."
        said = f"{folder} cannot be written and synced ({error.strerror})."
        return [Finding(ERROR, check, said, "FOLDER_NOT_WRITABLE", advice)]
    kind = _file_system(folder, mounts)
    if kind in _NO_FSYNC:
        return [
            Finding(
                WARNING,
                check,
                f"{folder} lies on {_NO_FSYNC[kind]} ({kind}): what is written there may not survive a restart.",
                "STATE_NOT_DURABLE",
                "Put it on a local disk or a named volume: a lost privacy ledger cannot be made again.",
            )
        ]
    return [Finding(OK, check, f"{folder} can be written and synced.")]


def private_modes(check: str, paths: list[Path]) -> list[Finding]:
    """Whether only their owner can read these files."""
    open_ones = [path for path in paths if path.exists() and path.stat().st_mode & 0o077]
    if not open_ones:
        return [Finding(OK, check, "Private keys can be read by their owner only.")]
    names = " ".join(str(path) for path in open_ones)
    return [Finding(ERROR, check, f"Others can read {names}.", "KEY_READABLE", f"chmod 600 {names}")]


def _own_environment() -> dict[str, str]:
    """The environment as this process was given it; ``os.environ`` has been silenced since."""
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return dict(os.environ)
    pairs = (entry.partition(b"=") for entry in entries if entry)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}


def _commands(proc: Path) -> Iterator[tuple[int, list[str]]]:
    """Process ids and command lines of this user's processes."""
    for entry in proc.glob("[0-9]*"):
        try:
            if entry.stat().st_uid == os.getuid():
                yield int(entry.name), (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue


def _file_system(folder: Path, mounts: Path) -> str:
    """The kind of file system that a folder lies on; empty if that cannot be told."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    resolved = f"{folder.resolve()}/"
    for line in lines:
        fields = line.split()
        if len(fields) > 2:
            mount = fields[1].replace("\\040", " ").rstrip("/") + "/"
            if resolved.startswith(mount) and len(mount) >= len(best):
                best, kind = mount, fields[2]
    return kind
