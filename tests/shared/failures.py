"""What tests expect to fail: calls that are refused, and calls in which a process dies."""

import pytest

from dpfpl_common.errors import DpfplError


def refused(code, call, *arguments, **more):
    """The error with which a call is refused: this code, and what to do."""
    with pytest.raises(DpfplError) as caught:
        call(*arguments, **more)
    assert caught.value.code == code
    assert caught.value.advice
    return caught.value


class CrashError(Exception):
    """The process dies here."""


def crash(*_arguments, **_more):
    """In place of a function in which the process dies."""
    raise CrashError
