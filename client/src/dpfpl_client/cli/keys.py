"""``dpfpl-client enroll`` and ``peers``: keys that the site makes itself, and those of other sites that it checks."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dpfpl_client.cli.say import say
from dpfpl_common.errors import ConfigError

__all__ = ["add_key_commands"]

SiteFile = Annotated[Path, typer.Option("--site", help="the site's site.toml")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
SITE = Path("site.toml")

peers_app = typer.Typer(no_args_is_help=True, help="Other sites' keys in secure sums: compare them, pin them.")


def add_key_commands(app: typer.Typer) -> None:
    """Add this module's commands to ``dpfpl-client``."""
    app.command(epilog="Example: dpfpl-client enroll --name hospital-a --site hospital-a/site.toml")(enroll)
    app.add_typer(peers_app, name="peers")


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
        _print_json({"site": enrolment.site, "public_file": str(public), "fingerprints": keys})
        return
    for key, text in keys.items():
        say(f"{key.replace('_', ' ')}: {text}")
    say(f"wrote {public}. The *.key files beside it stay here, readable by this user alone.")
    say(
        "Next: send that file to the operator, who answers with a kit without keys: dpfpl-client init --kit KIT --into "
        f"{public.parent}. Read the aggregation key's fingerprint to the operator and to the other sites by another "
        "way, for instance on the telephone: it vouches for the other two keys."
    )


@peers_app.command("show", epilog="Example: dpfpl-client peers show --site site.toml. Exit code 1: a key differs.")
def peers_show(site: SiteFile = SITE, as_json: AsJson = False) -> None:
    """Other sites' aggregation keys: what the server sent for the last secure sum, and what this site pinned."""
    keys = _keys(site)
    pins, seen = keys.pinned(), keys.seen()
    rows = [
        {"site": name, "sent": seen.get(name), "pinned": pins.get(name), "state": _state(name, pins, seen)}
        for name in sorted({*pins, *seen})
    ]
    if as_json:
        _print_json({"peers": rows})
    for row in [] if as_json else rows:
        say(f"{row['site']}: {row['sent'] or row['pinned'] or 'signs nothing'}: {row['state']}")
        if row["state"] == "DIFFERS":
            say(f"  pinned is {row['pinned']}: sums with these keys are refused")
    if not pins and not as_json:
        say("Nothing is pinned: an operator that invents sites could read this site's part of a secure sum.")
    sys.exit(1 if any(row["state"] == "DIFFERS" for row in rows) else 0)


@peers_app.command("pin", epilog="Example: dpfpl-client peers pin hospital-b SHA256:... --site site.toml")
def peers_pin(
    peer: Annotated[str, typer.Argument(help="name of the other site")],
    told: Annotated[
        str, typer.Argument(help="fingerprint that its people read to you; default: the one that was sent")
    ] = "",
    site: SiteFile = SITE,
    remove: Annotated[bool, typer.Option("--remove", help="remove the pin")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_json: AsJson = False,
) -> None:
    """Accept one aggregation key for a site; once one site is pinned, every site of a secure sum must be."""
    import re

    from dpfpl_client.agent.audit import AUDIT_FILE, AuditLog
    from dpfpl_client.site.settings import load_site
    from dpfpl_common.experiment import SITE_NAME
    from dpfpl_common.secure.enrolment import FINGERPRINT

    keys, settings = _keys(site), load_site(site)
    wanted = None if remove else told or keys.seen().get(peer, "")
    if not SITE_NAME.fullmatch(peer) or (wanted is not None and not re.fullmatch(FINGERPRINT, wanted)):
        raise ConfigError(
            code="NO_FINGERPRINT",
            message=f"{peer!r} with {wanted!r} is no site's name and fingerprint.",
            advice="Ask the people at that site: dpfpl-client enroll printed it there as SHA256: and 43 characters.",
        )
    before = keys.pinned().get(peer)
    if not (yes or as_json):
        was = f", instead of {before}" if before else ""
        typer.confirm(
            f"{'Unpin' if remove else 'Pin'} {peer}: {wanted or before}{was}? Did people at that site confirm it?",
            abort=True,
        )
    keys.pin(peer, wanted)
    audit = AuditLog(settings.state_folder / AUDIT_FILE)
    audit.write("peer_pinned", peer=peer, fingerprint=wanted or "", before=before or "")
    if as_json:
        _print_json({"peer": peer, "pinned": wanted, "before": before})
    else:
        say(f"{peer}: {'no longer pinned' if wanted is None else f'pinned, {wanted}'}")


def _keys(site: Path) -> Any:
    from dpfpl_client.agent.peers import aggregation_keys
    from dpfpl_client.site.settings import load_site

    return aggregation_keys(load_site(site), with_own=False)


def _state(name: str, pins: dict[str, str], seen: dict[str, str]) -> str:
    if name not in pins:
        return "not pinned"
    return "pinned" if seen.get(name, pins[name]) == pins[name] else "DIFFERS"


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")
