"""The commands for those who decide and those who watch: doctor, health, report, track, roi-template, console."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpfpl_common.errors import ConfigError, StateError
from dpfpl_server.cli.options import RUNS, SERVER, AsJson, Name, RunsFolder, ServerFolder, print_json, refuse_existing

if TYPE_CHECKING:
    from dpfpl_server.runs.folder import RunFolder

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to ``dpfpl-server``."""
    app.command(epilog="Example: dpfpl-server doctor --server server. Exit codes: 0 all well, 1 warnings, 2 errors.")(
        doctor
    )
    app.command(epilog="Example: dpfpl-server health --server server. Exit codes: 0 healthy, 1 unhealthy.")(health)
    for name, command, example in (
        ("report", report, "report demo --lang ja --roi roi.toml"),
        ("track", track, "track demo --mlflow http://127.0.0.1:5000"),
        ("roi-template", roi_template, "roi-template --out roi.toml"),
        ("console", console, "console --runs runs --server server --port 8090"),
    ):
        app.command(name, epilog=f"Example: dpfpl-server {example}")(command)


def doctor(server: ServerFolder = SERVER, as_json: AsJson = False) -> None:
    """Say what is wrong on the server's side and what to do; changes nothing."""
    from dpfpl_common.ops.diagnostics import exit_code, findings_json, findings_text
    from dpfpl_server.watch.doctor import examine_server

    findings = examine_server(server)
    if as_json:
        print_json(findings_json(findings))
    else:
        typer.echo(findings_text(findings))
    sys.exit(exit_code(findings))


def health(server: ServerFolder = SERVER, as_json: AsJson = False) -> None:
    """Say whether the server serves now; for probes of containers and service managers."""
    from dpfpl_common.ops.diagnostics import HEALTHY, UNHEALTHY
    from dpfpl_common.ops.diagnostics import report as troubles_table
    from dpfpl_server.watch.metrics import server_troubles

    troubles = server_troubles(server)
    if as_json:
        print_json(troubles_table(troubles))
    else:
        for trouble in troubles:
            typer.echo(f"{trouble.part}: {trouble.message} [{trouble.code}]")
        typer.echo("unhealthy" if troubles else "healthy")
    sys.exit(UNHEALTHY if troubles else HEALTHY)


def report(
    name: Name,
    runs: RunsFolder = RUNS,
    lang: Annotated[str, typer.Option(help="language: en or ja")] = "en",
    roi: Annotated[
        Path | None, typer.Option(help="the company's figures, see roi-template; adds the return on investment")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="file to write; default: report.html beside result.json")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the pilot report of a finished experiment for management and say where it is."""
    from dpfpl_server.report import read_roi, write_report
    from dpfpl_server.runs.folder import RunFolder

    folder = RunFolder(runs / name)
    _result(folder)
    path = write_report(folder.path, lang, read_roi(roi) if roi else None, out)
    if as_json:
        print_json({"report": str(path), "result": str(folder.path / "result.json")})
    else:
        typer.echo(str(path))


def track(
    name: Name,
    runs: RunsFolder = RUNS,
    mlflow: Annotated[str | None, typer.Option(help="MLflow's tracking server: http://127.0.0.1:5000")] = None,
    mlflow_experiment: Annotated[str, typer.Option(help="MLflow's experiment, a collection of runs")] = "dpfpl",
    tensorboard: Annotated[Path | None, typer.Option(help="folder for TensorBoard; the run gets one in it")] = None,
    send_exact: Annotated[
        bool,
        typer.Option(
            "--send-exact",
            help="send a simulation too, if everybody who reads the tracker may know its exact accuracies",
        ),
    ] = False,
) -> None:
    """Send a finished experiment to MLflow or TensorBoard: what result.json holds, and nothing else.

    A simulation holds exact accuracies of the images, so it goes to MLflow with --send-exact alone. TensorBoard's
    folder is on this machine, as result.json is: show it to people who may see the images.
    """
    from dpfpl_server.runs.folder import RunFolder
    from dpfpl_server.runs.tracking import MlflowTracker, TensorboardTracker, refuse_simulated
    from dpfpl_server.runs.tracking import track as send

    if mlflow is None and tensorboard is None:
        raise ConfigError(code="NO_TRACKER", message="No tracker is named.", advice="Give --mlflow or --tensorboard.")
    result = _result(RunFolder(runs / name))
    if mlflow is not None and not send_exact:
        refuse_simulated(result)
    if tensorboard is not None:  # first, as it is refused where it was done before
        send(result, TensorboardTracker(tensorboard / name))
        typer.echo(f"wrote {tensorboard / name}; see tensorboard --logdir {tensorboard}")
    if mlflow is not None:
        send(result, MlflowTracker(mlflow, mlflow_experiment, name))
        typer.echo(f"sent to MLflow at {mlflow}, experiment {mlflow_experiment}, run {name}")


def _result(folder: "RunFolder") -> dict[str, Any]:
    """What result.json holds.

    Raises:
        StateError: NO_RESULT, or there is no such run.
    """
    result: dict[str, Any] | None = folder.read_json("result.json")
    if result is None:
        folder.experiment()  # where there is no such run, an error that says so
        raise StateError(
            code="NO_RESULT",
            message=f"{folder.path} has no result yet.",
            advice=f"See dpfpl-server status {folder.path.name}, or resume it.",
        )
    return result


def roi_template(
    out: Annotated[Path | None, typer.Option(help="file to write; default: print it")] = None,
) -> None:
    """Write a roi.toml to fill in, from which the report computes the return on investment."""
    from importlib import resources

    text = resources.files("dpfpl_server.report").joinpath("roi_template.toml").read_text(encoding="utf-8")
    if out is None:
        typer.echo(text, nl=False)
        return
    refuse_existing(out)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            code="CANNOT_WRITE",
            message=f"{out} cannot be written ({error.strerror}).",
            advice="Give --out a file in a folder that exists and is yours.",
        ) from None
    typer.echo(f"wrote {out}")


def console(
    runs: RunsFolder = RUNS,
    server: Annotated[Path, typer.Option("--server", help="the server's folder, for its log and its sites")] = Path(
        "server"
    ),
    host: Annotated[
        str, typer.Option(help="address to listen on; beyond loopback it needs --token-file")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes a free one")] = 8090,
    token_file: Annotated[Path | None, typer.Option(help="file with the token that callers must show")] = None,
) -> None:
    """Show running experiments live in a browser; it only reads. Ctrl-C stops it."""
    from dpfpl_server.watch.console.app import serve_console

    if not runs.is_dir():
        raise ConfigError(
            code="NO_RUNS_FOLDER",
            message=f"{runs} is no folder.",
            advice="Give --runs the folder in which dpfpl-server run keeps its runs.",
        )
    serve_console(runs, server, host, port, token_file, typer.echo)
