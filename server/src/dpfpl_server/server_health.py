"""Whether the server serves, for probes; and its monitoring endpoint."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

from dpfpl_common.errors import DeploymentError
from dpfpl_common.health import Trouble
from dpfpl_common.monitor import Monitor, parse_monitor_address
from dpfpl_server.expiry import expiries
from dpfpl_server.metrics import server_families
from dpfpl_server.superlink import open_control

__all__ = ["server_troubles", "start_server_monitor"]

FULL_BYTES = 50 << 20


def server_troubles(server_folder: Path) -> list[Trouble]:
    """Every real reason why the server does not serve its sites; empty if it does.

    Sites that are away are none: a round waits for them, and its experiment's state says so.
    """
    found = []
    try:
        with open_control(server_folder) as control:
            control.nodes()
    except DeploymentError as error:
        found.append(Trouble("superlink", error.code, error.message))
    now = datetime.now(UTC)
    for expiry in expiries(server_folder):
        if expiry.days_left(now) <= 0:
            text = f"{expiry.file} ended on {expiry.not_after:%Y-%m-%d}: no site can connect any more"
            found.append(Trouble("certificate", "CERTIFICATE_EXPIRED", text))
    if server_folder.is_dir() and shutil.disk_usage(server_folder).free < FULL_BYTES:
        found.append(Trouble("disk", "DISK_FULL", f"less than 50 MiB are free for {server_folder}"))
    return found


def start_server_monitor(server_folder: Path, runs: Path, address: str, *, public: bool = False) -> Monitor:
    """Show health and metrics at ``host:port``, on loopback unless ``public``.

    Raises:
        ConfigError: the address is none or public.
        DeploymentError: it cannot be listened on.
    """
    host, port = parse_monitor_address(address, public=public)
    return Monitor(
        host,
        port,
        health=lambda: server_troubles(server_folder),
        metrics=lambda: server_families(server_folder, runs),
    )
