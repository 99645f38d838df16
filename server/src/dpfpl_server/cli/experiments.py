"""The commands of an experiment's life: new-experiment, plan, run, watch, status, stop, resume, list."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dpfpl_common.errors import ConfigError, DpfplError
from dpfpl_server.cli.options import (
    FAILED,
    RUNS,
    SERVER,
    AsJson,
    Name,
    RunsFolder,
    ServerFolder,
    exit_code_of_state,
    print_json,
    refuse_existing,
)

if TYPE_CHECKING:
    from dpfpl_common.experiment import Experiment

__all__ = ["register"]

File = Annotated[Path, typer.Argument(help="experiment.toml")]
Restarts = Annotated[int, typer.Option(min=0, help="how often a run that was cut off is resumed automatically")]
ServerWait = Annotated[float, typer.Option(min=0, help="seconds to wait for a server that does not answer")]
SiteWait = Annotated[float, typer.Option(min=0, help="seconds to wait for missing sites before a round")]
WATCH_SECONDS = 0.3
GRACE_SECONDS = 5.0

console = Console(stderr=True, markup=False, highlight=False)


def register(app: typer.Typer) -> None:
    """Add the commands to ``dpfpl-server``."""
    for name, command, example in (
        ("new-experiment", new_experiment, "new-experiment xrays-1 --from runs/pilot --epsilon 4"),
        ("plan", plan, "plan experiment.toml --out plan.json"),
        ("run", run, "run experiment.toml --server server --runs runs"),
        ("watch", watch, "watch demo"),
        ("status", status, "status demo"),
        ("stop", stop, "stop demo"),
        ("resume", resume, "resume demo"),
        ("list", list_runs, "list --json"),
    ):
        app.command(name, epilog=f"Example: dpfpl-server {example}")(command)


def new_experiment(
    name: Name,
    told: Annotated[
        list[Path] | None,
        typer.Option("--from", help="what a site wrote with dpfpl-client describe, or a pilot's folder; repeat"),
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="a class; repeat. Default: all classes in those files")
    ] = None,
    width: Annotated[int | None, typer.Option(help="of the model, as dpfpl-client check prints it")] = None,
    fingerprint: Annotated[str | None, typer.Option(help="of the model, as dpfpl-client check prints it")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="for the recipient of a site's prompt", show_default="the pilot's, else 8")
    ] = None,
    server: ServerFolder = SERVER,
    out: Annotated[Path, typer.Option(help="file to write")] = Path("experiment.toml"),
    as_json: AsJson = False,
) -> None:
    """Write experiment.toml for the provisioned sites, from a pilot, from what sites told, or from what you give."""
    from dpfpl_common.config import read_toml
    from dpfpl_common.ops.files import write_durably
    from dpfpl_server.runs.new import experiment_text
    from dpfpl_server.sites.register import load_sites

    sites = list(load_sites(server.resolve()))
    if not sites:
        raise ConfigError(
            code="NO_SITES",
            message=f"No site is provisioned in {server}.",
            advice="Provision them first (dpfpl-server provision), or name the server's folder: --server.",
        )
    refuse_existing(out)
    model = {key: value for key, value in (("width", width), ("fingerprint", fingerprint)) if value is not None}
    text = experiment_text(name, told or (), sites, classes=classes or (), model=model, epsilon=epsilon)
    write_durably(out.absolute(), text.encode(), 0o644)
    if as_json:
        print_json(read_toml(out))
    else:
        typer.echo(f"wrote {out}\nNext: dpfpl-server plan {out}")


def plan(
    experiment: File,
    server: ServerFolder = SERVER,
    runs: RunsFolder = RUNS,
    out: Annotated[Path | None, typer.Option(help="write the plan here; sites approve this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what an experiment would cost and who would refuse it; nothing is sent, nothing is started.

    Exit code 3 if a refusal is foreseen.
    """
    from dpfpl_common.ops.files import write_durably
    from dpfpl_server.runs.plan import make_plan, plan_lines
    from dpfpl_server.runs.supervise import load_planned_experiment
    from dpfpl_server.sites.register import load_sites

    planned = load_planned_experiment(experiment, server.resolve(), registered=False)
    made = make_plan(planned, load_sites(server.resolve()), runs)
    if out is not None:
        write_durably(out.absolute(), (json.dumps(made, indent=2) + "\n").encode(), 0o644)
    if as_json:
        print_json(made)
    else:
        typer.echo("\n".join(plan_lines(made)))
        if out is not None:
            typer.echo(f"{out}: hand it to the sites; each approves it with dpfpl-client approve {out.name}")
    sys.exit(FAILED if made["refusals"] else 0)


def run(
    experiment: File,
    server: ServerFolder = SERVER,
    runs: RunsFolder = RUNS,
    restarts: Restarts = 5,
    server_wait: ServerWait = 600.0,
    site_wait: SiteWait = 120.0,
    as_json: AsJson = False,
) -> None:
    """Run an experiment on the running server and see it to its end, resuming it where it is cut off.

    Exit codes: 0 finished, 2 wrong input, 3 failed for the reason given, 4 stopped by dpfpl-server stop, 130 Ctrl-C.
    """
    from dpfpl_server.runs.supervise import load_planned_experiment

    planned = load_planned_experiment(experiment, server.resolve())
    _run(planned, server, runs, (restarts, server_wait, site_wait), as_json)


def resume(
    name: Name,
    server: ServerFolder = SERVER,
    runs: RunsFolder = RUNS,
    restarts: Restarts = 5,
    server_wait: ServerWait = 600.0,
    site_wait: SiteWait = 120.0,
    as_json: AsJson = False,
) -> None:
    """Continue an experiment after its last completed round; sites repeat what they released at no cost.

    A run that still works without a supervisor is supervised again. Exit codes as for run.
    """
    from dpfpl_server.runs.folder import RunFolder

    experiment = RunFolder(runs / name).experiment()
    _run(experiment, server, runs, (restarts, server_wait, site_wait), as_json)


def status(name: Name, server: ServerFolder = SERVER, runs: RunsFolder = RUNS, as_json: AsJson = False) -> None:
    """Show what an experiment is doing or waiting for, whether its program is alive, and which certificate ends.

    Exit codes: 0 finished or going on, 3 failed, 4 stopped or cut off, 5 waiting for sites or hanging.
    """
    from dpfpl_server.runs.folder import RunFolder
    from dpfpl_server.runs.state import run_state
    from dpfpl_server.sites.certificates import expiry_warnings
    from dpfpl_server.sites.life import part_troubles

    state, warnings = run_state(RunFolder(runs / name)), expiry_warnings(server)
    warnings += [f"{trouble.message} [{trouble.code}]" for trouble in part_troubles(server)]
    if as_json:
        print_json({**state.table(), "warnings": warnings})
    else:
        typer.echo("\n".join([*state.lines(), *(f"WARNING {text}" for text in warnings)]))
    sys.exit(exit_code_of_state(state.state))


def watch(name: Name, server: ServerFolder = SERVER, runs: RunsFolder = RUNS, as_json: AsJson = False) -> None:
    """Watch an experiment that was started elsewhere, live, until it ends; Ctrl-C leaves it alone.

    With --json every event is one line of JSON. Exit codes as for status.
    """
    from dpfpl_server.runs.folder import RunFolder
    from dpfpl_server.runs.state import run_state
    from dpfpl_server.sites.certificates import expiry_warnings
    from dpfpl_server.watch.terminal import LiveDisplay

    folder = RunFolder(runs / name)
    experiment = folder.experiment()
    for text in expiry_warnings(server):
        console.print(f"WARNING {text}", soft_wrap=True)
    display = LiveDisplay(name, experiment.rounds.number, console=console)
    seen, quiet_since = 0, time.monotonic()
    for event in [] if as_json else folder.events():  # what was, at once; then live
        display.state, seen = display.state.after(event), seen + 1
    with display:
        while True:
            for event in folder.events(seen):
                seen += 1
                if as_json:
                    sys.stdout.write(json.dumps(event) + "\n")
                    sys.stdout.flush()
                else:
                    display.update(event)
            state = run_state(folder)
            if not state.over:
                quiet_since = time.monotonic()
            elif state.state == "FINISHED" or time.monotonic() - quiet_since >= GRACE_SECONDS:
                break
            time.sleep(WATCH_SECONDS)
    if not as_json:
        typer.echo("\n".join(state.lines()))
    sys.exit(exit_code_of_state(state.state))


def stop(name: Name, server: ServerFolder = SERVER, runs: RunsFolder = RUNS, as_json: AsJson = False) -> None:
    """Stop a running experiment; completed rounds are kept, and resume continues it."""
    from dpfpl_server.runs.folder import RunFolder
    from dpfpl_server.runs.state import run_state
    from dpfpl_server.runs.supervise import stop_experiment

    folder = RunFolder((runs / name).resolve())
    stop_experiment(folder, server.resolve())
    if as_json:
        print_json(run_state(folder).table())
    else:
        typer.echo(f"{name} is stopped. To continue: dpfpl-server resume {name}")


def list_runs(runs: RunsFolder = RUNS, as_json: AsJson = False) -> None:
    """List all experiments of the runs folder with where they stand."""
    from dpfpl_server.runs.folder import RunFolder
    from dpfpl_server.runs.state import run_state

    states: list[dict[str, Any]] = []
    folders = sorted(runs.iterdir()) if runs.is_dir() else []  # glob would take an unreadable folder for an empty one
    for folder in folders:
        if not (folder / "experiment.json").is_file():
            continue
        try:
            states.append(run_state(RunFolder(folder)).table())
        except DpfplError as error:
            states.append({"name": folder.name, "state": "DAMAGED", "meaning": str(error)})
    if as_json:
        print_json(states)
        return
    if not states:
        typer.echo(f"No experiment in {runs} yet.")
        return
    table = Table("experiment", "state", "rounds", "meaning", box=None, pad_edge=False)
    for state in states:
        rounds = f"{state['round']}/{state['rounds']}" if "round" in state else ""
        table.add_row(state["name"], state["state"], rounds, state["meaning"])
    Console(markup=False, highlight=False).print(table)


def _run(experiment: "Experiment", server: Path, runs: Path, limits: tuple[int, float, float], as_json: bool) -> None:
    from dpfpl_server.runs.supervise import Limits, run_experiment
    from dpfpl_server.watch.terminal import LiveDisplay, print_result

    folder = runs / experiment.name
    with LiveDisplay(experiment.name, experiment.rounds.number, console=console) as display:
        result = run_experiment(experiment, server.resolve(), folder, display.update, Limits(*limits))
    if as_json:
        print_json(result)
        return
    print_result(result, Console(markup=False, highlight=False))
    typer.echo(f"\n{folder / 'result.json'}  {folder / 'report.html'}")
