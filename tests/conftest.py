"""For all tests."""

import logging
import os
import signal
import tempfile

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start would inherit that.
# A handler, unlike an ignored signal, is not inherited: what the tests start sees Ctrl-C as in a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What agents remember outside their state folders must not reach the home of whoever runs the tests.
_REGISTRY = tempfile.TemporaryDirectory(prefix="dpfpl-registry-")
os.environ["DPFPL_REGISTRY"] = _REGISTRY.name


def pytest_collection_modifyitems(config, items):
    """``long`` tests run only where they are asked for: ``-m long``, or by name, ``tests/file.py::test``."""
    if "long" in config.option.markexpr or any("::" in argument for argument in config.args):
        return
    left_out = [item for item in items if "long" in item.keywords]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if "long" not in item.keywords]


@pytest.fixture(autouse=True)
def logs_as_before():
    """A program that a test runs in this process sends our log to its error output, which closes with the test."""
    ours = [logging.getLogger(name) for name in ("dpfpl_common", "dpfpl_client", "dpfpl_server")]
    before = [(list(log.handlers), log.level, log.propagate) for log in ours]
    yield
    for log, (handlers, level, propagate) in zip(ours, before, strict=True):
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)
