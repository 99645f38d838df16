"""Whether a site can take part now, for probes, and why not, in plain words: ``dpfpl-client health`` and ``doctor``."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpfpl_client.agent.channel import AgentChannel
from dpfpl_client.agent.keys import load_signing_key
from dpfpl_client.agent.ledger.view import summarise
from dpfpl_client.agent.policy_file import load_policy
from dpfpl_client.approval import experiments_asked_for
from dpfpl_client.data import count_labels, left_out
from dpfpl_client.node.fleet_probe import probe_fleet
from dpfpl_client.node.link import link_file, node_life, read_link
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.errors import DpfplError
from dpfpl_common.ops.diagnostics import (
    ERROR,
    OK,
    WARNING,
    Finding,
    Trouble,
    certificate_end,
    durable_folder,
    examine,
    flower_version,
    insecure_processes,
    private_modes,
    space,
    telemetry,
)
from dpfpl_common.ops.tls import authority_end, probe_server

__all__ = ["PARTS", "examine_site", "site_troubles"]

PARTS = ("agent", "budget", "link")
_NOTHING_SPENT = "NO_LEDGER"


def site_troubles(settings: SiteSettings, parts: tuple[str, ...] = PARTS) -> list[Trouble]:
    """Every real reason why the site does not take part; empty if it does.

    Args:
        settings: the site's.
        parts: what to look at: in a container beside another, only its own part.
    """
    found: list[Trouble] = []
    if "agent" in parts:
        found += _agent_troubles(settings)
    if "budget" in parts:
        found += _budget_troubles(settings)
    if "link" in parts and settings.server.address:
        found += _link_troubles(settings.node_folder)
    return found


def _agent_troubles(settings: SiteSettings) -> list[Trouble]:
    """The agent answers its health service, or the reason why not."""
    try:
        with AgentChannel(settings.agent_address, settings.token_file, deadline_s=2.0) as channel:
            serving = channel.is_serving()
    except DpfplError as error:
        return [Trouble("agent", error.code, error.message)]
    return [] if serving else [Trouble("agent", "AGENT_DOWN", "no agent answers at its address, or it is not ready")]


def _budget_troubles(settings: SiteSettings) -> list[Trouble]:
    """The policy and the ledger can be read and leave some budget, or the reason why not."""
    try:
        load_policy(settings.path(settings.policy))
        summary = summarise(settings)
    except DpfplError as error:
        return [] if error.code == _NOTHING_SPENT else [Trouble("budget", error.code, error.message)]
    return _exhausted(summary)


def _exhausted(summary: dict[str, Any]) -> list[Trouble]:
    """A trouble if nothing is left of the lifetime's budget."""
    if summary["left_epsilon"] > 0 or not summary["experiments"]:
        return []
    cap = summary["max_epsilon_lifetime"]
    return [Trouble("budget", "BUDGET_EXHAUSTED", f"the privacy budget of these data, epsilon {cap:g}, is used up")]


def _link_troubles(state_folder: Path) -> list[Trouble]:
    """The SuperNode heard from the server within two heartbeats, or the reason why not."""
    state = read_link(link_file(state_folder))
    if state is None:
        return [Trouble("link", "NODE_DOWN", "the connection to the server was never started from this state folder")]
    life = node_life(state_folder)
    if life.age_s is not None and not life.alive:
        said = f" ({state.reason})" if state.reason.startswith("KEY_WITHDRAWN") else ""
        return [Trouble("link", "NODE_DOWN", f"the SuperNode, which connects to the server, does not run{said}")]
    trouble = state.trouble(time.time())
    if not trouble:
        return []
    code, _, message = trouble.partition(": ")
    return [Trouble("link", code, message)]


_NEW_KIT = "Ask the operator for a kit of the federation's new authority."


def examine_site(settings: SiteSettings, *, connect: bool = True) -> list[Finding]:
    """Everything that could keep this site from taking part, in the order in which it would stop it.

    Args:
        settings: the site's.
        connect: also ask the server, which changes nothing there.
    """
    state = settings.state_folder
    found = examine("policy", lambda: _policy(settings))
    found += examine("kit", lambda: _kit(settings))
    if state.is_dir():
        found += [*durable_folder("state folder", state), space("disk", state)]
    else:
        found.append(
            Finding(WARNING, "state folder", f"{state} does not exist yet.", "NO_STATE", "The agent makes it.")
        )
    found += examine("ledger", lambda: _ledger(settings))
    found += examine("agent", lambda: _agent(settings), level=WARNING)
    found += examine("classes", lambda: _classes(settings))
    found += [*flower_version(), *telemetry(), *insecure_processes()]
    if not settings.server.address:
        advice = "Use the kit that the operator made for this site."
        return [*found, Finding(WARNING, "server", "site.toml names no server.", "NO_SERVER", advice)]
    found += examine("authority", lambda: _authority(settings))
    if connect:
        found += _server(settings)
    return found + _link(settings)


def _policy(settings: SiteSettings) -> Iterator[Finding]:
    policy = load_policy(settings.path(settings.policy))
    allowed = ", ".join(policy.experiments) or "none"
    yield Finding(OK, "policy", f"policy.toml is in order; approved experiments: {allowed}.")


def _kit(settings: SiteSettings) -> Iterator[Finding]:
    key, node_key = settings.path(settings.agent.key), settings.path(settings.server.node_key)
    own = settings.path(settings.agent.aggregation_key)
    if not settings.server.address:
        return
    missing = [path for path in (node_key, settings.path(settings.server.ca_certificate)) if not path.is_file()]
    if missing:
        names, advice = ", ".join(map(str, missing)), "Take it from the kit again, or ask the operator for a new kit."
        yield Finding(ERROR, "kit", f"{names} is missing.", "KIT_INCOMPLETE", advice)
        return
    yield from private_modes("kit", [key, node_key, own])
    load_signing_key(key)


def _ledger(settings: SiteSettings) -> Iterator[Finding]:
    try:
        summary = summarise(settings)
    except DpfplError as error:
        if error.code != _NOTHING_SPENT:
            raise
        yield Finding(OK, "ledger", "Nothing was released yet.")
        return
    for trouble in _exhausted(summary):
        advice = "Nothing is released any more. A larger cap is your decision alone: policy.toml."
        yield Finding(ERROR, "ledger", _sentence(trouble), trouble.code, advice)
        return
    cap = summary["max_epsilon_lifetime"]
    yield Finding(OK, "ledger", f"Epsilon {summary['spent_epsilon']:.2f} of {cap:g} is spent.")


def _agent(settings: SiteSettings) -> Iterator[Finding]:
    troubles = _agent_troubles(settings)
    for trouble in troubles:
        advice = "Start it: dpfpl-client start --site SITE.TOML, and read state/agent.log if it ends."
        yield Finding(WARNING, "agent", _sentence(trouble), trouble.code, advice)
    if not troubles:
        yield Finding(OK, "agent", "The agent runs and is ready.")


def _classes(settings: SiteSettings) -> Iterator[Finding]:
    """Which images the experiments leave out that this site was asked for; told here alone, never to the operator."""
    experiments = [e for e in experiments_asked_for(settings.state_folder) if not e.task.in_words]
    if not experiments or settings.data.source == "questions":
        return
    counts = count_labels(settings.data)
    problems = [(experiment.name, left_out(counts, experiment.classes)) for experiment in experiments]
    for name, problem in problems:
        if problem is not None:
            yield Finding(WARNING, "classes", f"{name}: {problem.message}", problem.code, "Then start the agent again.")
    if not any(problem for _, problem in problems):
        yield Finding(OK, "classes", "All images have classes that the experiments know.")


def _authority(settings: SiteSettings) -> Iterator[Finding]:
    end = authority_end(settings.path(settings.server.ca_certificate))
    yield certificate_end("authority", "The federation's authority (ca.crt)", end, _NEW_KIT)


def _server(settings: SiteSettings) -> list[Finding]:
    """The server's TLS first: without it, asking about key and clock says nothing."""
    address, authority = settings.server.address, settings.path(settings.server.ca_certificate)

    def certificate() -> Iterator[Finding]:
        seen = probe_server(address, authority)
        yield Finding(OK, "server", f"{address} answers as this federation's server ({seen.tls_version}).")
        advice = "Tell the operator: dpfpl-server renew, then a restart."
        yield certificate_end("certificate", "The server's certificate", seen.certificate_end, advice)

    def membership() -> Iterator[Finding]:
        probe_fleet(address, authority, settings.path(settings.server.node_key))
        yield Finding(OK, "key and clock", "The server knows this site's key and takes its clock.")

    found = examine("server", certificate)
    return found if any(f.level == ERROR for f in found) else found + examine("key and clock", membership)


def _link(settings: SiteSettings) -> list[Finding]:
    if read_link(link_file(settings.node_folder)) is None:
        advice = "Start it: dpfpl-client start --site SITE.TOML."
        return [Finding(WARNING, "connection", "The connection was never started from here.", "NODE_DOWN", advice)]
    troubles = _link_troubles(settings.node_folder)
    if not troubles:
        return [Finding(OK, "connection", "The SuperNode heard from the server within the last minute.")]
    advice = "If the lines above are in order, start it again: dpfpl-client start --site SITE.TOML."
    return [Finding(WARNING, "connection", _sentence(troubles[0]), troubles[0].code, advice)]


def _sentence(trouble: Trouble) -> str:
    return f"{trouble.message[0].upper()}{trouble.message[1:]}."
