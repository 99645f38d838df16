"""What a simulated run shows while it works."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dpfpl_bench.simulation.in_process import mean_local_accuracy
from dpfpl_server.federation.rounds import Status

__all__ = ["RunProgress"]


SILENCE_S = 10.0
"""Without a terminal, so long at most goes by without a line while something is counted."""


class RunProgress:
    """A progress bar for images, rounds and baselines; plain lines where there is no terminal."""

    def __init__(
        self, console: Console, rounds: int, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._quiet = quiet
        self._rounds = rounds
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
        )
        self._text = ""
        self._evidence = ""
        self._clock = clock
        self._spoke = clock()
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, text: str) -> None:
        """A new part of the work begins."""
        self._say(text)
        self._text = text
        self._drop()

    def counted(self, done: int, total: int) -> None:
        """So much of the part that was named last is done: images, sites, steps."""
        if self._bar.disable and self._clock() - self._spoke >= SILENCE_S:
            self._say(f"{self._text}: {done}/{total}")
        self._advance(self._text, done, total)

    def status(self, status: Status) -> None:
        """The strategy reports."""
        if status.get("phase") == "EVIDENCE" and status["text"] != self._evidence:
            self._evidence = status["text"]
            self._say(self._evidence)
        if status.get("phase") != "ROUND_DONE":
            return
        accuracy = mean_local_accuracy(status)
        text = "" if accuracy is None else f", local accuracy so far {accuracy:.1%}"
        if self._bar.disable:
            self._say(f"round {status['round']}/{self._rounds}{text}")
        self._advance(f"rounds{text}", int(status["round"]), self._rounds)

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._bar.console.print(text)
            self._spoke = self._clock()

    def _advance(self, text: str, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task(text, total=total)
        self._bar.update(self._task, description=text, completed=done, total=total)

    def _drop(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
