"""A simulated federation from a few words: what ``dpfpl-bench run``, ``dpfpl-bench pilot`` and Python share."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dpfpl_bench.simulation.in_process import mean_local_accuracy
from dpfpl_bench.simulation.run import RunRequest, run_simulation, write_result
from dpfpl_bench.simulation.sources import FIELD, data_settings, named_classes, own_parts
from dpfpl_common.config import build, set_keys
from dpfpl_common.errors import ConfigError
from dpfpl_server.federation.rounds import Status
from dpfpl_server.report import write_report
from dpfpl_server.watch.terminal import print_result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from dpfpl_bench.simulation.run import Engine

__all__ = [
    "Given",
    "RunProgress",
    "Simulated",
    "make_request",
    "parse_epsilon",
    "refuse_run_folder",
    "run_with_progress",
    "simulate",
]


class Given(TypedDict, total=False):
    """What a run may be given; what is not keeps the default of ``RunRequest``.

    ``sites`` is how many share ``data``, or each site's own images: a folder, a .csv or .jsonl file by its name.
    ``class_map`` then says what a class of theirs is called in the experiment. ``epsilon`` None is without noise;
    ``task`` is classify, vqa or caption; ``online`` lets hub ids be downloaded.
    """

    sites: "int | Mapping[str, str | PathLike[str]] | None"
    class_map: Mapping[str, str]
    model: str | None
    task: str | None
    method: str | None
    rank: int | None
    mechanism: str | None
    trust: str | None
    epsilon: float | None
    partition: str | None
    rounds: int | None
    seed: int
    floors: str | None
    online: bool


@dataclass(frozen=True)
class OpenTask:
    """What a run of a task takes by itself whose answers are words.

    Attributes:
        data: what is drawn for it.
        init_text: what a prompt begins as.
        max_answer_tokens: the longest answer; None: the settings' default.
    """

    data: str
    init_text: str
    max_answer_tokens: int | None = None


OPEN_TASKS = {
    "vqa": OpenTask("questions", "please answer the question"),
    "caption": OpenTask("captions", "please look and say", 32),
}
EPSILON = 8.0


def make_request(data: str = "", assignments: Sequence[str] = (), **given: Unpack[Given]) -> RunRequest:
    """The run that is meant.

    Args:
        data: as ``--data``; empty: digits, or drawn questions.
        assignments: any other setting, as ``--set`` takes it.
        given: see ``Given``.

    Raises:
        DpfplError: an impossible value, or data that cannot be found.
    """
    if unknown := sorted(set(given) - set(Given.__annotations__)):
        raise TypeError(f"unknown: {', '.join(unknown)}; known: data, settings, {', '.join(Given.__annotations__)}")
    seed, offline, sites = given.get("seed", 0), not given.get("online", False), given.get("sites")
    own = {}
    if isinstance(sites, Mapping):
        own = own_parts(
            {name: str(where) for name, where in sites.items()}, given.get("class_map") or {}, seed, offline=offline
        )
    in_words = any(part.source == "questions" for part in own.values())
    task, target = given.get("task") or ("vqa" if in_words else "classify"), given.get("epsilon", EPSILON)
    asked = OPEN_TASKS.get(task)
    images = "digits" if asked or own else data or "digits"
    source = data_settings(images, seed, offline=offline)
    table = {
        "name": "pilot" if own else None,
        "data": source,
        "own": own,
        "classes": named_classes(images, source) if images in FIELD else None,
        "questions": (data or asked.data) if asked and not own else "",
        "model": given.get("model") or ("embedded-vlm" if asked else None),
        "sites": None if own else sites,
        "partition": given.get("partition"),
        "floors": given.get("floors"),
        "seed": seed,
        "offline": offline,
        "task": {"kind": task} | ({"max_answer_tokens": asked.max_answer_tokens} if asked else {}),
        "prompt": {
            "method": given.get("method"),
            "rank": given.get("rank"),
            "init_text": asked.init_text if asked else FIELD[images].init_text if images in FIELD else None,
        },
        "privacy": {
            "mechanism": given.get("mechanism"),
            "trust": given.get("trust"),
            "target_epsilon": target,
            "noise_multiplier": 0.0 if target is None else None,
        },
        "rounds": {"number": given.get("rounds")},
    }
    return build(RunRequest, set_keys(_without_blanks(table), assignments), "")


def run_with_progress(
    request: RunRequest, console: Console, *, quiet: bool = False, engine: "Engine | None" = None
) -> dict[str, Any]:
    """Run it and show how far it is; returns what result.json holds. ``engine``: as of ``run_simulation``."""
    import torch

    torch.set_num_threads(request.threads)
    with RunProgress(console, request.rounds.number, quiet=quiet) as progress:
        return run_simulation(request, progress.step, progress.counted, progress.status, engine)


def simulate(
    data: str = "",
    *,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    **given: Unpack[Given],
) -> "Simulated":
    """Simulate a federation in this process, as ``dpfpl-bench run`` does; its noise is seeded and protects nobody.

    ::

        from dpfpl_bench import simulate

        r = simulate(data="digits", sites=4, epsilon=8)
        r.to_frame()
        r.plot()
        simulate(sites={"north": "photos/north", "south": "photos/south.csv"}).save("runs/pilot")

    Args:
        data: digits, shapes, a named set, a folder, a .csv or a hub id; see ``dpfpl-bench run --help``.
        settings: any other setting by its key: ``{"rounds.local_steps": 2}``.
        progress: whether standard error shows how far it is.
        given: see ``Given``.

    Raises:
        DpfplError: with what was wrong and what to do.
    """
    request = make_request(data, [f"{key}={json.dumps(value)}" for key, value in (settings or {}).items()], **given)
    return Simulated(
        run_with_progress(request, Console(stderr=True, markup=False, highlight=False), quiet=not progress)
    )


@dataclass(frozen=True)
class Simulated:
    """A simulated run. ``result`` is what result.json holds; docs/howto/operator.md explains its keys."""

    result: dict[str, Any]

    def to_frame(self) -> "pd.DataFrame":
        """Accuracies of the federation and of what it is compared with, a row each; means over the sites.

        Columns: ``local`` (own images), ``neighbour`` (the other sites'), ``worst_site``.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError:
            raise ConfigError(
                code="MISSING_EXTRA",
                message="A data frame needs pandas, which is not installed.",
                advice="Install the extra: pip install 'dpfpl-bench[pandas]'.",
            ) from None
        return pd.DataFrame.from_dict(self._rows(), orient="index", dtype=float)

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the rows of ``to_frame`` as dots, own images and others'; into ``axes`` if some are given."""
        import matplotlib.pyplot as plt  # seconds

        if axes is None:
            _, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
        rows = self._rows()
        for column, text, mark in (("local", "own images", "o"), ("neighbour", "others' images", "s")):
            axes.plot([_or_nan(row[column]) for row in rows.values()], range(len(rows)), mark, label=text)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.set_xlabel("accuracy")
        axes.grid(axis="x", alpha=0.3)
        axes.legend()
        return axes

    def save(self, folder: "str | PathLike[str]") -> Path:
        """Write result.json and report.html into a folder; returns the report's path.

        Raises:
            ConfigError: the folder cannot be written, or holds an experiment.
        """
        path = Path(folder)
        refuse_run_folder(path)
        write_result(self.result, path / "result.json")
        return write_report(path)

    def show(self, console: Console | None = None) -> None:
        """Print the tables that ``dpfpl-bench demo`` ends with."""
        print_result(self.result, console or Console(markup=False, highlight=False))

    def _rows(self) -> dict[str, dict[str, float | None]]:
        columns = ("local", "neighbour", "worst_site")
        every = {"federation": self.result["accuracy"], **self.result["baselines"]}
        return {name: {column: row.get(column) for column in columns} for name, row in every.items()}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def refuse_run_folder(folder: Path) -> None:
    """Refuse to write beside what ``dpfpl-server run`` keeps.

    Raises:
        ConfigError: the folder holds an experiment.
    """
    if (folder / "experiment.json").exists():
        raise ConfigError(
            code="NOT_A_PILOT_FOLDER",
            message=f"{folder} holds a run of a deployed federation.",
            advice="Give another folder.",
        )


def parse_epsilon(text: str) -> float | None:
    """A number, or None for ``none``."""
    if text.lower() in ("none", "inf", "infinite"):
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            code="IMPOSSIBLE_VALUE",
            message=f"--epsilon is {text!r}.",
            advice="Give a number, or none for no noise and no privacy claim.",
        ) from None


def _without_blanks(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table without what was not given, so that the settings' own defaults hold."""
    return {
        key: _without_blanks(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


# What a run shows while it works.


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
