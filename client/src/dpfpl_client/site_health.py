"""Whether a site can take part now, for probes: its agent, its policy, its budget, its link to the server."""

import time
from pathlib import Path
from typing import Any

from dpfpl_client.agent.channel import AgentChannel
from dpfpl_client.agent.policy import load_policy
from dpfpl_client.link_state import link_file, read_link
from dpfpl_client.site_settings import SiteSettings
from dpfpl_client.spending import summarise
from dpfpl_common.errors import DpfplError
from dpfpl_common.health import Trouble

__all__ = ["PARTS", "agent_troubles", "budget_troubles", "link_troubles", "site_troubles"]

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
        found += agent_troubles(settings)
    if "budget" in parts:
        found += budget_troubles(settings)
    if "link" in parts and settings.server.address:
        found += link_troubles(settings.node_folder)
    return found


def agent_troubles(settings: SiteSettings) -> list[Trouble]:
    """The agent answers its health service, or the reason why not."""
    try:
        with AgentChannel(settings.agent_address, settings.token_file, deadline_s=2.0) as channel:
            serving = channel.is_serving()
    except DpfplError as error:
        return [Trouble("agent", error.code, error.message)]
    return [] if serving else [Trouble("agent", "AGENT_DOWN", "no agent answers at its address, or it is not ready")]


def budget_troubles(settings: SiteSettings) -> list[Trouble]:
    """The policy and the ledger can be read and leave some budget, or the reason why not."""
    try:
        load_policy(settings.path(settings.policy))
        summary = summarise(settings)
    except DpfplError as error:
        return [] if error.code == _NOTHING_SPENT else [Trouble("budget", error.code, error.message)]
    return exhausted(summary)


def exhausted(summary: dict[str, Any]) -> list[Trouble]:
    """A trouble if nothing is left of the lifetime's budget."""
    if summary["left_epsilon"] > 0 or not summary["experiments"]:
        return []
    cap = summary["max_epsilon_lifetime"]
    return [Trouble("budget", "BUDGET_EXHAUSTED", f"the privacy budget of these data, epsilon {cap:g}, is used up")]


def link_troubles(state_folder: Path) -> list[Trouble]:
    """The SuperNode heard from the server within two heartbeats, or the reason why not."""
    state = read_link(link_file(state_folder))
    if state is None:
        return [Trouble("link", "NODE_DOWN", "the connection to the server was never started from this state folder")]
    trouble = state.trouble(time.time())
    if not trouble:
        return []
    code, _, message = trouble.partition(": ")
    return [Trouble("link", code, message)]
