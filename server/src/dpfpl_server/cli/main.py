"""``dpfpl-server``: what the operator of a federation types."""

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()  # before Flower is imported, which reads its switch then

import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, NoReturn  # noqa: E402

import typer  # noqa: E402
from rich.console import Console  # noqa: E402

from dpfpl_common.errors import DpfplError  # noqa: E402
from dpfpl_common.ops.files import file_error  # noqa: E402
from dpfpl_common.ops.text import print_version, printable_lines  # noqa: E402
from dpfpl_server.cli import experiments as experiments_cli  # noqa: E402
from dpfpl_server.cli import pilot as pilot_cli  # noqa: E402
from dpfpl_server.cli import sites as sites_cli  # noqa: E402
from dpfpl_server.cli.options import (  # noqa: E402
    HELP,
    INTERRUPTED,
    RUNS,
    SERVER,
    Archive,
    AsJson,
    CaKey,
    ServerFolder,
    exit_code_of,
    print_json,
)

__all__ = ["main"]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(sites_cli.sites_app, name="sites")
app.command("renew", epilog="Example: dpfpl-server renew --ca-key /media/stick/ca.key")(sites_cli.renew)
console = Console(stderr=True, markup=False, highlight=False)


@app.callback(epilog=HELP)
def about(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version("dpfpl-server"), help="print the version")
    ] = False,
) -> None:
    """Start the aggregation server of a DP-FPL federation, provision sites, run experiments.

    First steps: provision sites, hand each its kit, start the server, run an experiment.
    """


@app.command(
    epilog="Example: dpfpl-server provision --address fl.example.org; for a trial: dpfpl-server provision --site a "
    "--site b --out kits"
)
def provision(
    site: Annotated[
        list[str] | None, typer.Option(help="name of a site whose keys are made here; repeat for more")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for the kits, one a site")] = Path("kits"),
    server: ServerFolder = SERVER,
    address: Annotated[
        str, typer.Option(help="name or IP under which the sites reach the server; default: 127.0.0.1")
    ] = "",
    port: Annotated[int, typer.Option(help="port under which the sites reach the server")] = 9092,
    also: Annotated[list[str] | None, typer.Option(help="further names or IPs for the certificate")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the keys of sites that have keys already")] = False,
    archive: Archive = "",
    ca_key: CaKey = None,
    as_json: AsJson = False,
) -> None:
    """Make the certificate authority and the server's certificate, and a kit with keys for every --site.

    Sites that make their keys themselves are added afterwards: dpfpl-server sites add NAME --public-key FILE.
    """
    from dpfpl_server.sites.provision import ProvisionRequest
    from dpfpl_server.sites.provision import provision as make

    if not site and not address:
        raise typer.BadParameter("give --address, or --site for a trial on this machine")
    result = make(
        ProvisionRequest(
            server_folder=server,
            kits_folder=out,
            sites=tuple(site or ()),
            address=address or "127.0.0.1",
            port=port,
            more_addresses=tuple(also or ()),
            force=force,
            archive=archive,
            ca_key=ca_key,
        )
    )
    if as_json:
        print_json({"kits": {name: str(path) for name, path in result.kits.items()}, "unchanged": result.unchanged})
        return
    for name, path in result.kits.items():
        typer.echo(f"{name}: {path}")
    for name in result.unchanged:
        typer.echo(f"{name}: has its keys already, nothing changed")
    if result.kits:
        typer.echo(
            "Hand each site its folder in a way that nobody else can read: it holds private keys that were made here. "
            "Sites that make their own are added with dpfpl-server sites add NAME --public-key FILE."
        )


@app.command(epilog="Example: dpfpl-server start --server server")
def start(
    server: ServerFolder = SERVER,
    host: Annotated[str, typer.Option(help="address that the sites' port listens on")] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(help="port that the sites connect to (gRPC, TLS)")] = 9092,
    control_port: Annotated[int, typer.Option(help="port of this machine only, for run, status and stop")] = 8000,
    monitor: Annotated[str, typer.Option(help="show /health and /metrics at this address: 127.0.0.1:9466")] = "",
    monitor_public: Annotated[
        bool, typer.Option("--monitor-public", help="let other machines reach that address")
    ] = False,
    runs: Annotated[Path, typer.Option("--runs", help="folder of the runs whose metrics are shown")] = RUNS,
) -> None:
    """Start the server in this terminal; Ctrl-C stops it. A part of it that ends is started again."""
    from dpfpl_server.sites.certificates import expiry_warnings
    from dpfpl_server.sites.superlink import SuperLinkSettings, serve
    from dpfpl_server.watch.metrics import start_server_monitor

    for text in expiry_warnings(server):
        console.print(f"WARNING {text}", soft_wrap=True)
    settings = SuperLinkSettings(server.resolve(), fleet_address=f"{host}:{port}", control_port=control_port)

    def ready() -> None:
        typer.echo(f"Listening for sites on {host}:{port} (gRPC, TLS, registered keys only). Log: {settings.log_file}")
        if monitor:
            shown = start_server_monitor(server.resolve(), runs.resolve(), monitor, public=monitor_public)
            typer.echo(f"Health and metrics: http://{shown.address}/health and /metrics")
        typer.echo("Run an experiment from another terminal: dpfpl-server run EXPERIMENT.toml")

    serve(settings, ready, typer.echo)


experiments_cli.register(app)
pilot_cli.register(app)


def main() -> None:
    """Entry point: our own errors become one clear message and an exit code."""
    try:
        app()
    except DpfplError as error:
        _fail(error)
    except OSError as error:
        known = file_error(error)
        if known is None:
            raise
        _fail(known)
    except SystemExit as leave:
        if leave.code == INTERRUPTED:  # what typer makes of Ctrl-C
            console.print("Stopped. To continue: dpfpl-server resume NAME")
        raise


def _fail(error: DpfplError) -> NoReturn:
    text = printable_lines(f"{error.code}: {error.message}\n{error.advice}")
    console.print(text, style="bold", soft_wrap=True)
    sys.exit(exit_code_of(error))
