"""``dpfpl-server doctor`` and ``health``."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["add_commands"]

ServerFolder = Annotated[Path, typer.Option("--server", help="the server's folder: keys, register of sites, database")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
SERVER = Path("server")


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands to ``dpfpl-server``."""
    app.command(epilog="Example: dpfpl-server doctor --server server. Exit codes: 0 all well, 1 warnings, 2 errors.")(
        doctor
    )
    app.command(epilog="Example: dpfpl-server health --server server. Exit codes: 0 healthy, 1 unhealthy.")(health)


def doctor(server: ServerFolder = SERVER, as_json: AsJson = False) -> None:
    """Say what is wrong on the server's side and what to do; changes nothing."""
    from dpfpl_common.ops.diagnostics import exit_code, findings_json, findings_text
    from dpfpl_server.watch.doctor import examine_server

    findings = examine_server(server)
    typer.echo(json.dumps(findings_json(findings), indent=2) if as_json else findings_text(findings))
    sys.exit(exit_code(findings))


def health(server: ServerFolder = SERVER, as_json: AsJson = False) -> None:
    """Say whether the server serves now; for probes of containers and service managers."""
    from dpfpl_common.ops.diagnostics import HEALTHY, UNHEALTHY, report
    from dpfpl_server.watch.metrics import server_troubles

    troubles = server_troubles(server)
    if as_json:
        typer.echo(json.dumps(report(troubles), indent=2))
    else:
        for trouble in troubles:
            typer.echo(f"{trouble.part}: {trouble.message} [{trouble.code}]")
        typer.echo("unhealthy" if troubles else "healthy")
    sys.exit(UNHEALTHY if troubles else HEALTHY)
