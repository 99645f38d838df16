"""Test runs in forks of one process that imported the heavy libraries once, each in a copy of the repository.

A fork costs milliseconds where a new Python would import torch, transformers and Flower for ten seconds. What a fork
then imports of this project, it imports from its copy: no module of the project is loaded before the fork, and at the
end every one that was is looked at for where it came from.
"""

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

__all__ = ["HEAVY", "Child", "Outcome", "started", "warm_up"]

HEAVY = (
    "torch",
    "numpy",
    "scipy.stats",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.processing_clip",
    "transformers.models.clip.image_processing_clip",
    "opacus.optimizers",
    "opacus.accountants",
    "dp_accounting.pld",
    "dp_accounting.rdp",
    "flwr.app",
    "flwr.clientapp",
    "flwr.serverapp",
    "flwr.supercore.interceptors",
    "grpc",
    "sklearn.datasets",
    "PIL.Image",
    "safetensors.torch",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "typer",
    "rich.live",
    "hypothesis",
    "_pytest.main",
)
OURS = "dpfpl_"
DISTRIBUTIONS = ("common", "models", "client", "server", "bench")
BROKEN_BY = ("ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "NameError", "UnboundLocalError")
"""Errors that say that a mutation is no program, and nothing about what it does."""


@dataclass(frozen=True)
class Outcome:
    """What a test run said.

    Attributes:
        word: ``passed``, ``failed``, ``skipped`` (one of the tests was), ``broken`` (the code or the tests could not
            even be run, or something else than the copy was) or ``timed out``.
        test: the first that failed, or was skipped.
        why: its error in one line.
        seconds: from start to end.
    """

    word: str
    test: str = ""
    why: str = ""
    seconds: float = 0.0


def warm_up(modules: Sequence[str] = HEAVY) -> None:
    """Import what all test runs need; nothing of this project, and nothing that starts a thread."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in modules:
        importlib.import_module(name)
    loaded = [name for name in sys.modules if name.startswith(OURS)]
    assert not loaded, f"loaded before any copy was chosen: {loaded}"
    assert threading.active_count() == 1, "a process with threads must not be forked"


class Child:
    """A running fork."""

    def __init__(self, pid: int, work: Path, limit_s: float) -> None:
        self._pid, self._work = pid, work
        self._began = time.monotonic()
        self._limit_s = limit_s

    def ended(self) -> Outcome | None:
        """What it said, or None while it runs; ends one that takes too long, and all that a run left behind."""
        pid, _ = os.waitpid(self._pid, os.WNOHANG)
        seconds = time.monotonic() - self._began
        if pid == 0:
            if seconds <= self._limit_s:
                return None
            self.kill()
            return Outcome("timed out", why=f"after {seconds:.0f} s", seconds=seconds)
        self._end_group()
        try:
            told = json.loads((self._work / "outcome.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            told = {"word": "broken", "why": "it ended without a word: " + self._last_line()}
        shutil.rmtree(self._work, ignore_errors=True)
        return Outcome(**told, seconds=seconds)

    def kill(self) -> None:
        """End it at once."""
        self._end_group()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        shutil.rmtree(self._work, ignore_errors=True)

    def _end_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)

    def _last_line(self) -> str:
        lines = (self._work / "output.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "no output"


def started(copy: Path, tests: Sequence[str], module: str = "", limit_s: float = 600.0) -> Child:
    """Run ``tests`` of the repository ``copy`` in a fork, up to the first failure.

    Args:
        copy: a whole working tree.
        tests: pytest's node ids.
        module: imported before the tests: one that cannot be is ``broken``, whatever its tests would say.
        limit_s: seconds until it is ended.
    """
    work = Path(tempfile.mkdtemp(prefix="run-", dir=copy.parent))
    work.chmod(0o755)  # some tests have other users run what is inside
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, work, limit_s)
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _in_the_copy(copy, work)
        told = _tested(copy, tests, module)
        (work / "outcome.json").write_text(json.dumps(told), encoding="utf-8")
    finally:
        os._exit(0)


def _in_the_copy(copy: Path, work: Path) -> None:
    """This process' files, folder and paths: the copy's, for itself and for what its tests start."""
    output = os.open(work / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sources = [str(copy / name / "src") for name in DISTRIBUTIONS]
    sys.path[:0] = sources
    os.environ["PYTHONPATH"] = os.pathsep.join(sources)
    os.environ["TMPDIR"] = str(work)
    tempfile.tempdir = None
    os.chdir(copy)
    importlib.invalidate_caches()


class _Recorder:
    """A pytest plugin: the first failure with its error, what was skipped, how many passed."""

    def __init__(self) -> None:
        self.failed: tuple[str, str, bool] | None = None
        self.skipped: tuple[str, str] | None = None
        self.passed = 0
        self.errors = 0

    def pytest_exception_interact(self, node: Any, call: Any, report: Any) -> None:
        error = call.excinfo.value
        line = (str(error).splitlines() or [""])[0][:200]
        broken = isinstance(report, pytest.CollectReport) or _is_no_program(error)
        if self.failed is None:
            self.failed = (node.nodeid, f"{type(error).__name__}: {line}", broken)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped = self.skipped or (report.nodeid, reason)
        self.passed += report.when == "call" and report.passed


def _is_no_program(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_no_program(each) for each in error.exceptions)
    return type(error).__name__ in BROKEN_BY


def _tested(copy: Path, tests: Sequence[str], module: str) -> dict[str, str]:
    if module:
        try:
            importlib.import_module(module)
        except BaseException as error:  # noqa: BLE001  whatever it is, it is no program
            return {"word": "broken", "why": f"cannot be imported: {type(error).__name__}: {error}"}
    recorder = _Recorder()
    plugins = ("no:cacheprovider", "no:xdist", "no:pytest_cov")
    code = pytest.main(["-x", "-q", *(word for name in plugins for word in ("-p", name)), *tests], plugins=[recorder])
    strangers = [
        name
        for name, loaded in list(sys.modules.items())
        if name.startswith(OURS) and not str(getattr(loaded, "__file__", None) or copy).startswith(str(copy))
    ]
    if strangers:
        return {"word": "broken", "why": f"not of the copy: {strangers[0]}"}
    if recorder.failed:
        test, why, broken = recorder.failed
        return {"word": "broken" if broken else "failed", "test": test, "why": why}
    if code != pytest.ExitCode.OK:
        return {"word": "broken", "why": f"pytest ended with {int(code)}"}
    if recorder.skipped:
        return {"word": "skipped", "test": recorder.skipped[0], "why": recorder.skipped[1]}
    return {"word": "passed" if recorder.passed else "broken", "why": f"{recorder.passed} tests"}
