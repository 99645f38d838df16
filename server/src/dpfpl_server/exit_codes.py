"""The exit codes of ``dpfpl-server``, for scripts."""

from dpfpl_common.errors import DpfplError, RoundError

__all__ = ["FAILED", "HELP", "INTERRUPTED", "NOT_GOING_ON", "STUCK", "WRONG", "exit_code_of"]

WRONG, FAILED, NOT_GOING_ON, STUCK, INTERRUPTED = 2, 3, 4, 5, 130

HELP = """\
Exit codes: 0 done or running; 2 wrong input, settings or state, nothing was changed; 3 the experiment failed, or
plan foresees that sites refuse it; 4 stopped or cut off (resume continues); 5 (status, watch) waiting for sites, or hanging; 130 Ctrl-C.
"""  # noqa: E501  one paragraph for the help page, which breaks lines itself


def exit_code_of(error: DpfplError) -> int:
    """What a command ends with after one of our own errors."""
    if not isinstance(error, RoundError):
        return WRONG
    return NOT_GOING_ON if error.code in ("STOPPED", "NOT_FINISHED") else FAILED
