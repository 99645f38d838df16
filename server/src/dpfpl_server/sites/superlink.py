"""Start Flower's SuperLink with TLS and node authentication, register the sites, submit and watch runs.

Everything of one federation lies in the server's folder, Flower's own files in ``flower/`` below it, so several
federations on one machine do not disturb each other as long as their ports differ.
"""

import json
import socket
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from dpfpl_common.errors import ConfigError, DeploymentError
from dpfpl_common.ops.diagnostics import require_flower
from dpfpl_common.ops.files import prune_apps
from dpfpl_common.ops.processes import Keeper, ManagedProcess, ProcessGroup, child_environment, wait_until
from dpfpl_common.ops.tls import host_and_port
from dpfpl_server.sites.control import Control, RunStatus, bundle_files
from dpfpl_server.sites.control_secret import control_secret, make_control_secret
from dpfpl_server.sites.kits import write_private
from dpfpl_server.sites.life import life_of
from dpfpl_server.sites.register import load_sites, register_lock, save_sites

__all__ = [
    "RunStatus",
    "SuperLinkSettings",
    "launch_superlink",
    "open_control",
    "register_sites",
    "run_log",
    "run_status",
    "serve",
    "start_superlink",
    "stop_run",
    "submit_run",
    "superlink_command",
    "superlink_environment",
]

_CONNECTION = "dpfpl"  # the name of our connection in Flower's config.toml
_NEEDED = ("ca.crt", "server.crt", "server.key")
_GRACE_S = 8.0
_START_S = 60.0
_LOOK_S = 0.5


@dataclass(frozen=True)
class SuperLinkSettings:
    """How to run the SuperLink.

    Args:
        server_folder: a provisioned folder.
        fleet_address: where sites dial in, ``host:port``.
        control_port: port of the Control and Runtime APIs, on loopback only; calls need ``control.secret``.
        task_poll_s: how often Flower looks for a run to start; short means a quick start, and a little load.
    """

    server_folder: Path
    fleet_address: str = "0.0.0.0:9092"
    control_port: int = 8000
    task_poll_s: float = 0.5

    @property
    def control_address(self) -> str:
        """Host and port of the Control API."""
        return f"127.0.0.1:{self.control_port}"

    @property
    def flower_home(self) -> Path:
        """Flower's own folder."""
        return self.server_folder.resolve() / "flower"

    @property
    def log_file(self) -> Path:
        """The SuperLink's log."""
        return self.server_folder / "logs" / "superlink.log"


def superlink_command(settings: SuperLinkSettings) -> list[str]:
    """Return the command line; there is no way to make it an insecure one.

    Raises:
        DeploymentError: the folder is not provisioned, or Flower is of another series.
    """
    require_flower()
    folder = settings.server_folder.resolve()
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise DeploymentError(
            code="NOT_PROVISIONED",
            message=f"{folder} has no {', '.join(missing)}.",
            advice="Run dpfpl-server provision first; the server never runs without TLS.",
        )
    return [
        *(sys.executable, "-m", "dpfpl_server.sites.superlink_process", str(folder)),
        *("--ssl-ca-certfile", str(folder / "ca.crt")),
        *("--ssl-certfile", str(folder / "server.crt")),
        *("--ssl-keyfile", str(folder / "server.key")),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--fleet-api-type", "grpc-rere"),
        *("--fleet-api-address", settings.fleet_address),
        *("--isolation", "process"),
        *("--host", "127.0.0.1"),
        *("--port", str(settings.control_port)),
        *("--database", str(settings.flower_home / "superlink.db")),
    ]


def superlink_environment(settings: SuperLinkSettings, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for the SuperLink, and for the executor and its ServerApps."""
    own = {"FLWR_HOME": str(settings.flower_home), "DPFPL_TASK_POLL_S": str(settings.task_poll_s)}
    return child_environment({**own, **(extra or {})})


def start_superlink(
    settings: SuperLinkSettings,
    group: ProcessGroup,
    *,
    extra_environment: Mapping[str, str] | None = None,
) -> ManagedProcess:
    """Start the SuperLink in the group, wait until it answers, register the sites and start the executor of runs.

    Returns:
        The SuperLink's process; the executor's is the last of the group.

    Raises:
        DeploymentError: not provisioned, running already, a port is taken, or it does not come up.
    """
    superlink_command(settings)  # refuses what is not provisioned before anything is touched
    _refuse_second(settings)
    for address in (settings.fleet_address, settings.control_address):
        _refuse_taken_port(address)
    settings.flower_home.mkdir(parents=True, exist_ok=True, mode=0o700)
    make_control_secret(settings.server_folder)
    prune_apps(settings.flower_home)
    write_private(settings.flower_home / "config.toml", _flower_config(settings).encode())
    process = launch_superlink(settings, group, extra_environment=extra_environment)
    wait_until(
        lambda: _answers(settings.server_folder),
        timeout_s=_START_S,
        what="the SuperLink to answer",
        processes=[process],
    )
    register_sites(settings.server_folder)
    start_executor(settings, group, extra_environment=extra_environment)
    return process


def serve(settings: SuperLinkSettings, ready: Callable[[], None], say: Callable[[str], object]) -> NoReturn:
    """Serve until interrupted.

    A part that ends is started again after a growing pause, without limit; meanwhile :mod:`dpfpl_server.sites.life`
    names it. Sites and running experiments survive a SuperLink that is away for a while; a run whose executor ended
    is resumed by ``dpfpl-server run``.

    Args:
        settings: of the server.
        ready: called once, when it serves.
        say: prints a line in the terminal.

    Raises:
        DeploymentError: not provisioned, running already, a port is taken, or the first start fails.
        StateError: another ``dpfpl-server start`` works in this folder.
    """
    superlink_command(settings)  # refuses what is not provisioned before anything is touched
    with life_of("supervisor", settings.server_folder), ProcessGroup() as group:
        superlink = start_superlink(settings, group)
        executor = group.processes[-1]
        ready()
        keepers = [
            Keeper(superlink, lambda: launch_superlink(settings, group), group, say),
            Keeper(executor, lambda: start_executor(settings, group), group, say),
        ]
        while True:
            for keeper in keepers:
                keeper.look()
            time.sleep(_LOOK_S)


def launch_superlink(
    settings: SuperLinkSettings, group: ProcessGroup, *, extra_environment: Mapping[str, str] | None = None
) -> ManagedProcess:
    """Start the SuperLink's process alone, without waiting for it; its register and its runs are in its database."""
    return group.start(
        "SuperLink",
        superlink_command(settings),
        log_file=settings.log_file,
        environment=superlink_environment(settings, extra_environment),
        folder=settings.server_folder,
        grace_s=_GRACE_S,
    )


def start_executor(
    settings: SuperLinkSettings, group: ProcessGroup, *, extra_environment: Mapping[str, str] | None = None
) -> ManagedProcess:
    """Start the process that executes runs, of a SuperLink that may be away for a while."""
    folder = settings.server_folder.resolve()
    return group.start(
        "executor of runs",
        [sys.executable, "-m", "dpfpl_server.sites.executor", str(folder), settings.control_address],
        log_file=settings.log_file.with_name("executor.log"),
        environment=superlink_environment(settings, extra_environment),
        folder=settings.server_folder,
        grace_s=_GRACE_S,
    )


def register_sites(server_folder: Path) -> dict[str, int]:
    """Make the SuperLink accept exactly the sites of ``sites.json``; return and store their node ids.

    Running it again changes nothing. A node with another key (a site that was given a new one) or without a site
    (one that was taken out of the register) is unregistered: its key stops working at once.
    """
    with open_control(server_folder) as control, register_lock(server_folder):
        sites = load_sites(server_folder)
        by_key = {node.public_key: node for node in control.nodes()}
        for site in sites.values():
            node = by_key.pop(site.public_key, None)
            node_id = node.node_id if node else control.register(site.name, site.public_key)
            sites[site.name] = replace(site, node_id=node_id)
        for node in by_key.values():
            control.unregister(node.node_id)
        save_sites(server_folder, sites)
    return {name: site.node_id for name, site in sites.items() if site.node_id is not None}


def submit_run(
    server_folder: Path,
    run_config: Mapping[str, str | int | float | bool],
    *,
    bundle: Mapping[str, bytes | Path] | None = None,
) -> int:
    """Start a run with this run configuration and return its id.

    Args:
        server_folder: the folder of a SuperLink that runs.
        run_config: overrides of the bundle's run configuration; only keys that the bundle has.
        bundle: the bundle's files by name; ``None`` takes the installed one.
    """
    with open_control(server_folder) as control:
        return control.start_run(bundle_files() if bundle is None else bundle, run_config)


def run_status(server_folder: Path, run_id: int) -> RunStatus:
    """Return where a run stands."""
    with open_control(server_folder) as control:
        return control.run(run_id)


def stop_run(server_folder: Path, run_id: int) -> bool:
    """Stop a run; tells whether it could be stopped."""
    with open_control(server_folder) as control:
        return control.stop_run(run_id)


def run_log(server_folder: Path, run_id: int) -> Iterator[str]:
    """Yield a run's ServerApp log until the run ends; Flower keeps it nowhere else."""
    with open_control(server_folder) as control:
        yield from control.log(run_id)


def open_control(server_folder: Path) -> Control:
    """Connect to the SuperLink that was last started from this folder.

    Raises:
        DeploymentError: none was ever started from it.
    """
    path = server_folder / "flower" / "config.toml"
    try:
        address = tomllib.loads(path.read_text(encoding="utf-8"))["superlink"][_CONNECTION]["address"]
    except (OSError, KeyError, ValueError) as error:
        raise DeploymentError(
            code="NOT_STARTED",
            message=f"No SuperLink was started from {server_folder}.",
            advice="Start it with dpfpl-server start, and name the same folder here.",
        ) from error
    return Control(address, server_folder / "ca.crt", control_secret(server_folder))


def _flower_config(settings: SuperLinkSettings) -> str:
    """Return Flower's config.toml, where the other commands find the port."""
    ca = json.dumps(str((settings.server_folder / "ca.crt").resolve()))
    return (
        f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\n'
        f'address = "{settings.control_address}"\nroot-certificates = {ca}\n'
    )


def _answers(server_folder: Path) -> bool:
    try:
        with open_control(server_folder) as control:
            control.nodes()
    except DeploymentError as error:
        if error.code == "CONTROL_REFUSED":
            raise
        return False
    return True


def _refuse_second(settings: SuperLinkSettings) -> None:
    """Two SuperLinks on one database would hand out each other's work."""
    if _answers(settings.server_folder):
        raise DeploymentError(
            code="ALREADY_RUNNING",
            message=f"A SuperLink is running from {settings.server_folder} already.",
            advice="Use that one, or stop it first.",
        )


def _refuse_taken_port(address: str) -> None:
    """gRPC would share a taken port with its owner without a word, so find out first."""
    host, port = host_and_port(address) or ("", 0)
    if port == 0:
        raise ConfigError(
            code="ADDRESS", message=f"{address!r} is not host:port.", advice="Write it like 0.0.0.0:9092."
        )
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise DeploymentError(
            code="PORT_TAKEN",
            message=f"The server cannot listen on {address}: {error.strerror or error}.",
            advice="Stop the program that uses the port, or choose another one.",
        ) from error
