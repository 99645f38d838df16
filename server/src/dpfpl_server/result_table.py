"""The end of a run as tables in a terminal: accuracies, floors, epsilons, cost of a round."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dpfpl_server.plain_words import (
    DASH,
    FLOORS,
    MEASURED,
    amount,
    bytes_text,
    change,
    epsilon_text,
    exact,
    noise_is_real,
    percent,
    points,
    printable,
    seconds_text,
)

__all__ = ["print_result", "result_table"]


def result_table(result: Mapping[str, Any]) -> RenderableType:
    """The tables of a finished run; text from outside is shown as it is, never as markup.

    Args:
        result: as ``build_result`` makes it, or read back from result.json.
    """
    pieces: list[RenderableType] = [_accuracy(result), _floors(result), _privacy(result)]
    if not noise_is_real(result):
        pieces.append(Text(f"Noise: {printable(result['privacy'].get('noise', 'not stated'))}.", style="yellow"))
    flagged = [f"{printable(site['name'])} ({site['flag']})" for site in result["sites"] if site.get("flag")]
    if flagged:
        pieces.append(Text(f"Ask about: {', '.join(flagged)}; see docs/operator.md.", style="yellow"))
    pieces.append(Text(_cost(result)))
    return Group(*pieces)


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """Print the tables of a finished run."""
    console.print(result_table(result), highlight=False)


def _accuracy(result: Mapping[str, Any]) -> Table:
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
    return _table(title, head, rows)


def _floors(result: Mapping[str, Any]) -> Table:
    accuracy = result["accuracy"]
    rows = [
        (
            "this federation",
            percent(accuracy["local"]),
            DASH,
            percent(accuracy["worst_site"]),
            percent(accuracy["neighbour"]),
        )
    ]
    for key, floor in result["floors"].items():
        local = floor.get("local")
        ahead = points(local, accuracy["local"])
        others = (percent(floor.get(where)) for where in ("worst_site", "neighbour"))
        rows.append((FLOORS.get(key, (key, ""))[0], percent(local), ahead, *others))
    things, _ = _measured(result)
    head = ("mean of the sites", f"own {things}", "ahead by", "worst site", f"others' {things}")
    return _table("Compared with", head, rows)


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


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=Text(printable(title), style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for column, name in enumerate(head):
        table.add_column(Text(name), justify="right" if column else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(value)) for value in row))
    return table
