"""``dpfpl-client start``: the agent and the SuperNode of one site, watched together.

Either is started again when it crashes; where the two run as separate users, root starts them and what root itself
writes (logs, the SuperNode's configuration) lies where neither can put a link in its place.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dpfpl_client.agent.progress import last_progress
from dpfpl_client.node.link import link_file, read_link
from dpfpl_client.node.supernode import SuperNodeSettings, refused_for_good, start_supernode, wait_until_connected
from dpfpl_client.site.separation import Identity, check_separation, identities, one_user_warning
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.errors import ConfigError, DeploymentError
from dpfpl_common.ops.processes import Keeper, ManagedProcess, ProcessGroup, child_environment, wait_until
from dpfpl_common.ops.tls import probe_server

__all__ = ["run_site", "start_agent", "start_node", "start_site", "wait_for_agent"]


AGENT_START_S = 600.0
WAIT_FOR = ("ADDRESS_UNKNOWN", "PORT_CLOSED", "SERVER_UNREACHABLE", "SERVER_SILENT")
"""What ends by itself when the server or the network comes up."""
CONNECT_S = 120.0
MOST_RESTARTS = 5
"""Of either process, without ten quiet minutes between; then our parent decides, for instance systemd."""


def run_site(site_file: Path, settings: SiteSettings, say: Callable[[str], None]) -> None:
    """Run the site until it is interrupted.

    If one of the two ends, it is started again, visibly and a limited number of times. Meanwhile the other keeps
    running, and ClientApps wait for the agent. If one ends for good, the other is stopped too.

    Raises:
        DeploymentError: one of them refuses to serve or crashed too often, or the operator withdrew the site's key.
    """
    if not settings.separated:
        say(one_user_warning())
    with ProcessGroup() as group:
        agent, node = start_site(site_file, settings, group, say)
        wait_until_connected(node, timeout_s=CONNECT_S)
        say(f"Connected to {settings.server.address}. Waiting for experiments; Ctrl-C stops.")
        say(f"Logs: {agent.log_file.parent}")
        keepers = [
            Keeper(agent, lambda: start_agent(site_file, settings, group, again=True), group, say, most=MOST_RESTARTS),
            Keeper(
                node,
                lambda: start_node(settings, group),
                group,
                say,
                most=MOST_RESTARTS,
                final=lambda process, status: end_for_good(settings, process, status),
            ),
        ]
        while True:
            for keeper in keepers:
                keeper.look()
            time.sleep(0.5)


def end_for_good(settings: SiteSettings, node: ManagedProcess, status: int) -> DeploymentError | None:
    """Why a SuperNode that ended would only end again: its key was withdrawn, or its server cannot be trusted."""
    link = read_link(link_file(settings.node_folder))
    if link is not None and link.reason.startswith("KEY_WITHDRAWN"):
        return DeploymentError(
            code="KEY_WITHDRAWN",
            message=f"The operator has revoked or replaced the key of {settings.name}: the server refuses it. This "
            "site takes no part any more; its agent stops, and its ledger and its prompt stay as they are.",
            advice="If you did not expect that, ask the operator (dpfpl-server sites list); a new kit makes you a "
            "member again.",
        )
    return refused_for_good(node) if status else None


def start_site(
    site_file: Path, settings: SiteSettings, group: ProcessGroup, say: Callable[[str], None]
) -> tuple[ManagedProcess, ManagedProcess]:
    """Start agent and SuperNode in ``group``; returns when the agent answers.

    Raises:
        ConfigError: site.toml names no server.
        DeploymentError: one of them does not come up; the message carries the end of its log.
    """
    if not settings.server.address:
        raise ConfigError(
            code="NO_SERVER",
            message="site.toml names no server.",
            advice="Use the kit that the operator made for this site.",
        )
    if settings.separated:
        agent_user, node_user = check_separation(site_file, settings)
        say(f"The agent runs as {agent_user.name}, the SuperNode and what the operator submits as {node_user.name}.")
    agent = start_agent(site_file, settings, group)
    say("The agent is reading images and computing their features (once) ...")
    wait_for_agent(agent, settings, say)
    return agent, start_node(settings, group)


def wait_for_agent(
    agent: ManagedProcess, settings: SiteSettings, say: Callable[[str], None] = lambda text: None
) -> None:
    """Wait until the agent has made its ``ready_file``; the first start computes the features of all images, which may
    take hours. ``say`` is told its progress.

    Raises:
        DeploymentError: it ended, or was silent for too long; the message carries the end of its log.
    """
    said = ""
    while True:
        ready = _is_ready(settings)
        if (progress := last_progress(log := agent.log_text())) != said:
            say(progress)
            said = progress
        if ready:
            return
        wait_until(
            lambda seen=log: _is_ready(settings) or agent.log_text() != seen,  # type: ignore[misc]
            timeout_s=AGENT_START_S,
            what="the agent to answer",
            processes=[agent],
        )


def _is_ready(settings: SiteSettings) -> bool:
    """Looks whether the file is there, and neither opens nor follows it: its folder may be another user's."""
    return os.path.lexists(settings.ready_file)


def start_node(settings: SiteSettings, group: ProcessGroup) -> ManagedProcess:
    """Start the SuperNode alone in ``group``, without waiting for the server.

    Raises:
        DeploymentError: what answers as the server cannot be trusted, so that waiting would not help.
    """
    _refuse_untrusted(settings)
    return start_supernode(
        SuperNodeSettings(
            site_name=settings.name,
            server_address=settings.server.address,
            ca_certificate=settings.path(settings.server.ca_certificate),
            node_key=settings.path(settings.server.node_key),
            state_folder=settings.node_folder,
            agent_address=settings.agent_address,
            agent_token_file=settings.token_file,
            poll_s=settings.server.poll_s,
            user=_numbers(identities(settings)[1]) if settings.separated else None,
            control_folder=_control_folder(settings) if settings.separated else None,
        ),
        group,
    )


def start_agent(site_file: Path, settings: SiteSettings, group: ProcessGroup, *, again: bool = False) -> ManagedProcess:
    """Start the agent alone in ``group``, without waiting for it; ``again`` keeps the log of the one before."""
    user = identities(settings)[0] if settings.separated else None
    if user is None:
        settings.state_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.ready_file.unlink(missing_ok=True)
    log_file = (_control_folder(settings) / "logs" if user else settings.state_folder) / "agent.log"
    if not again:
        log_file.unlink(missing_ok=True)
    environment = {"PYTHONUNBUFFERED": "1", **({"HOME": str(settings.state_folder)} if user else {})}
    return group.start(
        f"agent of {settings.name}",
        [sys.executable, "-m", "dpfpl_client", "agent", "--site", str(site_file)],
        log_file=log_file,
        environment=child_environment(environment, offline=settings.offline),
        folder=settings.state_folder,
        user=_numbers(user) if user else None,
    )


def _numbers(user: Identity) -> tuple[int, int, tuple[int, ...]]:
    return user.uid, user.gid, user.groups


def _control_folder(settings: SiteSettings) -> Path:
    """Root's own folder in the kit; the logs in it are nobody else's: the agent's may name images."""
    folder = settings.path("control")
    folder.mkdir(exist_ok=True, mode=0o711)
    (folder / "logs").mkdir(exist_ok=True, mode=0o700)
    return folder


def _refuse_untrusted(settings: SiteSettings) -> None:
    """A server that is not up yet is waited for; one with the wrong certificate is not."""
    try:
        probe_server(settings.server.address, settings.path(settings.server.ca_certificate))
    except DeploymentError as error:
        if error.code not in WAIT_FOR:
            raise
