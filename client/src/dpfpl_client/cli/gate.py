"""``dpfpl-client approve``, ``register``, ``policy`` and ``audit``: how the administrator steers the site's gate."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpfpl_client.cli.say import say
from dpfpl_common.errors import ConfigError

if TYPE_CHECKING:
    from dpfpl_client.site.settings import SiteSettings

__all__ = ["add_gate_commands", "ask_about_looser_rules"]

SiteFile = Annotated[Path, typer.Option("--site", help="the site's site.toml")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]
SITE = Path("site.toml")

policy_app = typer.Typer(no_args_is_help=True, help="The rules of policy.toml that hold now.")
audit_app = typer.Typer(no_args_is_help=True, help="The requests to this site, and what was decided.")


def add_gate_commands(app: typer.Typer) -> None:
    """Hang the commands into ``dpfpl-client``."""
    app.command(
        epilog="Examples: dpfpl-client approve plan.json --site site.toml; dpfpl-client approve --pending. "
        "Exit codes: 0 approved, 1 not approved, 2 error."
    )(approve)
    app.command(epilog="Example: dpfpl-client register --unreadable refuse --site site.toml")(register)
    app.add_typer(policy_app, name="policy")
    app.add_typer(audit_app, name="audit")


def approve(
    plan: Annotated[
        Path | None, typer.Argument(help="the operator's plan: JSON, or experiment.toml with sites")
    ] = None,
    site: SiteFile = SITE,
    pending: Annotated[bool, typer.Option("--pending", help="what was last asked and refused")] = False,
    name: Annotated[str | None, typer.Option(help="with --pending: which one of several")] = None,
    revoke: Annotated[str | None, typer.Option(help="withdraw the approval of this experiment")] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Show what an experiment would release and cost, then approve exactly this configuration."""
    from dpfpl_client.agent.policy_file import Approvals
    from dpfpl_client.approval import describe, pending_plan, read_plan, words

    settings = _load(site)
    approvals, audit = Approvals(settings.state_folder), _audit(settings)
    if revoke is not None:
        known = approvals.revoke(revoke)
        audit.write("approval_revoked", experiment=revoke, known=known)
        _tell(as_json, {"revoked": revoke, "known": known}, f"{revoke} is no longer approved.")
        sys.exit(0 if known else 1)
    if (plan is None) != pending:
        raise ConfigError(
            code="NO_PLAN", message="There is nothing to approve.", advice="Give the operator's plan, or --pending."
        )
    experiment = read_plan(plan) if plan is not None else pending_plan(settings, name)
    description = describe(settings, experiment)
    if not as_json:
        say("\n".join(words(description)))
    agreed = yes or (not as_json and typer.confirm("Approve it?"))
    if agreed:
        costs = {cost["adversary"]: cost["epsilon"] for cost in description["costs"]}
        audit.write("approved", experiment=experiment.name, configuration=experiment.digest(), costs=costs)
        approvals.approve(experiment)
    _tell(as_json, {**description, "approved": agreed}, "Approved." if agreed else "Not approved.")
    sys.exit(0 if agreed else 1)


def register(
    site: SiteFile = SITE,
    unreadable: Annotated[
        str, typer.Option(help="skip or refuse: what to do when a registered image cannot be read later")
    ] = "skip",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Register this site's images, as a first or a new version, under its one privacy ledger; no agent may be running.

    All versions are charged to the same ledger: what replaced images cost is not given back.
    """
    from dpfpl_client.agent.ledger.dataset import register_site

    settings = _load(site)
    if not yes and not typer.confirm("Make what is in the data folder now the registered data set?"):
        sys.exit(1)
    result = register_site(settings, unreadable)
    counts = ", ".join(f"{count} {part}" for part, count in result["images"].items())
    changed = f" Changes: {result['changes']}." if result["changes"] else ""
    _tell(
        as_json,
        result,
        f"Registered version {result['version']}: {counts}, {result['unreadable']} unreadable.{changed}",
    )


@policy_app.command("show", epilog="Example: dpfpl-client policy show --site site.toml")
def policy_show(site: SiteFile = SITE, as_json: AsJson = False) -> None:
    """The rules that hold now; a rule made looser in policy.toml does not hold before it is accepted."""
    from dpfpl_client.agent.policy_file import PolicyFile
    from dpfpl_common.config import to_table

    settings = _load(site)
    rules = PolicyFile(settings.path(settings.policy), settings.state_folder, _audit(settings))
    table, looser = to_table(rules.peek()), rules.pending()
    if as_json:
        _print_json({"rules": table, "not_accepted": looser})
        return
    for key, value in table.items():
        say(f"{key} = {json.dumps(value)}" + ("   # looser in policy.toml, not accepted" if key in looser else ""))


@policy_app.command("accept", epilog="Example: dpfpl-client policy accept --site site.toml")
def policy_accept(
    site: SiteFile = SITE,
    rule: Annotated[list[str] | None, typer.Option(help="accept only this looser rule; repeat for more")] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Accept policy.toml as it is, also where it became looser; holds from the next request."""
    from dpfpl_client.agent.policy_file import PolicyFile

    settings = _load(site)
    rules = PolicyFile(settings.path(settings.policy), settings.state_folder, _audit(settings))
    looser = _looser(rules)
    unknown = sorted(set(rule or ()) - set(looser))
    if unknown:
        raise ConfigError(
            code="NOT_LOOSER", message=f"policy.toml does not make this rule looser: {', '.join(unknown)}.",
            advice=f"Looser: {', '.join(looser) or 'none'}.",
        )  # fmt: skip
    if not as_json:
        say(f"Looser: {', '.join(looser)}" if looser else "No rule is looser than before.")
    if not yes and not rule and not typer.confirm("Accept?"):
        sys.exit(1)
    accepted = rules.accept(rule)
    _tell(as_json, {"accepted": True, "looser": accepted}, f"Accepted{f': {chr(44).join(accepted)}' if rule else ''}.")


def ask_about_looser_rules(site: Path) -> None:
    """After a kit came: what its policy allows beyond this program's template is shown and accepted one by one.

    Without a terminal nothing is accepted; ``dpfpl-client policy accept --rule NAME`` does it later.
    """
    from dpfpl_client.agent.policy_file import PolicyFile
    from dpfpl_client.site.init import template_policy

    settings = _load(site)
    rules = PolicyFile(settings.path(settings.policy), settings.state_folder, _audit(settings))
    if not rules.begin_with(template_policy()):
        return
    say("policy.toml allows more than the template of this program. Accept each of these rules or not:")
    accepted = []
    for name, (holds, wanted) in rules.differences().items():
        line = f"  {name}: {json.dumps(wanted)}, where the template has {json.dumps(holds)}"
        if not sys.stdin.isatty():
            say(f"{line}. To accept it: dpfpl-client policy accept --rule {name} --site {site}")
        elif typer.confirm(f"{line}. Accept?"):
            accepted.append(name)
    rules.accept(accepted)
    say("Rules that you did not accept keep the template's value.")


@audit_app.command("show", epilog="Example: dpfpl-client audit show --last 20 --site site.toml")
def audit_show(
    site: SiteFile = SITE,
    last: Annotated[int, typer.Option(min=1, help="how many lines")] = 50,
    as_json: AsJson = False,
) -> None:
    """The last entries of the audit log."""
    lines = list(_audit(_load(site)).lines())[-last:]
    if as_json:
        _print_json(lines)
        return
    for line in lines:
        facts = " ".join(
            f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in line.items() if k not in _FIRST
        )
        say(f"{line.get('at', '')} {line.get('event', '')} {facts}")


_FIRST = ("at", "event")


def _looser(rules: Any) -> list[str]:
    from dpfpl_common.errors import StateError

    try:
        found: list[str] = rules.pending()
    except StateError:  # damaged; accepting mends it
        found = []
    return found


def _load(site: Path) -> "SiteSettings":
    from dpfpl_client.site.settings import load_site  # a quarter of a second, which --help does not wait for

    return load_site(site)


def _audit(settings: "SiteSettings") -> Any:
    from dpfpl_client.agent.audit import AUDIT_FILE, AuditLog

    return AuditLog(settings.state_folder / AUDIT_FILE)


def _tell(as_json: bool, content: dict[str, Any], text: str) -> None:
    if as_json:
        _print_json(content)
    else:
        say(text)


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")
