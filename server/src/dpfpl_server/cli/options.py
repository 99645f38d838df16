"""What several commands of ``dpfpl-server`` share: options, JSON as output, and the exit codes, for scripts."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dpfpl_common.errors import ConfigError, DpfplError, RoundError

__all__ = [
    "FAILED",
    "HELP",
    "INTERRUPTED",
    "RUNS",
    "SERVER",
    "Archive",
    "AsJson",
    "CaKey",
    "Name",
    "RunsFolder",
    "ServerFolder",
    "exit_code_of",
    "exit_code_of_state",
    "print_json",
    "refuse_existing",
]

ServerFolder = Annotated[Path, typer.Option("--server", help="the server's folder: keys, register of sites, database")]
RunsFolder = Annotated[Path, typer.Option("--runs", help="folder that holds one folder a run")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Name = Annotated[str, typer.Argument(help="name of the experiment")]
Archive = Annotated[str, typer.Option(help="make each kit one file: tar.gz")]
CaKey = Annotated[Path | None, typer.Option(help="the authority's key, where it is not kept in the server's folder")]
SERVER, RUNS = Path("server"), Path("runs")

WRONG, FAILED, NOT_GOING_ON, STUCK, INTERRUPTED = 2, 3, 4, 5, 130

HELP = """\
Exit codes: 0 done or running; 2 wrong input, settings or state, nothing was changed; 3 the experiment failed, or
plan foresees that sites refuse it; 4 stopped or cut off (resume continues); 5 (status, watch) waiting for sites, or hanging; 130 Ctrl-C.
"""  # noqa: E501  one paragraph for the help page, which breaks lines itself

_OF_STATE = {
    "FAILED": FAILED,
    "STOPPED": NOT_GOING_ON,
    "CUT_OFF": NOT_GOING_ON,
    "WAITING_FOR_SITES": STUCK,
    "HANGING": STUCK,
}


def exit_code_of(error: DpfplError) -> int:
    """What a command ends with after one of our own errors."""
    if not isinstance(error, RoundError):
        return WRONG
    return NOT_GOING_ON if error.code in ("STOPPED", "NOT_FINISHED") else FAILED


def exit_code_of_state(state: str) -> int:
    """What ``status`` and ``watch`` end with, by the state of the run (a key of ``runs.state.STATES``)."""
    return _OF_STATE.get(state, 0)


def print_json(content: Any) -> None:
    """The result of a command, for scripts."""
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def refuse_existing(out: Path) -> None:
    """No command replaces a file that the operator may have edited.

    Raises:
        ConfigError: FILE_EXISTS.
    """
    if out.exists():
        raise ConfigError(
            code="FILE_EXISTS", message=f"{out} exists already.", advice="Give --out another file, or move it away."
        )
