"""What the operator sees in a terminal while an experiment runs."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dpfpl_common.ops.text import printable
from dpfpl_server.report.texts import Texts
from dpfpl_server.runs.state import LiveState
from dpfpl_server.runs.words import (
    DASH,
    MEASURED,
    amount,
    bytes_text,
    change,
    epsilon_text,
    exact,
    noise_is_real,
    percent,
    points,
    seconds_text,
)

__all__ = ["LiveDisplay", "print_result"]


# The end of a run as tables in a terminal: accuracies, baselines, epsilons, cost of a round.


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """Print the tables of a finished run; text from outside is shown as it is, never as markup.

    Args:
        result: as ``build_result`` makes it, or read back from result.json.
        console: where to.
    """
    pieces: list[RenderableType] = [_verdict(result), *_accuracy(result), *_baselines(result), _privacy(result)]
    if not noise_is_real(result):
        pieces.append(Text(f"Noise: {printable(result['privacy'].get('noise', 'not stated'))}.", style="yellow"))
    flagged = [f"{printable(site['name'])} ({site['flag']})" for site in result["sites"] if site.get("flag")]
    if flagged:
        pieces.append(Text(f"Ask about: {', '.join(flagged)}; see docs/howto/operator.md.", style="yellow"))
    if evidence := result.get("evidence"):
        pieces.append(Text(_evidence(result["chosen"], evidence), style="yellow" if evidence["warning"] else ""))
    pieces.append(Text(_cost(result)))
    console.print(Group(*pieces))


def _verdict(result: Mapping[str, Any]) -> Table:
    """What federating brought over what a site has without it."""
    verdict = result["verdict"]
    rows = [
        (_named(rival["name"]), *(_gain(rival[key]) for key in ("local", "neighbour"))) for rival in verdict["rivals"]
    ]
    things, measured = _measured(result)
    counted = ", from noised counts" if verdict["measured"] == "counts" else ""
    head = ("points gained over", f"on own {things}, 95 % interval", f"on others' {things}, 95 % interval")
    nothing_found = (result.get("evidence") or {}).get("warning")
    says = Texts("en")(f"answer.{'nothing_found' if nothing_found else verdict['says']}").striptags().removesuffix(".")
    return _table(f"{says} ({measured}{counted})", head, rows)


def _named(baseline: str) -> str:
    return Texts("en").word(f"baselines.{baseline}", baseline).striptags()


def _gain(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return DASH
    gained = f"{100 * difference['value']:+.1f}"
    if difference["interval"] is None:
        return gained
    low, high = difference["interval"]
    return f"{gained} ({100 * low:+.1f} to {100 * high:+.1f})"


def _accuracy(result: Mapping[str, Any]) -> list[Table]:
    rows = [
        (
            site["name"],
            change(site["before"], site["local"]),
            points(site["before"], site["local"]),
            change(site["before_neighbour"], site["neighbour"]),
            percent(site["global"]),
        )
        for site in result["sites"]
    ]
    things, measured = _measured(result)
    head = ("site", f"own {things}, %", "points", f"others' {things}, %", "shared prompt alone")
    title = f"{result['config']['name']}: {measured} before → after {amount(len(result['rounds']), 'round')}"
    return _table_if_measured(title, head, rows)


def _baselines(result: Mapping[str, Any]) -> list[Table]:
    accuracy = result["accuracy"]
    ours = [percent(accuracy[key]) for key in ("local", "worst_site", "neighbour")]
    rows = [["this federation", ours[0], DASH, *ours[1:]]]
    for key, baseline in result["baselines"].items():
        local = baseline.get("local")
        ahead = points(local, accuracy["local"])
        others = [percent(baseline.get(where)) for where in ("worst_site", "neighbour")]
        rows.append([_named(key), percent(local), ahead, *others])
    things, _ = _measured(result)
    head = ("mean of the sites", f"own {things}", "ahead by", "worst site", f"others' {things}")
    return _table_if_measured("Compared with", head, rows)


def _evidence(chosen: str, evidence: Mapping[str, Any]) -> str:
    used = {"evidence": "class vectors of all sites", "text": "the plain text with each site's usual mix of classes"}
    found = f"{evidence['classes_found']} of {evidence['classes']} classes stand out of the noise"
    vote = f"the votes are {evidence['votes']:+.0f}, {evidence['votes_needed']:.0f} are needed"
    return " ".join(filter(None, (f"Used: {used[chosen]}; {found}, {vote}.", evidence["warning"])))


def _measured(result: Mapping[str, Any]) -> tuple[str, str]:
    return MEASURED.get(str(result["config"].get("task", {}).get("kind", "")), MEASURED["classify"])


def _privacy(result: Mapping[str, Any]) -> Table:
    rows = [
        (entry.get("who", entry["adversary"]), epsilon_text(entry["epsilon"]), exact(entry["delta"]))
        for entry in result["privacy"]["epsilons"]
    ]
    units = "; ".join(sorted({entry["unit"] for entry in result["privacy"]["epsilons"]}))
    return _table(f"Privacy, by the accountant; unit: {units}", ("against", "epsilon", "delta"), rows)


def _cost(result: Mapping[str, Any]) -> str:
    rounds = result["rounds"]
    if not rounds:
        return "No round was completed."
    seconds, up, down = (
        statistics.median(values) if (values := [r[key] for r in rounds if r.get(key) is not None]) else None
        for key in ("seconds", "bytes_up", "bytes_down")
    )
    dropped = sum(len(entry.get("dropped", {})) for entry in rounds)
    return (
        f"A round (median): {seconds_text(seconds)}, {bytes_text(up)} from the sites, {bytes_text(down)} to them. "
        f"The run: {seconds_text(result['seconds'])}. Answers left out: {dropped}."
    )


def _table_if_measured(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Table]:
    """Nothing where the sites released no such number, so that no table is all dashes."""
    return [_table(title, head, rows)] if any(cell != DASH for row in rows for cell in row[1:]) else []


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=Text(printable(title), style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for column, name in enumerate(head):
        table.add_column(Text(name), justify="right" if column else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(value)) for value in row))
    return table


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
        self._console = console or Console(stderr=True, markup=False, highlight=False)
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
        self._console.print(line, soft_wrap=True)

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
