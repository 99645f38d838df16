"""``dpfpl-client describe``, ``doctor``, ``health`` and ``forget``: before, during and after taking part."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from dpfpl_client.cli.say import say

__all__ = ["add_commands"]

SiteFile = Annotated[Path, typer.Option("--site", help="the site's site.toml")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
SITE = Path("site.toml")


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands to ``dpfpl-client``."""
    app.command(epilog="Example: dpfpl-client describe --site site.toml --with-classes --out hospital-a.json")(describe)
    app.command(epilog="Example: dpfpl-client doctor --site site.toml. Exit codes: 0 all well, 1 warnings, 2 errors.")(
        doctor
    )
    app.command(
        epilog="Example: dpfpl-client health --site site.toml --part agent. Exit codes: 0 healthy, 1 unhealthy, "
        "2 wrong arguments."
    )(health)
    app.command(epilog="Example: dpfpl-client forget xrays-1 --site site.toml --yes")(forget)


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
    from dpfpl_client.site.settings import load_site
    from dpfpl_common.config import to_table
    from dpfpl_common.experiment import ModelSettings, SiteDescription
    from dpfpl_common.ops.files import write_durably

    settings = load_site(site)
    backbone = load_computing(settings.model, settings.compute, offline=settings.offline)
    model = ModelSettings(backbone.width, Path(settings.model).name, backbone.fingerprint)
    told = SiteDescription(settings.name, model, list_classes(settings.data) if with_classes else ())
    text = json.dumps(to_table(told), indent=2, ensure_ascii=False)
    if out is None:
        say(text)
    else:
        write_durably(out.absolute(), (text + "\n").encode(), 0o644)
        say(f"wrote {out}: hand it to the operator")


def doctor(
    site: SiteFile = SITE,
    offline: Annotated[bool, typer.Option("--offline", help="do not ask the server")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what keeps this site from taking part and what to do; changes nothing."""
    from dpfpl_client.doctor import examine_site
    from dpfpl_client.site.settings import load_site
    from dpfpl_common.ops.diagnostics import exit_code, findings_json, findings_text

    findings = examine_site(load_site(site), connect=not offline)
    say(json.dumps(findings_json(findings), indent=2) if as_json else findings_text(findings))
    sys.exit(exit_code(findings))


def health(
    site: SiteFile = SITE,
    part: Annotated[list[str] | None, typer.Option(help="agent, budget or link; repeat; default: all")] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether the site can take part now; for probes of containers and service managers."""
    from dpfpl_client.doctor import PARTS, site_troubles
    from dpfpl_client.site.settings import load_site
    from dpfpl_common.errors import ConfigError
    from dpfpl_common.ops.diagnostics import HEALTHY, UNHEALTHY, report

    parts = tuple(part or PARTS)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ConfigError(
            code="UNKNOWN_PART", message=f"There is no part {unknown[0]!r}.", advice=f"Known: {', '.join(PARTS)}."
        )
    troubles = site_troubles(load_site(site), parts)
    if as_json:
        say(json.dumps(report(troubles), indent=2))
    else:
        for trouble in troubles:
            say(f"{trouble.part}: {trouble.message} [{trouble.code}]")
        say("unhealthy" if troubles else "healthy")
    sys.exit(UNHEALTHY if troubles else HEALTHY)


def forget(
    experiment: Annotated[str, typer.Argument(help="name of the experiment to leave")],
    site: SiteFile = SITE,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_json: AsJson = False,
) -> None:
    """Leave an experiment for good and remove its prompt; the ledger keeps what was spent."""
    from dpfpl_client.agent.audit import AUDIT_FILE, AuditLog
    from dpfpl_client.agent.store import DiskStore
    from dpfpl_client.site.settings import load_site
    from dpfpl_common.errors import ConfigError
    from dpfpl_common.experiment import NAME

    if not NAME.fullmatch(experiment):
        raise ConfigError(code="IMPOSSIBLE_VALUE", message=f"{experiment!r} is no name of an experiment.", advice="")
    settings = load_site(site)
    store = DiskStore(settings.state_folder)
    if not yes and not as_json:
        typer.confirm(f"Remove this site's prompt of {experiment} for good?", abort=True)
    removed = store.forget(experiment)
    AuditLog(settings.state_folder / AUDIT_FILE).write("forgotten", experiment=experiment, removed=removed)
    if as_json:
        say(json.dumps({"experiment": experiment, "removed": removed}))
        return
    what = "its prompt and releases are removed" if removed else "nothing of it was stored here"
    say(f"{experiment}: {what}; requests for it are refused from now on. The ledger keeps what it cost.")
