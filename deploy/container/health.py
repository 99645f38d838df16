"""Health of a container, with the standard library only: ``python -I health.py server|agent|node ARGUMENTS``.

Exit code 0 is healthy. Cheap on purpose: an engine asks every few seconds, and importing Flower takes a second.
"""

import fcntl
import json
import os
import socket
import ssl
import sys
from pathlib import Path

__all__ = ["agent_answers", "dead_parts", "node_runs", "server_answers"]

_TIMEOUT_S = 3.0
_NODE_PROGRAM = b"dpfpl_client.node.warm_node"
_ESTABLISHED = "01"


def server_answers(folder: Path) -> bool:
    """Whether the sites' port speaks TLS with the federation's own certificate, and every site has its node id."""
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.check_hostname = False  # the certificate names what sites dial, not this loopback address
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", int(os.environ.get("DPFPL_FLEET_PORT", "9092"))), _TIMEOUT_S) as plain,
        context.wrap_socket(plain),
    ):
        pass
    if dead := dead_parts(folder):
        print(f"server: {', '.join(dead)} does not run")
        return False
    sites = json.loads((folder / "sites.json").read_text(encoding="utf-8"))
    return all('"node_id": null' not in json.dumps(site) for site in [sites])


def dead_parts(folder: Path) -> list[str]:
    """Which of the server's processes hold no lock on their sign of life; the kernel drops it with the process."""
    dead = []
    for path in sorted((folder / "life").glob("*")):
        with path.open("rb") as sign:
            try:
                fcntl.flock(sign, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            dead.append(path.name)
    return dead


def agent_answers(address: str) -> bool:
    """Whether the agent listens, which it does once it has read its images and opened its ledger."""
    family = socket.AF_UNIX if address.startswith("unix:") else socket.AF_INET
    host, _, port = address.rpartition(":")
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(_TIMEOUT_S)
        probe.connect(address.removeprefix("unix:") if family == socket.AF_UNIX else (host, int(port)))
    return True


def node_runs() -> bool:
    """Whether a SuperNode runs here and holds a connection to a server that is not on this machine's loopback."""
    programs = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != "self")
    if not any(_NODE_PROGRAM in program for program in programs):
        return False
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
            remote, state = line.split()[2:4]
            loopback = remote.startswith("0100007F") or remote.endswith("0100007F")
            if state == _ESTABLISHED and not loopback:
                return True
    return False


def main(arguments: list[str]) -> int:
    """Run the checks that are named; each may be followed by its argument."""
    checks = {"server": lambda a: server_answers(Path(a)), "agent": agent_answers, "node": lambda _: node_runs()}
    try:
        for name, argument in zip(arguments[::2], arguments[1::2], strict=True):
            if not checks[name](argument):
                print(f"{name}: not ready")
                return 1
    except (OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
