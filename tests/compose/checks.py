"""What must hold in the hardened containers while the federation runs; each function is one row of the threat list."""

import contextlib
import ipaddress
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine import Engine
from federation import AGENT, NODE, Federation, wait_for

__all__ = [
    "OUTSIDE_PORT",
    "SERVICES",
    "Listener",
    "host_address",
    "outside",
    "packets",
    "s1_hardened",
    "s2_no_way_out",
    "s3_mounts",
    "s4_telemetry",
    "s5_flower_home",
    "s9_tokens",
]

HERE = Path(__file__).resolve().parent
SERVICES = ("server", "site-a", "site-b", "site-c-agent", "site-c-node", "site-c-gate")
SITES = ("site-a", "site-b", "site-c-agent", "site-c-node")
OUTSIDE_PORT = 8765
WRITABLE = ("/proc/", "/tmp", "/run/node", "/private", "/link", "/var/lib/dpfpl/", "/kits", "/split", "/dev", "/etc/")
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
LINKS = (("site-a", "server"), ("site-b", "server"), ("site-c-node", "site-c-gate"), ("site-c-gate", "server"))
"""Who dials whom, at port 9092. Nobody dials anybody else."""
TCP, FLEET_PORT = 6, 9092
STRAY = ("192.0.2.1", 443)
"""An address that belongs to nobody, for a packet that is meant to be noticed."""


def s1_hardened(fed: Federation) -> str:
    """No root, no capability, no new privileges, seccomp, nothing writable but what is meant to be, limits set."""
    count = 0
    for service in SERVICES:
        for process in fed.processes(service):
            count += 1
            what = f"{service}: {process}"
            assert process["uid"] != 0, what
            assert process["capabilities"] == 0, what
            assert process["no_new_privileges"], what
            assert process["seccomp"] == "2", what
        host = fed.state(service)["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert not host["Privileged"], service
        assert 0 < host["PidsLimit"] <= 512, service
        assert 0 < host["Memory"] <= 4 * 2**30, service
        limit = fed.execute(
            service, "sh", "-c", "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null", check=False
        )
        assert limit.split()[0] == str(host["PidsLimit"]), f"{service}: pids.max {limit}"
        _writes_nowhere_else(fed, service)
    site = {p["uid"] for p in fed.processes("site-a")}
    assert site == {10001, 10002}, site
    return (
        f"{count} processes in {len(SERVICES)} containers: none root, none with a capability, all with "
        "no-new-privileges and seccomp; root file systems read-only"
    )


def _writes_nowhere_else(fed: Federation, service: str) -> None:
    """Every writable mount is a volume or a tmpfs, and a write to the root file system fails, even root's."""
    for line in fed.execute(service, "cat", "/proc/mounts").splitlines():
        _, place, kind, options = line.split()[:4]
        kernels = kind in ("proc", "cgroup", "cgroup2", "devpts", "mqueue", "sysfs")
        if "rw" in options.split(",") and not kernels and not place.startswith(WRITABLE):
            out = fed.execute(service, "sh", "-c", f"test -w {place} || echo closed", user="10001", check=False)
            assert out == "closed", f"{service}: {line}"
    for place in ("/x", "/opt/dpfpl/x", "/usr/bin/x", "/opt/dpfpl/container/client.py"):
        out = fed.execute(service, "sh", "-c", f"(echo x > {place}) 2>&1 || true", user="0", check=False)
        assert "Read-only file system" in out or "ermission" in out, f"{service}: {place}: {out}"


@contextlib.contextmanager
def outside(engine: Engine, image: str, name: str) -> Iterator[str]:
    """A stand-in for the world: a container on an ordinary network that answers everybody; yields its address."""
    code = (
        "import http.server, socketserver\n"
        f"socketserver.TCPServer(('0.0.0.0', {OUTSIDE_PORT}), http.server.SimpleHTTPRequestHandler).serve_forever()"
    )
    engine.docker(
        "run", "-d", "--name", name, "--user", "10001", "-w", "/tmp", "--entrypoint", "python3", image, "-c", code
    )
    try:
        yield engine.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name)
    finally:
        engine.docker("rm", "-f", name)


def host_address(engine: Engine, image: str) -> str:
    """The engine's own machine as an ordinary container sees it."""
    code = (
        "import socket, struct; routes = [line.split() for line in open('/proc/net/route')][1:]; "
        "print(socket.inet_ntoa(struct.pack('<I', int(next(r[2] for r in routes if r[1] == '00000000'), 16))))"
    )
    return engine.docker("run", "--rm", "--user", "10001", "--entrypoint", "python3", image, "-c", code)


def _reach(targets: list[tuple[str, int]]) -> str:
    return (
        "import socket, json\nout = {}\n"
        f"for host, port in {targets!r}:\n"
        "    try:\n        socket.create_connection((host, port), 2).close(); out[f'{host}:{port}'] = 'REACHED'\n"
        "    except OSError as error:\n        out[f'{host}:{port}'] = str(error)\n"
        "for name in ('example.com',):\n"
        "    try:\n        out[name] = 'RESOLVED ' + socket.gethostbyname(name)\n"
        "    except OSError as error:\n        out[name] = str(error)\n"
        "print(json.dumps(out))"
    )


def s2_no_way_out(fed: Federation, image: str) -> str:
    """No site reaches the outside or the host; a plain container does (so the check is alive)."""
    with outside(fed.engine, image, f"{fed.project}-outside") as address:
        gateway = host_address(fed.engine, image)
        targets = [(address, OUTSIDE_PORT), (gateway, 22), (gateway, OUTSIDE_PORT), ("192.0.2.1", 443)]
        control = ["run", "--rm", "--user", "10001", "--entrypoint", "python3", image, "-c", _reach(targets[:1])]
        wait_for("the control to reach the outside", lambda: "REACHED" in fed.engine.docker(*control), 30)
        for service in ("site-a", "site-b", "site-c-agent", "site-c-node", "server", "site-c-gate"):
            answers = json.loads(fed.python(service, _reach(targets), user="10001"))
            assert not any(value.startswith(("REACHED", "RESOLVED")) for value in answers.values()), (
                f"{service}: {answers}"
            )
        interfaces = fed.execute("site-c-agent", "cat", "/proc/net/dev").splitlines()[2:]
        assert [line.split(":")[0].strip() for line in interfaces] == ["lo"], interfaces
        only = json.loads(
            fed.python("site-c-node", _reach([("server", 9092), ("site-a", 7070), ("site-c-agent", 7070)]))
        )
        assert only["server:9092"] == "REACHED", only
        assert "REACHED" not in (only["site-a:7070"], only["site-c-agent:7070"]), only
    return (
        "no site, nor the server, reaches the outside, the host or a name server; a plain container "
        "does; site-c's agent has no interface but lo"
    )


def s3_mounts(fed: Federation) -> str:
    """The node key is with the SuperNode, what is the agent's with the agent; users in one container cannot cross."""
    mounts = {s: {m["Destination"] for m in fed.state(s)["Mounts"]} for s in SITES}
    assert mounts["site-c-node"] == {"/run/secrets", "/link"}, mounts
    assert mounts["site-c-agent"] == {"/private/site", "/private/registry", "/link"}, mounts
    assert not [m for m in fed.state("site-c-node")["Mounts"] if m["Destination"] == "/run/secrets" and m["RW"]]
    kept = fed.execute("site-c-agent", "ls", "/private/site").split()
    assert "agent.key" in kept, kept
    assert "node.key" not in kept, kept
    assert sorted(fed.execute("site-c-node", "ls", "/run/secrets").split()) == ["ca.crt", "node.key", "site.toml"]
    for service in ("site-a", "site-b"):
        for place in (
            "/private/site",
            "/private/site/policy.toml",
            "/private/registry",
            "/private/site/state/ledger.sqlite",
        ):
            out = fed.execute(service, "sh", "-c", f"ls {place} 2>&1; cat {place} 2>&1", user=NODE, check=False)
            assert out.count("ermission denied") == 2, f"{service}: the SuperNode's user sees {place}: {out}"
            fed.execute(service, "ls", place, user=AGENT)
        out = fed.execute(service, "sh", "-c", "ls /run/node 2>&1", user=AGENT, check=False)
        assert "ermission denied" in out, out
        agents = [p["pid"] for p in fed.processes(service) if p["uid"] == 10001]
        for pid in agents:
            look = f"cat /proc/{pid}/environ /proc/{pid}/maps 2>&1; ls /proc/{pid}/fd 2>&1"
            out = fed.execute(service, "sh", "-c", look, user=NODE, check=False)
            assert out.count("ermission denied") == 3, f"{service}: {pid}: {out[:200]}"
    return (
        "site-c: node key only in the SuperNode's container, state and agent key only in the agent's; "
        "site-a, site-b: the SuperNode's user is refused at /private and at every process of the agent"
    )


class Listener:
    """Hears every packet on the engine's networks, and remembers which container had which address meanwhile."""

    def __init__(self, fed: Federation, image: str, seconds: int = 3600) -> None:
        self._fed, self._name = fed, f"{fed.project}-listener"
        self.addresses: dict[str, str] = {}
        self.heard: list[dict[str, Any]] = []
        self.missed = -1
        self._ended = threading.Event()
        fed.engine.docker(
            "run", "-d", "--name", self._name, "--network", "host", "--user", "0", "--cap-drop", "ALL",
            "--cap-add", "NET_RAW", "--cap-add", "NET_ADMIN", "--entrypoint", "python3", image, "-c",
            (HERE / "sniff.py").read_text(encoding="utf-8"), str(seconds),
        )  # fmt: skip
        wait_for("the listener", lambda: "listening" in fed.engine.docker("logs", self._name), 30)
        self._looking = threading.Thread(target=self._look)
        self._looking.start()

    def _look(self) -> None:
        while not self._ended.wait(1.0):
            self.addresses |= _addresses(self._fed)

    def end(self) -> None:
        """Stop listening; what was heard is there afterwards."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._looking.join()
        self._fed.engine.docker("stop", "-t", "10", self._name, check=False)
        entries = [json.loads(line) for line in self._fed.engine.docker("logs", self._name, check=False).splitlines()]
        self._fed.engine.docker("rm", "-f", self._name, check=False)
        self.heard = [entry for entry in entries if "from" in entry]
        self.missed = entries[-1].get("missed", -1) if entries else -1


@contextlib.contextmanager
def packets(fed: Federation, image: str) -> Iterator[Listener]:
    """Listen to everything that crosses the engine's networks while the block runs; one stray packet is sent first."""
    listener = Listener(fed, image)
    try:
        code = f"import socket; socket.socket(2, 2).sendto(b'stray', {STRAY!r})"
        fed.engine.docker("run", "--rm", "--user", "10001", "--entrypoint", "python3", image, "-c", code)
        yield listener
    finally:
        listener.end()


def s4_telemetry(fed: Federation, listener: Listener) -> str:
    """Over a whole experiment the containers spoke with whom they must, each of these, and with nobody else."""
    assert listener.missed == 0, f"{listener.missed} packets were not heard"
    assert any(entry["to"] == STRAY[0] for entry in listener.heard), "a packet to the outside was not heard"
    networks = _subnets(fed)
    found = set()
    for entry in listener.heard:
        source, target = ipaddress.ip_address(entry["from"]), ipaddress.ip_address(entry["to"])
        ours = any(end in network for end in (source, target) for network in networks)
        if source.version == 6 and (source.is_link_local or source.is_unspecified) and target.is_multicast:
            continue  # the machine's own kernel greets each new interface; no container has an IPv6 address
        if ours or source.version == 6:
            names = (listener.addresses.get(entry[end], entry[end]) for end in ("from", "to"))
            found.add((*names, entry["protocol"], *entry["ports"], entry["opens"]))
    expected = set()
    for caller, called in LINKS:
        expected |= {(caller, called, TCP, 0, FLEET_PORT, opens) for opens in (True, False)}
        expected.add((called, caller, TCP, FLEET_PORT, 0, False))
    assert found == expected, f"not expected: {sorted(found - expected)}; missing: {sorted(expected - found)}"
    for service in ("provision", *SERVICES, "experiment"):
        values = dict(line.split("=", 1) for line in fed.state(service)["Config"]["Env"])
        assert QUIET.items() <= values.items(), f"{service}: {values}"
    return (
        f"over that whole experiment {len(LINKS)} links were heard, each opened by its caller and answered, and no "
        "other packet, none missed; telemetry, update check and hubs are switched off in "
        f"{len(SERVICES) + 2} containers"
    )


def _subnets(fed: Federation) -> list[Any]:
    return [
        ipaddress.ip_network(config["Subnet"]) for network in _networks(fed) for config in network["IPAM"]["Config"]
    ]


def _networks(fed: Federation) -> list[dict[str, Any]]:
    label = f"label=com.docker.compose.project={fed.project}"
    listed = fed.engine.docker("network", "ls", "-q", "--filter", label, check=False).split()
    return list(json.loads(fed.engine.docker("network", "inspect", *listed, check=False) or "[]")) if listed else []


def _addresses(fed: Federation) -> dict[str, str]:
    """The service at each address of the project's networks, right now."""
    found = {}
    for network in _networks(fed):
        for container in network["Containers"].values():
            service = re.sub(r"^.*?[-_](?=site-|server|experiment|provision)|[-_]\d+$", "", container["Name"])
            found[container["IPv4Address"].split("/")[0]] = service
    return found


def s5_flower_home(fed: Federation) -> str:
    """Flower's own folder, with its identifier, is on tmpfs at a site, although the root file system is read-only."""
    places = []
    for service in ("site-a", "site-b", "site-c-node"):
        look = "find / -xdev -path /proc -prune -o -name .flwr -print"
        homes = fed.execute(service, *look.split(), user="0", check=False)
        assert "/root" not in homes, homes
        assert "tmpfs /run/node tmpfs" in fed.execute(service, "cat", "/proc/mounts"), service
        node = NODE if service != "site-c-node" else None
        places.append(fed.execute(service, "ls", "-a", "/run/node/flower", user=node))
    kept = "with" if any("source" in place for place in places) else "without"
    return (
        f"Flower's home of every SuperNode is in a tmpfs ({kept} its identifier file), which ends with "
        "the container; S4 saw nothing leave"
    )


CLAIM = """
import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
client = RuntimeHttpClient.from_server_address(
    server_address="127.0.0.1:%s", insecure=True, root_certificates=None,
    interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
)
try:
    client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
    print("answered")
except httpx.HTTPStatusError as error:
    print("refused", error.response.status_code)
"""


def s9_tokens(fed: Federation) -> str:
    """A stranger cannot claim a task, be it from beside or from within; no command line shows a token."""
    ports = {service: _runtime_port(fed, service) for service in ("site-a", "site-b", "site-c-node")}
    address = fed.state("site-a")["NetworkSettings"]["Networks"][f"{fed.project}_site-a"]["IPAddress"]
    answers = json.loads(fed.python("server", _reach([(address, int(ports["site-a"])), (address, 7070)])))
    assert "REACHED" not in answers.values(), answers
    # The agent's user in a container of two, and in one of the SuperNode's own whoever else there might be.
    for service, port in ports.items():
        user = AGENT if service != "site-c-node" else "10003:10003"
        answer = fed.python(service, CLAIM % port, user=user)
        assert answer == "refused 401", f"{service}: {answer}"
    fed.begin("claims", number=2, local_steps=4, target_epsilon=0.5)
    shown, looks = [], 0
    until = time.monotonic() + 300
    while not fed.tell("claims", "code") and time.monotonic() < until:
        looks += 1
        for service in (*ports, "server"):
            shown += [p["command"] for p in fed.processes(service) if "token" in p["command"]]
    fed.finish("claims")
    assert not shown, shown
    return (
        "from another container the agent's and the Runtime API's port are closed; inside, a user who is not the "
        "SuperNode's is refused a task (401) at three sites; no token in a command line, at a site or at the server, "
        f"in {looks} looks during an experiment"
    )


def _runtime_port(fed: Federation, service: str) -> str:
    """Where the SuperNode's Runtime API listens on loopback."""
    (command,) = {
        p["command"] for p in fed.processes(service) if "warm_node" in p["command"] and "guard.py" not in p["command"]
    }
    words = command.split()
    return str(words[words.index("--port") + 1])
