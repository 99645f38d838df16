"""Code that an operator pushes to a site's SuperNode: look everywhere, dial out, multiply, stay."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
WANTED = ("ledger.sqlite", "agent.key", "policy.toml", "prompt", ".png", "anchor", "agent.token")


def files() -> list[str]:
    """Everything readable that should not be."""
    found = []
    for top in ("/private", "/run", "/tmp", "/link", "/var", "/home", "/root", "/data", "/models", "/dev/shm"):
        for folder, _, names in os.walk(top):
            for name in names:
                path = Path(folder) / name
                if any(word in name for word in WANTED) and os.access(path, os.R_OK):
                    found.append(str(path))
    return found


def processes() -> list[str]:
    """Secrets of other users' processes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "status").read_text().split("Uid:\t")[1].split()[0] == str(os.getuid()):
                continue
            found.append(f"{folder}/environ {len((folder / 'environ').read_bytes())}")
        except OSError:
            pass
        try:
            (folder / "mem").open("rb").close()
            found.append(f"{folder}/mem")
        except OSError:
            pass
    return found


def sockets(outside: str) -> dict[str, str]:
    """What can be reached."""
    found = {}
    host, _, port = outside.partition(":")
    for target in ((host, int(port)), ("192.0.2.1", 443), ("172.17.0.1", 22)):
        try:
            socket.create_connection(target, 2).close()
            found[f"{target[0]}:{target[1]}"] = "REACHED"
        except OSError as error:
            found[f"{target[0]}:{target[1]}"] = str(error)
    try:
        found["name"] = "RESOLVED " + socket.gethostbyname("example.com")
    except OSError as error:
        found["name"] = str(error)
    return found


def agent_without_token() -> list[str]:
    """Ports of this container that answer; the agent's answers nobody without its token."""
    open_ports = []
    for port in (*range(7000, 7100), *range(9090, 9100)):
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                open_ports.append(str(port))
    return open_ports


def bomb() -> int:
    """How many processes can be made before the limit says no."""
    made = []
    try:
        for _ in range(2000):
            pid = os.fork()
            if pid == 0:
                time.sleep(20)
                os._exit(0)
            made.append(pid)
    except OSError:
        pass
    for pid in made:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return len(made)


def stay() -> None:
    """Leave a process behind that has let go of everything."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(3600)  # left behind"])
        os._exit(0)
    os.wait()


@app.query()
def query(message: Message, context) -> Message:
    found = {
        "uid": os.getuid(),
        "site": str(context.node_config.get("site-name")),
        "files": files(),
        "processes": processes(),
        "sockets": sockets(str(message.content["in"]["outside"])),
        "ports": agent_without_token(),
        "writes": [
            p
            for p in ("/x", "/opt/dpfpl/x", "/private/x", "/etc/x")
            if not subprocess.run(["touch", p], capture_output=True).returncode
        ],
        "become_root": subprocess.run(
            ["sh", "-c", "setpriv --reuid 0 id -u || su -c 'id -u'"], capture_output=True, text=True
        ).stdout.strip(),
        "forked": bomb(),
    }
    stay()
    return Message(RecordDict({"out": ConfigRecord({"found": json.dumps(found)})}), reply_to=message)
