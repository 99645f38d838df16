"""What must hold in the hardened containers while the federation runs; each function is one row of the threat list."""

import contextlib
import ipaddress
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine import Engine
from federation import AGENT, NODE, Federation, wait_for

__all__ = [
    "OUTSIDE_PORT",
    "SERVICES",
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
SERVICES = ("provision", "server", "site-a", "site-b", "site-c-agent", "site-c-node", "site-c-gate")
SITES = ("site-a", "site-b", "site-c-agent", "site-c-node")
OUTSIDE_PORT = 8765
WRITABLE = ("/proc/", "/tmp", "/run/node", "/private", "/link", "/var/lib/dpfpl/", "/kits", "/split", "/dev", "/etc/")
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


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
            out = fed.execute(
                service,
                "sh",
                "-c",
                f"cat /proc/{pid}/environ /proc/{pid}/maps 2>&1; ls /proc/{pid}/fd 2>&1",
                user=NODE,
                check=False,
            )
            assert out.count("ermission denied") == 3, f"{service}: {pid}: {out[:200]}"
    return (
        "site-c: node key only in the SuperNode's container, state and agent key only in the agent's; "
        "site-a, site-b: the SuperNode's user is refused at /private and at every process of the agent"
    )


@contextlib.contextmanager
def packets(fed: Federation, image: str, seconds: int = 3600) -> Iterator[str]:
    """Listen to everything that crosses the engine's networks; yields the listener's container."""
    name = f"{fed.project}-sniffer"
    fed.engine.docker(
        "run", "-d", "--name", name, "--network", "host", "--user", "0", "--cap-drop", "ALL", "--cap-add", "NET_RAW",
        "--entrypoint", "python3", image, "-c", (HERE / "sniff.py").read_text(encoding="utf-8"), str(seconds),
    )  # fmt: skip
    try:
        wait_for("the listener", lambda: "listening" in fed.engine.docker("logs", name), 30)
        yield name
    finally:
        fed.engine.docker("rm", "-f", name, check=False)


def s4_telemetry(fed: Federation, listener: str) -> str:
    """Over a whole experiment no packet of a container went anywhere but to another container of the federation."""
    networks = _subnets(fed)
    inside, strange = 0, []
    for line in fed.engine.docker("logs", listener).splitlines():
        entry = json.loads(line)
        if "from" not in entry:
            continue
        source, target = ipaddress.ip_address(entry["from"]), ipaddress.ip_address(entry["to"])
        if not any(source in network for network in networks):
            continue
        if any(target in network for network in networks) or target.is_multicast or target.is_link_local:
            inside += 1
        else:
            strange.append(entry)
    assert inside >= 8, f"{inside}: the listener heard too little: the check might not notice anything"
    assert not strange, strange
    for service in ("server", *SITES):
        values = dict(line.split("=", 1) for line in fed.execute(service, "env").splitlines() if "=" in line)
        assert QUIET.items() <= values.items(), service
        if service != "server":
            assert values["HF_HUB_OFFLINE"] == "1", service
    return (
        f"{inside} kinds of packets heard, all between the federation's own containers; 0 to any other "
        "address, 0 to a name server"
    )


def _subnets(fed: Federation) -> list[Any]:
    listed = fed.engine.docker(
        "network", "ls", "-q", "--filter", f"label=com.docker.compose.project={fed.project}"
    ).split()
    return [
        ipaddress.ip_network(config["Subnet"])
        for network in json.loads(fed.engine.docker("network", "inspect", *listed))
        for config in network["IPAM"]["Config"]
    ]


def s5_flower_home(fed: Federation) -> str:
    """Flower's own folder, with its identifier, is on tmpfs at a site, although the root file system is read-only."""
    places = []
    for service in ("site-a", "site-b", "site-c-node"):
        homes = fed.execute(
            service,
            "find",
            "/",
            "-xdev",
            "-path",
            "/proc",
            "-prune",
            "-o",
            "-name",
            ".flwr",
            "-print",
            user="0",
            check=False,
        )
        assert "/root" not in homes, homes
        assert "tmpfs /run/node tmpfs" in fed.execute(service, "cat", "/proc/mounts"), service
        node = NODE if service != "site-c-node" else None
        places.append(fed.execute(service, "ls", "-a", "/run/node/flower", user=node))
    kept = "with" if any("source" in place for place in places) else "without"
    return (
        f"Flower's home of every SuperNode is in a tmpfs ({kept} its identifier file), which ends with "
        "the container; S4 saw nothing leave"
    )


def s9_tokens(fed: Federation) -> str:
    """A stranger cannot claim a task: the Runtime API is on loopback only; no command line shows a token at a site."""
    port = fed.python(
        "site-a",
        "import pathlib; print([c.split(b'\\0')[c.split(b'\\0').index(b'--port') + 1].decode() for c in "
        "(p.read_bytes() for p in pathlib.Path('/proc').glob('[0-9]*/cmdline')) if b'--port' in c.split(b'\\0') "
        "and b'--superlink' in c.split(b'\\0')][0])",
        user=NODE,
    )
    address = fed.state("site-a")["NetworkSettings"]["Networks"][f"{fed.project}_site-a"]["IPAddress"]
    answers = json.loads(fed.python("server", _reach([(address, int(port)), (address, 7070)])))
    assert "REACHED" not in answers.values(), answers
    shown = []
    until = time.monotonic() + 3
    while time.monotonic() < until:
        for service in ("site-a", "site-b", "site-c-node"):
            shown += [p["command"] for p in fed.processes(service) if "token" in p["command"]]
    assert not shown, shown
    server = [p["uid"] for p in fed.processes("server") if "--token" in p["command"]]
    assert set(server) <= {10001}, server
    return (
        "from another container the agent's and the Runtime API's port are closed; no task token in a "
        "command line at a site "
        f"({'one shown in' if server else 'none in'} the server's container, whose only user is the server's)"
    )
