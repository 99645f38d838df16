"""``dpfpl-client``: what the administrator of a site types."""

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()  # before Flower or a model library is imported, which read their switches then

import json  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any, NoReturn  # noqa: E402

import typer  # noqa: E402

from dpfpl_client.agent.progress import ImageProgress  # noqa: E402
from dpfpl_client.cli import gate, use  # noqa: E402
from dpfpl_client.cli.options import SITE, AsJson, SiteFile, console, load, print_json, say, tell  # noqa: E402
from dpfpl_common.errors import ConfigError, DpfplError  # noqa: E402
from dpfpl_common.ops.files import file_error  # noqa: E402
from dpfpl_common.ops.text import print_version, printable_lines  # noqa: E402

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(gate.app)
app.add_typer(use.app)
INTERRUPTED = 130


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version("dpfpl-client"), help="print the version")
    ] = False,
) -> None:
    """Take part in a DP-FPL federation with this site's own images, which never leave it."""


@app.command(
    epilog="Example: dpfpl-client init --kit hospital-a.tar.gz --data /data/xrays --model /models/clip-b16 "
    "--class-map Viral_Pneumonia='viral pneumonia'"
)
def init(
    data: Annotated[
        str | None, typer.Option(help="image folder, .csv (path,label), .jsonl (questions), digits or shapes")
    ] = None,
    site: SiteFile = SITE,
    name: Annotated[str, typer.Option(help="the site's name, for a site without a kit")] = "site",
    kit: Annotated[
        Path | None, typer.Option(help="the operator's archive; unpacked first, or its keys renewed")
    ] = None,
    into: Annotated[Path | None, typer.Option(help="folder for the kit; default: the site's name")] = None,
    sha256: Annotated[str | None, typer.Option(help="the archive's checksum, as the operator gave it to you")] = None,
    model: Annotated[str | None, typer.Option(help="a folder or a hub id, as the operator names it")] = None,
    class_map: Annotated[
        list[str] | None,
        typer.Option(
            "--class-map", metavar="OWN=NAME", help="a class of yours and what the experiment calls it; repeat"
        ),
    ] = None,
    usual_mix: Annotated[
        float | None, typer.Option(help="share of images that predict and serve expect from your usual mix of classes")
    ] = None,
) -> None:
    """Unpack a kit and write into site.toml what you give; makes site.toml and policy.toml where there is no kit."""
    from dpfpl_client.site.init import initialise, model_note
    from dpfpl_client.site.kit import unpack_kit
    from dpfpl_common.config import key_values

    if kit is not None:
        folder, written = unpack_kit(kit, into, sha256)
        site = folder / "site.toml"
        say(f"unpacked {', '.join(path.name for path in written)} into {folder}")
    if data is not None or class_map or model is not None or usual_mix is not None:
        mapped = key_values("--class-map", class_map or ())
        for path in initialise(site, data, name, model=model, class_map=mapped, usual_mix=usual_mix):
            say(f"wrote {path}")
    elif kit is None:
        raise ConfigError(code="NO_DATA", message="There is nothing to do.", advice="Give --data, --kit or both.")
    if data is not None and (note := model_note(site)):
        say(note)
    gate.ask_about_looser_rules(site)
    say(f"Next: read policy.toml, then dpfpl-client check --site {site}")


@app.command(epilog="Example: dpfpl-client enroll --name hospital-a --site hospital-a/site.toml")
def enroll(
    site: SiteFile = SITE,
    name: Annotated[str, typer.Option(help="the site's name, where there is no site.toml yet")] = "",
    force: Annotated[bool, typer.Option("--force", help="replace existing keys")] = False,
    as_json: AsJson = False,
) -> None:
    """Make this site's keys here; only their public halves, in one small file, go to the operator."""
    from dpfpl_client.site.kit import enroll as make
    from dpfpl_common.config import to_table
    from dpfpl_common.secure.enrolment import fingerprint

    enrolment, public = make(site, name, force=force)
    keys = {key: fingerprint(line) for key, line in to_table(enrolment).items() if key.endswith("_key")}
    if as_json:
        print_json({"site": enrolment.site, "public_file": str(public), "fingerprints": keys})
        return
    for key, text in keys.items():
        say(f"{key.replace('_', ' ')}: {text}")
    say(f"wrote {public}. The *.key files beside it stay here, readable by this user alone.")
    say(
        "Next: send that file to the operator, who answers with a kit without keys: dpfpl-client init --kit KIT --into "
        f"{public.parent}. Read the aggregation key's fingerprint to the operator and to the other sites by another "
        "way, for instance on the telephone: it vouches for the other two keys."
    )


@app.command(
    epilog="Example: dpfpl-client check --site kits/hospital-a/site.toml. "
    "Exit codes: 0 ready, 1 ready with warnings, 2 cannot take part."
)
def check(
    site: SiteFile = SITE,
    offline: Annotated[bool, typer.Option("--offline", help="do not try to reach the server")] = False,
    plan: Annotated[Path | None, typer.Option(help="an operator's plan, to be judged for this site")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="treat every warning as an error")] = False,
    as_json: AsJson = False,
) -> None:
    """Check images, model, policy, ledger, folders, kit, connection and clock; keeps and sends nothing."""
    from dpfpl_client.check import check_site

    report = check_site(load(site), connect=not offline, plan=plan)
    if strict:
        report.make_strict()
    if as_json:
        print_json({"facts": report.facts, "warnings": report.warnings, "errors": report.errors})
    else:
        for key, value in report.facts.items():
            say(f"{key}: {_plain(value)}")
        for text in report.warnings:
            say(f"WARNING {text}")
        for text in report.errors:
            say(f"ERROR {text}")
        say("Cannot take part yet." if report.errors else "Ready.")
    sys.exit(2 if report.errors else 1 if report.warnings else 0)


@app.command(epilog="Example: dpfpl-client describe --site site.toml --with-classes --out hospital-a.json")
def describe(
    site: SiteFile = SITE,
    with_classes: Annotated[
        bool, typer.Option("--with-classes", help="also list the classes that this site has images of")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="file to write; default: print it")] = None,
) -> None:
    """Write what the operator needs for dpfpl-server new-experiment: this site's name and model, no image, no count."""
    from dpfpl_client.data import list_classes
    from dpfpl_client.models.loader import load_computing
    from dpfpl_common.config import to_table
    from dpfpl_common.experiment import ModelSettings, SiteDescription
    from dpfpl_common.ops.files import write_durably

    settings = load(site)
    backbone = load_computing(settings.model, settings.compute, offline=settings.offline)
    model = ModelSettings(backbone.width, Path(settings.model).name, backbone.fingerprint)
    told = SiteDescription(settings.name, model, list_classes(settings.data) if with_classes else ())
    text = json.dumps(to_table(told), indent=2, ensure_ascii=False)
    if out is None:
        say(text)
    else:
        write_durably(out.absolute(), (text + "\n").encode(), 0o644)
        say(f"wrote {out}: hand it to the operator")


@app.command(epilog="Example: dpfpl-client doctor --site site.toml. Exit codes: 0 all well, 1 warnings, 2 errors.")
def doctor(
    site: SiteFile = SITE,
    offline: Annotated[bool, typer.Option("--offline", help="do not ask the server")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what keeps this site from taking part and what to do; changes nothing."""
    from dpfpl_client.doctor import examine_site
    from dpfpl_common.ops.diagnostics import exit_code, findings_json, findings_text

    findings = examine_site(load(site), connect=not offline)
    tell(as_json, findings_json(findings), findings_text(findings))
    sys.exit(exit_code(findings))


@app.command(
    epilog="Example: dpfpl-client health --site site.toml --part agent. Exit codes: 0 healthy, 1 unhealthy, "
    "2 wrong arguments."
)
def health(
    site: SiteFile = SITE,
    part: Annotated[list[str] | None, typer.Option(help="agent, budget or link; repeat; default: all")] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether the site can take part now; for probes of containers and service managers."""
    from dpfpl_client.doctor import PARTS, site_troubles
    from dpfpl_common.ops.diagnostics import HEALTHY, UNHEALTHY, report

    parts = tuple(part or PARTS)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ConfigError(
            code="UNKNOWN_PART", message=f"There is no part {unknown[0]!r}.", advice=f"Known: {', '.join(PARTS)}."
        )
    troubles = site_troubles(load(site), parts)
    lines = [f"{trouble.part}: {trouble.message} [{trouble.code}]" for trouble in troubles]
    tell(as_json, report(troubles), "\n".join([*lines, "unhealthy" if troubles else "healthy"]))
    sys.exit(UNHEALTHY if troubles else HEALTHY)


@app.command(epilog="Example: dpfpl-client start --site kits/hospital-a/site.toml")
def start(site: SiteFile = SITE) -> None:
    """Start this site's agent and its connection to the server; Ctrl-C stops both."""
    from dpfpl_client.node.launch import run_site

    run_site(site.resolve(), load(site), say)


@app.command(
    epilog="Example: sudo dpfpl-client separate --site kits/hospital-a/site.toml --agent-user dpfpl-agent "
    "--node-user dpfpl-node"
)
def separate(
    agent_user: Annotated[str, typer.Option("--agent-user", help="reads images, policy, ledger and prompt")],
    node_user: Annotated[str, typer.Option("--node-user", help="keeps the connection and runs the operator's code")],
    site: SiteFile = SITE,
) -> None:
    """Have agent and SuperNode run as two users: gives each its files and names both in site.toml; run by root."""
    from dpfpl_client.site import separation
    from dpfpl_client.site.init import name_users

    site = site.resolve()
    name_users(site, agent_user, node_user)
    for line in separation.separate(site, load(site)):
        say(line)
    say(f"The images are yours to protect: only {agent_user} may read them. Then, as root: dpfpl-client start")


@app.command(epilog="Example: dpfpl-client agent --site kits/hospital-a/site.toml")
def agent(
    site: SiteFile = SITE,
    address: Annotated[str, typer.Option(help="listen here, not where site.toml says: unix:/path or host:port")] = "",
) -> None:
    """Start only the agent, for deployments that run the connection elsewhere."""
    import dataclasses

    import torch

    from dpfpl_client.agent.build import build_agent
    from dpfpl_client.agent.metrics import MeteredAgent, start_monitor
    from dpfpl_client.agent.service import serve
    from dpfpl_client.site.separation import identities
    from dpfpl_common.ops.telemetry import configure_logging

    configure_logging()
    settings = load(site)
    if address:
        settings = dataclasses.replace(settings, agent=dataclasses.replace(settings.agent, address=address))
    torch.set_num_threads(settings.agent.threads)
    built = build_agent(settings, ImageProgress(say))
    for problem in built.data.problems:
        console.print(f"warning: {problem}")
    if built.loosened:
        console.print(
            f"warning: policy.toml is looser than what was accepted in {', '.join(built.loosened)}; the stricter old "
            f"rules hold. To accept it: dpfpl-client policy accept --site {site}",
        )

    def ready(address: str) -> None:
        settings.ready_file.touch()
        say(f"The agent of {settings.name} listens on {address}")

    metered = MeteredAgent(built.endpoint)
    monitor = start_monitor(settings, metered)
    if monitor is not None:
        say(f"Health and metrics: http://{monitor.address}/health and /metrics")
    serve(
        metered,
        settings.agent_address,
        settings.token_file,
        group=identities(settings)[1].gid if settings.separated else None,
        on_ready=ready,
    )


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _fail(error: DpfplError) -> NoReturn:
    text = printable_lines(f"{error.code}: {error.message}\n{error.advice}")
    console.print(text, style="bold", soft_wrap=True)
    sys.exit(2)


def _unforeseen() -> NoReturn:
    traceback.print_exc()
    sys.exit(2)


def main() -> None:
    """Entry point: our own errors become one clear message and exit code 2.

    So does what nobody foresaw, behind its traceback: Python's own exit code 1 would say "ready, with warnings".
    """
    try:
        app()
    except DpfplError as error:
        _fail(error)
    except OSError as error:
        known = file_error(error)
        if known is None:
            _unforeseen()
        _fail(known)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers", "PIL", "safetensors", "sklearn"):
            _unforeseen()
        advice = 'Install the agent: pip install "dpfpl-client[agent]"'
        console.print(f"{error.name} is missing. {advice}", style="bold", soft_wrap=True)
        sys.exit(2)
    except SystemExit as leave:
        if leave.code == INTERRUPTED:  # what typer makes of Ctrl-C
            console.print("Stopped.")
        raise
    except Exception:  # noqa: BLE001  shown whole, and only the exit code is ours
        _unforeseen()
