"""Start Flower's SuperNode for a site: TLS to the server, the site's node key, and the way to the agent."""

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dpfpl_common.errors import DeploymentError
from dpfpl_common.ops.diagnostics import require_flower
from dpfpl_common.ops.files import prune_apps
from dpfpl_common.ops.processes import (
    ManagedProcess,
    ProcessGroup,
    child_environment,
    free_port,
    installed_command,
    wait_until,
)

__all__ = [
    "SuperNodeSettings",
    "connected_node_id",
    "refused_for_good",
    "start_supernode",
    "supernode_command",
    "wait_until_connected",
]

_CONNECTED = re.compile(r"SuperNode ID: (\d+)")
_GAVE_UP = re.compile(r"dpfpl: ([A-Z_]+): (.*)\. Giving up")
_GRACE_S = 8.0
_HARMLESS = ("PATH", "PYTHON", "LD_LIBRARY_PATH", "LANG", "LC_", "TZ", "OMP_", "FLWR_", "DPFPL_")
_KNOWN_TROUBLE = (  # what Flower's log says, and what it means
    (
        "Failed to activate SuperNode",
        "SITE_UNKNOWN",
        "the server does not know this site's node key.",
        "Ask the operator to provision this site and to restart the server, or for a current kit.",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "SERVER_NOT_TRUSTED",
        "the server's certificate was not issued by the authority in this site's ca.crt.",
        "Check the address in site.toml, and ask the operator whether this kit is the current one.",
    ),
    (
        "Connection attempt failed",
        "SERVER_UNREACHABLE",
        "nothing answers as the federation's server at the address in site.toml.",
        "Check that the server runs, that firewalls let this site through, and that the operator provisioned it with "
        "exactly this address.",
    ),
)


@dataclass(frozen=True)
class SuperNodeSettings:
    """How to run a site's SuperNode.

    Args:
        site_name: the site.
        server_address: host and port of the server's Fleet API.
        ca_certificate: the federation's authority; no other server is spoken to.
        node_key: the site's private node key.
        state_folder: Flower's files and the log go below it.
        agent_address: where the site's agent listens, ``unix:PATH`` (absolute) or ``host:port``.
        agent_token_file: the file with the agent's token.
        poll_s: seconds between two questions for messages; 0.2 works on one machine, 1 or more over the internet.
        user: the user, group and groups that it runs as, if not ours.
        control_folder: where its log and its configuration lie, if not in the state folder: what another user's
            processes can exchange for a link must not be written by us.
        warm: answer from a warm process (:mod:`dpfpl_client.node.warm_node`); else Flower's own command, which asks
            every 3 s and spends a second of processor time per message.
    """

    site_name: str
    server_address: str
    ca_certificate: Path
    node_key: Path
    state_folder: Path
    agent_address: str
    agent_token_file: Path
    poll_s: float = 1.0
    warm: bool = True
    user: tuple[int, int, tuple[int, ...]] | None = None
    control_folder: Path | None = None

    @property
    def flower_home(self) -> Path:
        """Flower's own folder."""
        return self.state_folder.resolve() / "flower"

    @property
    def log_file(self) -> Path:
        """The SuperNode's log; the ClientApp writes to it as well."""
        return (self.control_folder or self.state_folder) / "logs" / "supernode.log"


def supernode_command(settings: SuperNodeSettings) -> list[str]:
    """Return the command line; there is no way to make it an insecure one. Flower's own processes meet at a free port.

    Raises:
        DeploymentError: the authority's certificate or the node key is missing, or Flower is of another series.
    """
    require_flower()
    for path in (settings.ca_certificate, settings.node_key):
        if not path.is_file():
            raise DeploymentError(
                code="KIT_INCOMPLETE",
                message=f"{path} is missing.",
                advice="Take it from the kit that the operator handed over, or ask for a new kit.",
            )
    program = (
        [sys.executable, "-m", "dpfpl_client.node.warm_node"]
        if settings.warm
        else [installed_command("flower-supernode")]
    )
    return [
        *program,
        *("--superlink", settings.server_address),
        *("--root-certificates", str(settings.ca_certificate.resolve())),
        *("--auth-supernode-private-key", str(settings.node_key.resolve())),
        *("--node-config", str(_node_config_file(settings))),
        *("--host", "127.0.0.1"),
        *("--port", str(free_port())),
    ]


def start_supernode(
    settings: SuperNodeSettings,
    group: ProcessGroup,
    *,
    extra_environment: Mapping[str, str] | None = None,
) -> ManagedProcess:
    """Start the SuperNode in the group, without waiting for the server."""
    command = supernode_command(settings)
    if settings.user is None:
        settings.flower_home.mkdir(parents=True, exist_ok=True, mode=0o700)
        prune_apps(settings.flower_home)
    _node_config_file(settings).write_text(_node_config(settings), encoding="utf-8")
    return group.start(
        f"SuperNode of {settings.site_name}",
        command,
        log_file=settings.log_file,
        environment=_environment(settings, extra_environment),
        folder=settings.state_folder,
        grace_s=_GRACE_S,
        user=settings.user,
    )


def wait_until_connected(process: ManagedProcess, *, timeout_s: float = 60.0) -> int:
    """Wait until the server has accepted the SuperNode and return its node id.

    Raises:
        DeploymentError: the server does not know the site, cannot be trusted or does not answer.
    """
    try:
        wait_until(
            lambda: connected_node_id(process) is not None,
            timeout_s=timeout_s,
            what=f"the server to accept the {process.name}",
            processes=[process],
        )
    except DeploymentError as error:
        raise _explained(process, error) from error
    node_id = connected_node_id(process)
    assert node_id is not None
    return node_id


def connected_node_id(process: ManagedProcess) -> int | None:
    """Return the node id once the server has accepted the SuperNode."""
    found = _CONNECTED.search(process.log_text())
    return int(found.group(1)) if found else None


def _node_config_file(settings: SuperNodeSettings) -> Path:
    return (settings.control_folder or settings.flower_home) / "node.toml"


def _environment(settings: SuperNodeSettings, extra: Mapping[str, str] | None) -> dict[str, str]:
    """The environment of the SuperNode and of the ClientApps that it starts; for another user without anything of ours
    that it has no need of, such as credentials.
    """
    own = {
        "FLWR_HOME": str(settings.flower_home),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(min(settings.poll_s, 1.0)),
        "DPFPL_NODE_POLL_S": str(settings.poll_s),
    }
    environment = child_environment({**own, **(extra or {})})
    if settings.user is None:
        return environment
    kept = {
        name: value
        for name, value in environment.items()
        if os.environ.get(name) != value or name.startswith(_HARMLESS)
    }
    return {**kept, "HOME": str(settings.state_folder)}


def _node_config(settings: SuperNodeSettings) -> str:
    """Return what the ClientApp finds in its context's node configuration; a file, so no character needs care."""
    values = {
        "site-name": settings.site_name,
        "agent-address": settings.agent_address,
        "agent-token-file": str(settings.agent_token_file.resolve()),
    }
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def refused_for_good(process: ManagedProcess) -> DeploymentError | None:
    """Why the server, or its certificate, will refuse this SuperNode again; None if it may be started again."""
    text = process.log_text()
    if _GAVE_UP.search(text) or _KNOWN_TROUBLE[0][0] in text:
        return _explained(process, DeploymentError(code="PROCESS_ENDED", message=f"{process.name} ended."))
    return None


def _explained(process: ManagedProcess, error: DeploymentError) -> DeploymentError:
    """Turn what Flower writes into something an administrator can act on."""
    text = process.log_text()
    if found := _GAVE_UP.search(text):
        code, meaning = found.groups()
        advice = "Ask dpfpl-client doctor what to do."
        return DeploymentError(code=code, message=f"{process.name}: {meaning} ({process.log_file})", advice=advice)
    for sign, code, message, advice in _KNOWN_TROUBLE:
        if sign in text:
            return DeploymentError(code=code, message=f"{process.name}: {message} ({process.log_file})", advice=advice)
    return error
