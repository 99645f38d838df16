"""For all tests."""

import os
import signal
import tempfile

# A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start would inherit that.
# A handler, unlike an ignored signal, is not inherited: what the tests start sees Ctrl-C as in a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What agents remember outside their state folders must not reach the home of whoever runs the tests.
_REGISTRY = tempfile.TemporaryDirectory(prefix="dpfpl-registry-")
os.environ["DPFPL_REGISTRY"] = _REGISTRY.name
