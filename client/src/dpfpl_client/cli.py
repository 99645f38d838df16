"""``dpfpl-client``: what the administrator of a site types."""

from dpfpl_common.telemetry import silence_telemetry

silence_telemetry()  # before Flower or a model library is imported, which read their switches then

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any  # noqa: E402

import typer  # noqa: E402
from rich.console import Console  # noqa: E402

from dpfpl_client.site_settings import SiteSettings, load_site  # noqa: E402
from dpfpl_common.errors import ConfigError, DpfplError  # noqa: E402

__all__ = ["main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
ledger_app = typer.Typer(no_args_is_help=True, help="What this site's data have paid so far.")
app.add_typer(ledger_app, name="ledger")
console = Console(stderr=True)
INTERRUPTED = 130

SiteFile = Annotated[Path, typer.Option("--site", help="the site's site.toml")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
SITE = Path("site.toml")


@app.callback()
def about() -> None:
    """Take part in a DP-FPL federation with this site's own images, which never leave it."""


@app.command(epilog="Example: dpfpl-client init --kit hospital-a.tar.gz --data /data/xrays")
def init(
    data: Annotated[str | None, typer.Option(help="image folder, .csv (path,label), digits or shapes")] = None,
    site: SiteFile = SITE,
    name: Annotated[str, typer.Option(help="the site's name, for a site without a kit")] = "site",
    kit: Annotated[
        Path | None, typer.Option(help="the operator's archive; unpacked first, or its keys renewed")
    ] = None,
    into: Annotated[Path | None, typer.Option(help="folder for the kit; default: the site's name")] = None,
    sha256: Annotated[str | None, typer.Option(help="the archive's checksum, as the operator told it")] = None,
) -> None:
    """Unpack a kit and point site.toml at this site's images; makes site.toml and policy.toml where there is no kit."""
    from dpfpl_client.kit import unpack_kit
    from dpfpl_client.starter import initialise

    if kit is not None:
        folder, written = unpack_kit(kit, into, sha256)
        site = folder / "site.toml"
        typer.echo(f"unpacked {', '.join(path.name for path in written)} into {folder}")
    elif data is None:
        raise ConfigError(code="NO_DATA", message="There is nothing to do.", advice="Give --data, --kit or both.")
    for path in initialise(site, data, name) if data is not None else []:
        typer.echo(f"wrote {path}")
    typer.echo(f"Next: read policy.toml, then dpfpl-client check --site {site}")


@app.command(
    epilog="Example: dpfpl-client check --site kits/hospital-a/site.toml. "
    "Exit codes: 0 ready, 1 ready with warnings, 2 cannot take part."
)
def check(
    site: SiteFile = SITE,
    offline: Annotated[bool, typer.Option("--offline", help="do not try to reach the server")] = False,
    as_json: AsJson = False,
) -> None:
    """Check data, model, policy, ledger, kit and connection; sends nothing."""
    from dpfpl_client.check import check_site

    report = check_site(_load(site), connect=not offline)
    if as_json:
        _print_json({"facts": report.facts, "warnings": report.warnings, "errors": report.errors})
    else:
        for key, value in report.facts.items():
            typer.echo(f"{key}: {_plain(value)}")
        for text in report.warnings:
            typer.echo(f"WARNING {text}")
        for text in report.errors:
            typer.echo(f"ERROR {text}")
        typer.echo("Cannot take part yet." if report.errors else "Ready.")
    sys.exit(2 if report.errors else 1 if report.warnings else 0)


@app.command(epilog="Example: dpfpl-client start --site kits/hospital-a/site.toml")
def start(site: SiteFile = SITE) -> None:
    """Start this site's agent and its connection to the server; Ctrl-C stops both."""
    from dpfpl_client.launch import run_site

    run_site(site.resolve(), _load(site), typer.echo)


@app.command(epilog="Example: dpfpl-client agent --site kits/hospital-a/site.toml")
def agent(site: SiteFile = SITE) -> None:
    """Start only the agent, for deployments that run the connection elsewhere."""
    import torch

    from dpfpl_client.agent.build import build_agent
    from dpfpl_client.agent.service import serve

    settings = _load(site)
    torch.set_num_threads(settings.agent.threads)
    built = build_agent(settings, _image_progress)
    for problem in built.data.problems:
        console.print(f"{problem.severity}: {problem.message} [{problem.code}]", markup=False, highlight=False)
    serve(
        built.endpoint,
        settings.agent_address,
        settings.token_file,
        on_ready=lambda address: typer.echo(f"The agent of {settings.name} listens on {address}"),
    )


@app.command(epilog="Example: dpfpl-client predict photo.png scans/ --site site.toml --json")
def predict(
    images: Annotated[list[Path], typer.Argument(help="image files or folders")],
    site: SiteFile = SITE,
    experiment: Annotated[str | None, typer.Option(help="whose prompt; default: the latest")] = None,
    top: Annotated[int, typer.Option(min=1, help="how many classes to show")] = 3,
    as_json: AsJson = False,
) -> None:
    """Classify images with this site's personalised prompt."""
    from dpfpl_client.images import expand_images, open_image
    from dpfpl_client.learning.backbone import load_backbone
    from dpfpl_client.prompt import load_prompt

    settings = _load(site)
    prompt = load_prompt(settings.state_folder, experiment)
    paths = expand_images(images)
    backbone = load_backbone(settings.model, offline=settings.offline)
    predictions = prompt.predict(backbone, (open_image(path) for path in paths), top)
    if as_json:
        _print_json(
            [
                {"image": str(path), "classes": p.classes, "probabilities": p.probabilities}
                for path, p in zip(paths, predictions, strict=True)
            ]
        )
        return
    for path, p in zip(paths, predictions, strict=True):
        best = ", ".join(f"{name} {value:.1%}" for name, value in zip(p.classes, p.probabilities, strict=True))
        typer.echo(f"{path}: {best}")


@app.command(epilog="Example: dpfpl-client export --out prompt --site site.toml")
def export(
    out: Annotated[Path, typer.Option(help="folder to write")],
    site: SiteFile = SITE,
    experiment: Annotated[str | None, typer.Option(help="whose prompt; default: the latest")] = None,
) -> None:
    """Write this site's prompt and all its parts as safetensors. Treat it as confidential as policy demands."""
    from dpfpl_client.learning.backbone import load_backbone
    from dpfpl_client.prompt import load_prompt

    settings = _load(site)
    prompt = load_prompt(settings.state_folder, experiment)
    prompt.export(load_backbone(settings.model, offline=settings.offline), out)
    typer.echo(f"wrote {out / 'prompt.safetensors'} and {out / 'prompt.json'}")


@ledger_app.command("show", epilog="Example: dpfpl-client ledger show --site kits/hospital-a/site.toml")
def ledger_show(site: SiteFile = SITE, as_json: AsJson = False) -> None:
    """Show what was released and what it cost."""
    from dpfpl_client.ledger_view import summarise

    summary = summarise(_load(site))
    if as_json:
        _print_json(summary)
        return
    for row in summary["experiments"]:
        typer.echo(
            f"{row['experiment']}: {row['charges']} charges for {row['rounds']} rounds, {row['released']} released, "
            f"epsilon {_number(row['epsilon'])}"
        )
    typer.echo(
        f"In all: epsilon {_number(summary['spent_epsilon'])} of {summary['max_epsilon_lifetime']:g}"
        f" at delta {summary['delta']:g}"
    )


@ledger_app.command("verify", epilog="Example: dpfpl-client ledger verify --site kits/hospital-a/site.toml")
def ledger_verify(site: SiteFile = SITE, as_json: AsJson = False) -> None:
    """Check the ledger against itself and the stored releases; exit code 2 if something is wrong."""
    from dpfpl_client.ledger_view import verify

    problems = verify(_load(site))
    if as_json:
        _print_json({"problems": problems})
    else:
        typer.echo("\n".join(problems) if problems else "The ledger is in order.")
    sys.exit(2 if problems else 0)


def _load(site: Path) -> SiteSettings:
    return load_site(site)


def _image_progress(done: int, total: int) -> None:
    if done == total or done % 500 == 0:
        typer.echo(f"image features {done}/{total}")


def _number(value: float | str) -> str:
    return f"{value:.2f}" if isinstance(value, float) else value


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """Entry point: our own errors become one clear message and exit code 2."""
    try:
        app()
    except DpfplError as error:
        console.print(
            f"{error.code}: {error.message}\n{error.advice}",
            style="bold",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers", "PIL", "safetensors", "sklearn"):
            raise
        console.print(f'{error.name} is missing. Install the agent: pip install "dpfpl-client[agent]"', style="bold")
        sys.exit(2)
    except SystemExit as leave:
        if leave.code == INTERRUPTED:  # what typer makes of Ctrl-C
            console.print("Stopped.")
        raise
