"""Everything that the live page shows of one experiment, as one value ready for JSON; reading it changes nothing."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpfpl_common.experiment import Experiment
from dpfpl_common.ops.diagnostics import Trouble
from dpfpl_common.ops.text import printable
from dpfpl_common.privacy_plan import ADVERSARIES, UNIT_NAMES, planned_events
from dpfpl_server.report.charts import Line, line_chart, mean_curve, site_curve
from dpfpl_server.report.texts import Texts
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.result import event_epsilon
from dpfpl_server.runs.state import STATES, LiveState, run_state
from dpfpl_server.runs.words import MEASURED

__all__ = ["list_experiments", "snapshot", "tail"]

LOG_BYTES = 32_768
LOG_LINES = 60
SHOWN_DROPS = 200
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
ACCESS = re.compile(r'"[A-Z]+ \S+ HTTP/\d')
"""A web server's line for each request, the console's own among them."""
CURVES = (
    ("personal_local", "own {things}", 0),
    ("global_local", "own {things}, shared prompt alone", 1),
    ("personal_neighbour", "others' {things}", 2),
)


def list_experiments(runs: Path) -> list[str]:
    """Names of the experiments in the folder of runs, the last changed first."""
    if not runs.is_dir():
        return []
    found = [path for path in runs.iterdir() if (path / "experiment.json").is_file()]
    return [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def snapshot(
    folder: RunFolder, connections: Mapping[str, str], log: Sequence[str], troubles: Sequence[Trouble] = ()
) -> dict[str, Any]:
    """Where the experiment stands.

    Args:
        folder: of the run.
        connections: what the running server sees of each site: online, offline, ...
        log: the last lines of the server's log.
        troubles: which processes of the server are gone or hang.

    Raises:
        StateError: there is no such run, or it is damaged.
    """
    state, experiment = run_state(folder), folder.experiment()
    live = LiveState(experiment.rounds.number)
    for event in folder.events():
        live = live.after(event)
    drops = folder.store.drops()
    history = folder.store.rounds()
    result = folder.read_json("result.json")
    return {
        "name": experiment.name,
        "state": state.state,
        "meaning": STATES[state.state],
        "supervised": state.supervised,
        "at": state.at,
        "round": state.round,
        "rounds": state.rounds,
        "activity": live.activity,
        "nothing_found": printable(state.nothing_found),
        "waiting_for": [printable(site) for site in state.last.get("waiting_for", ())] if not state.over else [],
        "problem": _problem(state.last) if state.state == "FAILED" else None,
        "sites": _sites(experiment, live, connections, history, drops, result, over=state.over),
        "privacy": _privacy(experiment, max(state.round, *_charged(experiment, history, drops).values())),
        "chart": _chart(experiment, history, result),
        "scores": _scores(experiment, result),
        "drops": [
            {key: printable(drop[key]) for key in ("round", "attempt", "site", "code", "reason")}
            for drop in _alike(drops)[-SHOWN_DROPS:]
        ],
        "log": [printable(line) for line in log],
        "server": [f"{trouble.message} [{trouble.code}]" for trouble in troubles],
    }


def tail(path: Path) -> list[str]:
    """The last lines of a log file; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LOG_BYTES))
            text = COLOURS.sub("", file.read().decode("utf-8", errors="replace"))
    except OSError:
        return []
    lines = text.splitlines()[1 if size > LOG_BYTES else 0 :]
    return [line for line in lines if not ACCESS.search(line)][-LOG_LINES:]


def _alike(drops: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for what happened for the same reason in one round, however many attempts and sites it took."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for drop in drops:
        one = found.setdefault((drop["round"], drop["code"], drop["reason"]), {**drop, "attempt": [], "site": []})
        for key in ("attempt", "site"):
            one[key] += [drop[key]] if drop[key] not in one[key] else []
    return [
        {**one, **{key: ", ".join(map(str, sorted(one[key]))) for key in ("attempt", "site")}} for one in found.values()
    ]


def _problem(last: Mapping[str, Any]) -> dict[str, str]:
    return {key: printable(last.get(key, "")) for key in ("code", "message", "advice")}


def _sites(
    experiment: Experiment,
    live: LiveState,
    connections: Mapping[str, str],
    history: Sequence[Mapping[str, Any]],
    drops: Sequence[Mapping[str, Any]],
    result: Any | None,
    *,
    over: bool,
) -> list[dict[str, Any]]:
    """Each site with what it did, its newest accuracy, and the epsilon that it can have been charged at most.

    The accuracy is that of the finished prompt once there is a result, as in the report.
    What the site really charged, and its caps, only the site knows.
    """
    final = {site["name"]: site.get("local") for site in (result or {}).get("sites", ())}
    rows, charged = [], _charged(experiment, history, drops)
    for name in experiment.sites:
        accuracy = [
            entry["metrics"][name]["personal_local"]
            for entry in history
            if "personal_local" in entry.get("metrics", {}).get(name, {})
        ]
        rows.append(
            {
                "name": name,
                "connection": connections.get(name, "unknown"),
                "doing": "" if over else live.sites.get(printable(name), ""),
                "used": sum(name in entry["sites"] for entry in history),
                "dropped": sum(drop["site"] == name for drop in drops),
                "accuracy": final[name] if final.get(name) is not None else accuracy[-1] if accuracy else None,
                "epsilon_at_most": _epsilons(experiment, charged[name])[0],
            }
        )
    return rows


def _charged(
    experiment: Experiment, history: Sequence[Mapping[str, Any]], drops: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
    """Of each site, the most rounds that it can have been charged for.

    The server knows in which rounds it used a site's answer. A reply that came too late or was rejected may have been
    charged at the site as well, so those count, too.
    """
    return {
        name: min(
            sum(name in entry["sites"] for entry in history) + sum(drop["site"] == name for drop in drops),
            experiment.rounds.number,
        )
        for name in experiment.sites
    }


def _scores(experiment: Experiment, result: Any | None) -> list[dict[str, Any]]:
    """Of a finished run: shares of right answers from noised counts over all sites, with their 95 % intervals."""
    texts = Texts("en", experiment.task.kind)
    return [
        {"name": texts(f"scores.{row['candidate']}").striptags(), "value": row["value"], "interval": row["interval"]}
        for row in (result or {}).get("scores", ())
    ]


def _privacy(experiment: Experiment, charged: int) -> dict[str, Any]:
    """What so many rounds cost, and what all of them will, by adversary."""
    rounds = experiment.rounds.number
    rows = [
        {"adversary": key, "who": who, "spent": spent, "planned": planned}
        for (key, who), spent, planned in zip(
            ADVERSARIES.items(), _epsilons(experiment, charged), _epsilons(experiment, rounds), strict=True
        )
    ]
    return {"epsilons": rows, "delta": experiment.privacy.target_delta, "unit": UNIT_NAMES[experiment.privacy.unit]}


def _epsilons(experiment: Experiment, rounds: int) -> list[float | str]:
    if not rounds:
        return [0.0] * len(ADVERSARIES)
    events = planned_events(experiment, rounds * experiment.rounds.local_steps)
    return [event_epsilon(event, experiment.privacy.target_delta) for event in events]


def _chart(experiment: Experiment, history: Sequence[Mapping[str, Any]], result: Any | None) -> dict[str, Any]:
    """The mean curves as a drawing, and its legend as values."""
    known = result or {"rounds": history, "sites": [{"name": name} for name in experiment.sites]}
    things, measured = MEASURED[experiment.task.kind]
    lines = [Line(label.format(things=things), mean_curve(known, metric), style) for metric, label, style in CURVES]
    if not any(line.points for line in lines):
        return {"svg": "", "legend": [], "sites": {}}
    drawing = line_chart(f"Mean {measured} by completed rounds", lines)
    return {
        "svg": drawing,
        "legend": [
            {"label": line.label, "style": line.style, "last": line.points[max(line.points)] if line.points else None}
            for line in lines
        ],
        "sites": {
            name: [value for _, value in sorted(site_curve(known, name, "personal_local").items())]
            for name in experiment.sites
        },
    }
