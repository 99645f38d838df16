"""How the administrator steers the site's gate: approvals, data set, policy, audit log, ledger, other sites' keys."""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpfpl_client.cli.options import SITE, AsJson, SiteFile, Yes, audit_log, load, print_json, say, tell
from dpfpl_common.errors import ConfigError, StateError

if TYPE_CHECKING:
    from dpfpl_client.agent.policy_file import PolicyFile

__all__ = ["app", "ask_about_looser_rules"]

app = typer.Typer()
policy_app = typer.Typer(no_args_is_help=True, help="The rules of policy.toml that hold now.")
audit_app = typer.Typer(no_args_is_help=True, help="The requests to this site, and what was decided.")
ledger_app = typer.Typer(no_args_is_help=True, help="What this site's data have paid so far.")
peers_app = typer.Typer(no_args_is_help=True, help="Other sites' keys in secure sums: compare them, pin them.")
app.add_typer(policy_app, name="policy")
app.add_typer(audit_app, name="audit")
app.add_typer(ledger_app, name="ledger")
app.add_typer(peers_app, name="peers")


@app.command(
    epilog="Examples: dpfpl-client approve plan.json --site site.toml; dpfpl-client approve --pending. "
    "Exit codes: 0 approved, 1 not approved, 2 error."
)
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

    settings = load(site)
    approvals, audit = Approvals(settings.state_folder), audit_log(settings)
    if revoke is not None:
        known = approvals.revoke(revoke)
        audit.write("approval_revoked", experiment=revoke, known=known)
        tell(as_json, {"revoked": revoke, "known": known}, f"{revoke} is no longer approved.")
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
    tell(as_json, {**description, "approved": agreed}, "Approved." if agreed else "Not approved.")
    sys.exit(0 if agreed else 1)


@app.command(epilog="Example: dpfpl-client register --unreadable refuse --site site.toml")
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

    settings = load(site)
    if not yes and not typer.confirm("Make what is in the data folder now the registered data set?"):
        sys.exit(1)
    result = register_site(settings, unreadable)
    counts = ", ".join(f"{count} {part}" for part, count in result["images"].items())
    changed = f" Changes: {result['changes']}." if result["changes"] else ""
    tell(
        as_json,
        result,
        f"Registered version {result['version']}: {counts}, {result['unreadable']} unreadable.{changed}",
    )


@app.command(epilog="Example: dpfpl-client forget xrays-1 --site site.toml --yes")
def forget(
    experiment: Annotated[str, typer.Argument(help="name of the experiment to leave")],
    site: SiteFile = SITE,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Leave an experiment for good and remove its prompt; the ledger keeps what was spent."""
    from dpfpl_client.agent.store import DiskStore
    from dpfpl_common.experiment import NAME

    if not NAME.fullmatch(experiment):
        raise ConfigError(code="IMPOSSIBLE_VALUE", message=f"{experiment!r} is no name of an experiment.", advice="")
    settings = load(site)
    store = DiskStore(settings.state_folder)
    if not yes and not as_json:
        typer.confirm(f"Remove this site's prompt of {experiment} for good?", abort=True)
    removed = store.forget(experiment)
    audit_log(settings).write("forgotten", experiment=experiment, removed=removed)
    what = "its prompt and releases are removed" if removed else "nothing of it was stored here"
    tell(
        as_json,
        {"experiment": experiment, "removed": removed},
        f"{experiment}: {what}; requests for it are refused from now on. The ledger keeps what it cost.",
    )


@policy_app.command("show", epilog="Example: dpfpl-client policy show --site site.toml")
def policy_show(site: SiteFile = SITE, as_json: AsJson = False) -> None:
    """The rules that hold now; a rule made looser in policy.toml does not hold before it is accepted."""
    from dpfpl_common.config import to_table

    rules = _rules(site)
    table, looser = to_table(rules.peek()), rules.pending()
    if as_json:
        print_json({"rules": table, "not_accepted": looser})
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
    rules = _rules(site)
    try:
        looser = rules.pending()
    except StateError:  # damaged; accepting mends it
        looser = []
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
    said = f"Accepted: {','.join(accepted)}." if rule else "Accepted."
    tell(as_json, {"accepted": True, "looser": accepted}, said)


def ask_about_looser_rules(site: Path) -> None:
    """After a kit came: what its policy allows beyond this program's template is shown and accepted one by one.

    Without a terminal nothing is accepted; ``dpfpl-client policy accept --rule NAME`` does it later.
    """
    from dpfpl_client.site.init import template_policy

    rules = _rules(site)
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


def _rules(site: Path) -> "PolicyFile":
    from dpfpl_client.agent.policy_file import PolicyFile

    settings = load(site)
    return PolicyFile(settings.path(settings.policy), settings.state_folder, audit_log(settings))


@audit_app.command("show", epilog="Example: dpfpl-client audit show --last 20 --site site.toml")
def audit_show(
    site: SiteFile = SITE,
    last: Annotated[int, typer.Option(min=1, help="how many lines")] = 50,
    as_json: AsJson = False,
) -> None:
    """The last entries of the audit log."""
    lines = list(audit_log(load(site)).lines())[-last:]
    if as_json:
        print_json(lines)
        return
    for line in lines:
        at, event = line.pop("at", ""), line.pop("event", "")
        facts = " ".join(f"{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in line.items())
        say(f"{at} {event} {facts}")


@ledger_app.command("show", epilog="Example: dpfpl-client ledger show --site kits/hospital-a/site.toml")
def ledger_show(site: SiteFile = SITE, as_json: AsJson = False) -> None:
    """Show what was released and what it cost."""
    from dpfpl_client.agent.ledger.view import summarise

    summary = summarise(load(site))
    if as_json:
        print_json(summary)
        return
    for row in summary["experiments"]:
        say(
            f"{row['experiment']}: {row['charges']} charges for {row['rounds']} rounds"
            f"{' and the scores' if row['scored'] else ''}, {row['released']} released, "
            f"epsilon {_number(row['epsilon'])}, towards the operator {_number(row['epsilons']['operator'])}"
        )
        if row["counts_whole"]:
            say("  It was admitted because nothing was charged before it. Later experiments count all that it planned.")
    say(
        f"In all: epsilon {_number(summary['spent_epsilon'])} of {summary['max_epsilon_lifetime']:g}, "
        f"left {summary['left_epsilon']:.2f}, at delta {summary['delta']:g}"
    )
    say(
        f"Towards the operator: epsilon {_number(summary['spent_epsilons']['operator'])} of "
        f"{summary['max_epsilon_operator_lifetime']:g}, left {summary['left_epsilon_operator']:.2f}"
    )


@ledger_app.command("verify", epilog="Example: dpfpl-client ledger verify --site kits/hospital-a/site.toml")
def ledger_verify(site: SiteFile = SITE, as_json: AsJson = False) -> None:
    """Check the ledger against itself and the stored releases; exit code 2 if something is wrong."""
    from dpfpl_client.agent.ledger.view import verify

    problems = verify(load(site))
    tell(as_json, {"problems": problems}, "\n".join(problems) if problems else "The ledger is in order.")
    sys.exit(2 if problems else 0)


@ledger_app.command(
    "accept-rollback", epilog="Example: dpfpl-client ledger accept-rollback --site kits/hospital-a/site.toml"
)
def ledger_accept_rollback(
    site: SiteFile = SITE,
    nothing_lost: Annotated[
        bool,
        typer.Option(
            "--nothing-was-lost",
            help="you state that the ledger is the newest one; only accepted where nothing outside the state folder "
            "remembers it, for instance after a move to another machine",
        ),
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Continue with an old copy of the ledger: all that may have been spent since is charged."""
    from dpfpl_client.agent.ledger.view import accept_rollback

    settings = load(site)
    if not yes:
        typer.confirm("Budget that may have been spent since this copy was made counts as spent. Continue?", abort=True)
    result = accept_rollback(settings, nothing_lost=nothing_lost)
    if as_json:
        print_json(result)
        return
    for row in result["charged"]:
        say(f"charged: {row['experiment'] or 'all that is left'}, up to round {row['last_round']}")
    say("The ledger is accepted." if result["charged"] else "The ledger is accepted; nothing was missing.")


def _number(value: float | str) -> str:
    return f"{value:.2f}" if isinstance(value, float) else value


@peers_app.command("show", epilog="Example: dpfpl-client peers show --site site.toml. Exit code 1: a key differs.")
def peers_show(site: SiteFile = SITE, as_json: AsJson = False) -> None:
    """Other sites' aggregation keys: what the server sent for the last secure sum, and what this site pinned."""
    from dpfpl_client.agent.keys import aggregation_keys

    keys = aggregation_keys(load(site), with_own=False)
    pins, seen = keys.pinned(), keys.seen()
    rows = [
        {"site": name, "sent": seen.get(name), "pinned": pins.get(name), "state": _state(name, pins, seen)}
        for name in sorted({*pins, *seen})
    ]
    if as_json:
        print_json({"peers": rows})
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
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Accept one aggregation key for a site; once one site is pinned, every site of a secure sum must be."""
    from dpfpl_client.agent.keys import aggregation_keys
    from dpfpl_common.experiment import SITE_NAME
    from dpfpl_common.secure.enrolment import FINGERPRINT

    settings = load(site)
    keys = aggregation_keys(settings, with_own=False)
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
    audit_log(settings).write("peer_pinned", peer=peer, fingerprint=wanted or "", before=before or "")
    said = f"{peer}: {'no longer pinned' if wanted is None else f'pinned, {wanted}'}"
    tell(as_json, {"peer": peer, "pinned": wanted, "before": before}, said)


def _state(name: str, pins: dict[str, str], seen: dict[str, str]) -> str:
    if name not in pins:
        return "not pinned"
    return "pinned" if seen.get(name, pins[name]) == pins[name] else "DIFFERS"
