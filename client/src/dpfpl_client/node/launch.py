"""``dpfpl-client start``: the agent and the SuperNode of one site, watched together.

An agent that crashes is started again; where the two run as separate users, root starts them and what root itself
writes (logs, the SuperNode's configuration) lies where neither can put a link in its place.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from dpfpl_client.agent.progress import last_progress
from dpfpl_client.node.supernode import SuperNodeSettings, start_supernode, wait_until_connected
from dpfpl_client.site.separation import Identity, check_separation, identities, one_user_warning
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.errors import ConfigError, DeploymentError
from dpfpl_common.ops.processes import ManagedProcess, ProcessGroup, child_environment, wait_until
from dpfpl_common.ops.tls import probe_server

__all__ = ["Keeper", "run_site", "start_agent", "start_node", "start_site", "wait_for_agent"]


# Starts an agent that crashed again: with growing pauses, a limited number of times, and never silently.


MOST = 5
"""Restarts without a quiet time between."""
QUIET_S = 600.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
REFUSED = 2
"""Exit status with which an agent says that it will not serve as things are; starting it again would not help."""


class Keeper:
    """Watches one agent of a site.

    Args:
        process: the agent as it runs now, a member of ``group``.
        start: starts another one in ``group``.
        group: the site's processes.
        say: tells the administrator.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        process: ManagedProcess,
        start: Callable[[], ManagedProcess],
        group: ProcessGroup,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._process: ManagedProcess | None = process
        self._start = start
        self._group = group
        self._say = say
        self._clock = clock
        self._restarts = 0
        self._started_at = clock()
        self._due = 0.0

    def look(self) -> None:
        """To be called often; never waits.

        Raises:
            DeploymentError: the agent refuses to serve, or crashed too often.
        """
        if self._process is None:
            if self._clock() >= self._due:
                self._process, self._started_at = self._start(), self._clock()
            return
        status = self._process.poll()
        if status is None:
            return
        if self._clock() - self._started_at > QUIET_S:
            self._restarts = 0
        if status == REFUSED or self._restarts >= MOST:
            raise DeploymentError(
                code="AGENT_ENDED",
                message=f"{self._process.name} ended with status {status}"
                + ("" if status == REFUSED else f" after {self._restarts} restarts")
                + f".\nEnd of {self._process.log_file}:\n{self._process.log_tail()}",
                advice="Its log says why.",
            )
        pause = min(FIRST_PAUSE_S * 2**self._restarts, LONGEST_PAUSE_S)
        self._restarts += 1
        self._say(
            f"The {self._process.name} ended with status {status}; starting it again in {pause:g} s "
            f"({self._restarts} of {MOST}). Nothing is lost; see {self._process.log_file}"
        )
        self._group.processes.remove(self._process)
        self._process, self._due = None, self._clock() + pause


AGENT_START_S = 600.0
WAIT_FOR = ("ADDRESS_UNKNOWN", "PORT_CLOSED", "SERVER_UNREACHABLE", "SERVER_SILENT")
"""What ends by itself when the server or the network comes up."""
CONNECT_S = 120.0


def run_site(site_file: Path, settings: SiteSettings, say: Callable[[str], None]) -> None:
    """Run the site until it is interrupted.

    An agent that ends is started again, visibly and a limited number of times; the SuperNode meanwhile stays and its
    ClientApps wait. If the SuperNode ends, or the agent for good, the other is stopped too.
    """
    if not settings.separated:
        say(one_user_warning())
    with ProcessGroup() as group:
        agent, node = start_site(site_file, settings, group, say)
        wait_until_connected(node, timeout_s=CONNECT_S)
        say(f"Connected to {settings.server.address}. Waiting for experiments; Ctrl-C stops.")
        say(f"Logs: {agent.log_file.parent}")
        keeper = Keeper(agent, lambda: start_agent(site_file, settings, group, again=True), group, say)
        while True:
            keeper.look()
            group.check()
            time.sleep(0.5)


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
    wait_for_agent(agent, say)
    return agent, start_node(settings, group)


def wait_for_agent(agent: ManagedProcess, say: Callable[[str], None] = lambda text: None) -> None:
    """Wait until the agent answers; the first start computes the features of all images, which may take hours.

    Raises:
        DeploymentError: it ended, or was silent for too long; the message carries the end of its log.
    """
    said = ""
    while True:
        log = agent.log_text()
        if (progress := last_progress(log)) != said:
            say(progress)
            said = progress
        if "listens on" in log:
            return
        wait_until(
            lambda seen=log: agent.log_text() != seen,  # type: ignore[misc]
            timeout_s=AGENT_START_S,
            what="the agent to answer",
            processes=[agent],
        )


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
