"""``dpfpl-server doctor``: why sites cannot connect, in plain words, seen from the operator's machine."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dpfpl_common.errors import DeploymentError
from dpfpl_common.ops.diagnostics import (
    ERROR,
    OK,
    WARNING,
    Finding,
    certificate_end,
    durable_folder,
    examine,
    flower_version,
    insecure_processes,
    private_modes,
    space,
    telemetry,
)
from dpfpl_common.ops.tls import probe_server
from dpfpl_server.sites.admin import list_sites
from dpfpl_server.sites.certificates import expiries, matching
from dpfpl_server.sites.life import part_troubles
from dpfpl_server.sites.provision import load_place
from dpfpl_server.sites.superlink import open_control

__all__ = ["examine_server"]

_NEEDED = ("ca.crt", "server.crt", "server.key", "sites.json")
_RENEW = "dpfpl-server renew, then restart the server; the sites notice nothing."
_NEW = "Provision a new federation in time: every site needs a new kit then."


def examine_server(server_folder: Path) -> list[Finding]:
    """Everything that could keep sites from connecting, in the order in which it would stop them."""
    missing = [name for name in _NEEDED if not (server_folder / name).is_file()]
    if missing:
        said = f"{server_folder} has no {', '.join(missing)}."
        advice = "Name the right folder with --server, or run dpfpl-server provision first."
        return [Finding(ERROR, "server folder", said, "NOT_PROVISIONED", advice)]
    found = [*durable_folder("server folder", server_folder), space("disk", server_folder)]
    found += private_modes("keys", [server_folder / name for name in ("ca.key", "server.key")])
    found += examine("certificate", lambda: _certificates(server_folder))
    found += [*flower_version(), *telemetry(), *insecure_processes()]
    running = examine("superlink", lambda: _superlink(server_folder))
    found += running
    if all(finding.level == OK for finding in running):
        found += examine("port", lambda: _port(server_folder))
        found += examine("sites", lambda: _sites(server_folder))
    return found


def _certificates(folder: Path) -> Iterator[Finding]:
    for expiry in expiries(folder):
        ours = expiry.file == "server.crt"
        what = "The server's certificate" if ours else "The federation's authority"
        yield certificate_end("certificate", what, expiry.not_after, _RENEW if ours else _NEW)
    if not matching((folder / "server.key").read_bytes(), (folder / "server.crt").read_bytes()):
        said = "server.key does not belong to server.crt: an update was interrupted."
        yield Finding(ERROR, "certificate", said, "KEY_MISMATCH", _RENEW)
    if not (folder / "ca.key").exists():
        yield Finding(OK, "certificate", "The authority's key is kept elsewhere; renewals need --ca-key.")


def _superlink(folder: Path) -> Iterator[Finding]:
    for trouble in part_troubles(folder):
        said = f"{trouble.message[0].upper()}{trouble.message[1:]}."
        advice = (
            "Start the server (dpfpl-server start), which starts each of its parts again; its logs say why one ended."
        )
        yield Finding(ERROR, trouble.part, said, trouble.code, advice)
    with open_control(folder) as control:
        control.nodes()
    yield Finding(OK, "superlink", "The SuperLink runs and answers its operator.")


def _port(folder: Path) -> Iterator[Finding]:
    """The sites' port as a site would see it, by the very address in their kits."""
    address, port = load_place(folder)
    place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    try:
        seen = probe_server(place, folder / "ca.crt")
    except DeploymentError as error:
        advice = (
            "This is the address in the sites' kits. If the machine cannot reach itself by it (NAT), try dpfpl-client "
            "doctor at a site; else compare it with the port that dpfpl-server start names, and open the firewall."
        )
        yield Finding(ERROR, "port", error.message, error.code, advice if "CERT" not in error.code else error.advice)
        return
    yield Finding(OK, "port", f"Sites reach {place} ({seen.tls_version}).")
    running = seen.certificate_end
    on_disk = next(e.not_after for e in expiries(folder) if e.file == "server.crt")
    if running != on_disk:
        said = "The running server still shows its previous certificate."
        yield Finding(WARNING, "port", said, "RESTART_NEEDED", "Restart the server between two rounds.")


def _sites(folder: Path) -> Iterator[Finding]:
    rows = list_sites(folder)
    counts = Counter(row.status for row in rows)
    if not rows:
        yield Finding(
            WARNING, "sites", "No site is provisioned.", "NO_SITES", "dpfpl-server sites add NAME --out kits."
        )
        return
    pending = [row.name for row in rows if row.status == "pending"]
    if pending:
        said = f"The running server does not know the keys of: {', '.join(pending)}."
        yield Finding(ERROR, "sites", said, "KEY_NOT_REGISTERED", "Restart the server, which registers them.")
    away = [row.name for row in rows if row.status in ("offline", "registered")]
    shown = f"{counts['online']} of {len(rows)} sites are online."
    if away:
        advice = "At each of them: dpfpl-client doctor --site SITE.TOML."
        yield Finding(WARNING, "sites", f"{shown} Away: {', '.join(away[:20])}.", "SITES_AWAY", advice)
    else:
        yield Finding(OK, "sites", shown)
