"""What the operator sees in a terminal while an experiment runs."""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dpfpl_server.live_state import LiveState
from dpfpl_server.plain_words import printable, seconds_text
from dpfpl_server.result_table import print_result, result_table

__all__ = ["LiveDisplay", "print_result", "result_table"]

QUIET_PHASES = frozenset({"TRAINING", "EVALUATING"})
"""Phases that repeat with every site's answer: a plain terminal gets their first line only."""


class LiveDisplay:
    """Shows the strategy's statuses, live in a terminal and as plain lines elsewhere.

    Args:
        name: of the experiment.
        rounds: in all.
        console: where to; default standard error, so that standard output stays free for results.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        rounds: int,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = LiveState(rounds)
        self._name = printable(name)
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._started = clock()
        self._said: tuple[object, ...] = ()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._started = self._clock()
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, status: Mapping[str, Any]) -> None:
        """Take the strategy's newest status; any thread may call it, one at a time."""
        before = self.state
        self.state = before.after(status)
        if self._live is not None:
            if status.get("phase") == "ROUND_ABANDONED":
                self._say(self.state.activity)
            return
        phase = status.get("phase")
        said = (phase, status.get("round")) if phase in QUIET_PHASES else (phase, self.state.activity)
        if said == self._said:
            return
        self._said = said
        measured = phase == "ROUND_DONE" and bool(status.get("metrics")) and self.state.accuracy is not None
        self._say(self.state.activity + (f"; mean local accuracy {self.state.accuracy_text}" if measured else ""))

    def _say(self, text: str) -> None:
        elapsed = seconds_text(self._clock() - self._started)
        line = Text(f"{self._name} [{self.state.completed}/{self.state.rounds}] {elapsed}  {text}")
        self._console.print(line, soft_wrap=True, highlight=False)

    def _render(self) -> RenderableType:
        state = self.state
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True, overflow="ellipsis")
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        head.add_column(no_wrap=True)
        head.add_row(
            Text(self._name, style="bold"),
            ProgressBar(total=max(state.rounds, 1), completed=state.completed),
            Text(f"{state.completed}/{state.rounds} rounds"),
            Text(seconds_text(self._clock() - self._started), style="dim"),
        )
        sites = Table.grid(padding=(0, 2))
        sites.add_column(no_wrap=True)
        sites.add_column()
        for site, what in state.sites.items():
            sites.add_row(Text(f"  {site}"), Text(what, style=_style(what)))
        accuracy = Text(f"mean local accuracy: {state.accuracy_text}")
        return Group(head, Text(state.activity), sites, accuracy)


def _style(what: str) -> str:
    if what.startswith(("left out", "not connected")):
        return "red"
    return "dim" if what.startswith(("training", "evaluating")) else "green"
