"""What a doctor finds around our processes: telemetry, insecure flags, versions, file systems that lose writes."""

import os
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from dpfpl_common.durable import fsync_folder
from dpfpl_common.errors import DeploymentError
from dpfpl_common.finding import ERROR, OK, WARNING, Finding
from dpfpl_common.telemetry import quiet_environment

__all__ = [
    "durable_folder",
    "flower_version",
    "insecure_processes",
    "private_modes",
    "require_flower",
    "telemetry",
]

_NO_FSYNC = {"tmpfs": "memory", "ramfs": "memory", "overlay": "a container's own layer", "nfs": "NFS", "nfs4": "NFS"}
_FLOWER = ("flower-superlink", "flower-supernode", "flwr", "dpfpl_client.warm_node")
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
    found = [
        pid for pid, words in _commands(proc) if "--insecure" in words and any(f in w for w in words for f in _FLOWER)
    ]
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
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, b"x")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            probe.unlink()
        fsync_folder(folder)
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
