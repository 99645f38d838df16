"""Faults in mid-round, one a function: what is done, and what must be true afterwards."""

import json
import re
import time
from pathlib import Path

from federation import AGENT, Federation, wait_for

__all__ = [
    "a5_hostile_app", "disk_full", "f15_stop_while_training", "f16_kill_supernode", "kill_agent", "kill_serverapp",
    "l1_kill_superlink", "l6_bad_link", "network_cut",
]  # fmt: skip

HERE = Path(__file__).resolve().parent
ROUNDS = 2
QUICK = {"number": ROUNDS, "local_steps": 4, "target_epsilon": 0.5, "deadline": 300.0}
SLOW = {"number": ROUNDS, "local_steps": 8, "target_epsilon": 0.5, "deadline": 300.0}
"""Long enough local training to be hit in the middle of it."""
SITES = ("site-a", "site-b", "site-c-agent")
RECONNECT_S = 40.0
"""Twice the longest pause between two tries."""
BLACKHOLE_S = 30.0
"""As in bad_link.py."""


def _paid_right(fed: Federation, name: str, more_charges: dict[str, int] | None = None) -> str:
    """Every site: each round and the scores released once, and no charge more than what the fault may have cost."""
    texts = []
    for service in SITES:
        entry = fed.ledger(service, name)
        extra = (more_charges or {}).get(service, 0)
        releases = ROUNDS + entry["scored"]
        assert entry["rounds"] == ROUNDS, (service, entry)
        assert entry["released"] == releases, (service, entry)
        assert releases <= entry["charges"] <= releases + extra, (service, entry)
        assert fed.ledger_problems(service) == [], service
        texts.append(f"{service.removesuffix('-agent')} {entry['charges']}")
    return f"charges for {ROUNDS} rounds and scores: {', '.join(texts)}"


def _in_mid_experiment(fed: Federation, name: str) -> None:
    """Start an experiment, and wait for its second round."""
    fed.begin(name, **SLOW)
    fed.wait_for_round(name, 2)


def f16_kill_supernode(fed: Federation) -> str:
    """kill -9 of site-a's SuperNode while its agent computes."""
    _in_mid_experiment(fed, "kill-supernode")
    time.sleep(1.0)
    fed.kill("site-a", "dpfpl_client.node.warm_node")
    began = time.monotonic()
    agent = [p["pid"] for p in fed.processes("site-a") if "dpfpl_client agent" in p["command"]]
    assert agent, "the agent went down with the SuperNode"
    wait_for(
        "the SuperNode to be back", lambda: [p for p in fed.processes("site-a") if "warm_node" in p["command"]], 90
    )
    back = time.monotonic() - began
    fed.finish("kill-supernode")
    assert agent == [p["pid"] for p in fed.processes("site-a") if "dpfpl_client agent" in p["command"]]
    orphans = [p for p in fed.processes("site-a") if "clientapp" in p["command"] and p["parent"] == 1]
    assert not orphans, orphans
    return (
        f"agent untouched, SuperNode back after {back:.0f} s, experiment finished, no orphan; "
        f"{_paid_right(fed, 'kill-supernode')}"
    )


def kill_agent(fed: Federation) -> str:
    """kill -9 of site-b's agent while it computes: what was charged stays charged, the round is asked for again."""
    _in_mid_experiment(fed, "kill-agent")
    time.sleep(1.0)
    fed.kill("site-b", "dpfpl_client agent")
    fed.finish("kill-agent")
    return f"agent started again by itself, experiment finished; {_paid_right(fed, 'kill-agent', {'site-b': 1})}"


def kill_serverapp(fed: Federation) -> str:
    """kill -9 of the ServerApp in mid-round: dpfpl-server run goes on by itself."""
    _in_mid_experiment(fed, "kill-serverapp")
    fed.kill("server", "sites.executor", youngest=True)  # a fork of the executor
    fed.finish("kill-serverapp")
    return f"resumed by itself, experiment finished; {_paid_right(fed, 'kill-serverapp')}"


def l1_kill_superlink(fed: Federation) -> str:
    """kill -9 of the SuperLink in mid-round: it is started again, and the run goes on."""
    _in_mid_experiment(fed, "kill-superlink")
    back = _killed_and_back(fed, "sites.superlink_process")
    result = fed.finish("kill-superlink")
    assert [entry["round"] for entry in result["rounds"]] == list(range(1, ROUNDS + 1)), result["rounds"]
    return (
        f"SuperLink back after {back:.0f} s, finished without a word of the operator; "
        f"{_paid_right(fed, 'kill-superlink')}"
    )


def kill_executor(fed: Federation) -> str:
    """kill -9 of the executor of runs in mid-round, and of the ServerApp with it: the run goes on by itself."""
    _in_mid_experiment(fed, "kill-executor")
    back = _killed_and_back(fed, "sites.executor")
    fed.finish("kill-executor")
    return f"executor back after {back:.0f} s, experiment finished; {_paid_right(fed, 'kill-executor')}"


def _killed_and_back(fed: Federation, program: str) -> float:
    """Kill one of the server's processes; seconds until another one runs and the container is healthy."""
    pid, began = fed.kill("server", program), time.monotonic()

    def back() -> bool:
        alive = [
            p["pid"] for p in fed.processes("server") if program in p["command"] and "guard.py" not in p["command"]
        ]
        return bool(alive) and pid not in alive and fed.running("server")

    wait_for(f"{program} to be back", back, 180)
    return time.monotonic() - began


def f15_stop_while_training(fed: Federation) -> str:
    """docker stop (SIGTERM, 10 s) of site-b while it trains."""
    _in_mid_experiment(fed, "stop-site")
    time.sleep(1.0)
    container = fed.container("site-b")
    began = time.monotonic()
    fed.engine.docker("stop", "-t", "10", container)
    took = time.monotonic() - began
    code = fed.state("site-b")["State"]["ExitCode"]
    assert code == 0, f"exit code {code}: {fed.engine.docker('logs', '--tail', '20', container)}"
    assert took < 12, took
    fed.engine.docker("start", container)
    fed.finish("stop-site")
    return (
        f"stopped in {took:.1f} s with exit code 0, started again, experiment finished; "
        f"{_paid_right(fed, 'stop-site', {'site-b': 1})}"
    )


def network_cut(fed: Federation, seconds: int = 30) -> str:
    """site-b's network is taken away in mid-round and given back."""
    network, container = f"{fed.project}_site-b", fed.container("site-b")
    _in_mid_experiment(fed, "network-cut")
    fed.engine.docker("network", "disconnect", network, container)
    time.sleep(seconds)
    fed.engine.docker("network", "connect", "--alias", "site-b", network, container)
    began = time.monotonic()
    fed.finish("network-cut")
    return (
        f"{seconds} s without a network, finished {time.monotonic() - began:.0f} s after it was back; "
        f"{_paid_right(fed, 'network-cut')}"
    )


def disk_full(fed: Federation) -> str:
    """site-b's disk is full at the reservation of a round: refused, nothing released; space again: goes on."""
    fed.begin("disk-full", **QUICK)
    fed.finish("disk-full")
    fill = (
        "i=0; while dd if=/dev/zero of=/private/site/state/fill.$i bs=4k count=64 2>/dev/null; do i=$((i+1)); done; "
        "df -k /private/site | tail -1"
    )
    full = fed.execute("site-b", "sh", "-c", fill, user=AGENT, check=False)
    assert "100%" in full, full
    fed.begin("disk-full-2", **QUICK)
    wait_for(
        "the site to refuse for lack of space",
        lambda: (
            "STORAGE" in fed.engine.docker("logs", "--tail", "200", fed.container("site-b"), check=False)
            or "STORAGE" in fed.tell("disk-full-2", "log")
        ),
        120,
    )
    assert fed.execute("site-b", "sh", "-c", "rm /private/site/state/fill.*; echo freed", user=AGENT) == "freed"
    code = wait_for("the end", lambda: fed.tell("disk-full-2", "code"), 600, 1.0)
    if code != "0":
        fed.execute("server", "sh", "-c", "rm /tmp/disk-full-2-*.code")
        fed.engine.docker("restart", "-t", "10", fed.container("site-b"))
        wait_for("site-b", lambda: fed.running("site-b"), 180)
        fed.resume("disk-full-2")
        fed.finish("disk-full-2")
    entry = fed.ledger("site-b", "disk-full-2")
    assert entry["released"] - entry["scored"] == entry["rounds"] == ROUNDS, entry
    assert fed.ledger_problems("site-b") == []
    return (
        "refused while full, nothing released; finished once there was space "
        f"({'resumed by the operator' if code != '0' else 'by itself'}); {entry['charges']} charges for "
        f"{ROUNDS} rounds"
    )


def l6_bad_link(fed: Federation) -> str:
    """site-c's gate delays by 300 ms, passes 1 Mbit/s, resets connections; for 30 s of a round nothing gets through."""
    # A reset in the middle of a reply may lose it, which costs the round its deadline: Flower does not send it again.
    fed.begin("bad-link", **{**SLOW, "deadline": 90.0})
    fed.wait_for_round("bad-link", 2)
    fed.engine.docker("kill", "-s", "USR1", fed.container("site-c-gate"))
    result = fed.finish("bad-link", 900)
    log = fed.engine.docker("logs", fed.container("site-c-gate"))
    assert "blackhole begins" in log, log
    assert "reset" in log, log
    seconds = [entry["seconds"] for entry in result["rounds"]]
    assert seconds[1] >= BLACKHOLE_S, f"rounds of {seconds} s: the blackhole was not in the second"
    again = re.search(r"passing again ([\d.]+) s", log)
    assert again, log
    assert float(again[1]) <= RECONNECT_S, again[0]
    return (
        f"{log.count('reset')} resets and, in mid-round, a blackhole of {BLACKHOLE_S:.0f} s, heard again {again[1]} s "
        f"after it; finished, rounds of {' and '.join(f'{s:.0f} s' for s in seconds)}; "
        f"{_paid_right(fed, 'bad-link')}"
    )


def a5_hostile_app(fed: Federation, outside: str) -> str:
    """A hostile operator's own code in every SuperNode."""
    files = {
        f"hostile/{name}": (HERE / "hostile" / name).read_text(encoding="utf-8") for name in ("server.py", "client.py")
    }
    files |= {
        "hostile/__init__.py": "",
        "pyproject.toml": (HERE / "hostile" / "pyproject.toml").read_text(encoding="utf-8"),
    }
    out = "/var/lib/dpfpl/runs/hostile.json"
    code = (
        "import time\nfrom pathlib import Path\n"
        "from dpfpl_server.sites.superlink import submit_run, run_status, run_log\n"
        f"folder = Path('/var/lib/dpfpl/server'); files = {files!r}\n"
        f"run = submit_run(folder, {{'out': {out!r}, 'outside': {outside!r}}}, "
        f"bundle={{k: v.encode() for k, v in files.items()}})\n"
        "while not (state := run_status(folder, run)).finished:\n    time.sleep(1)\n"
        "print(state)\nprint(''.join(run_log(folder, run))[-3000:])\n"
    )
    log = fed.python("server", code)
    found = json.loads(fed.execute("server", "cat", out, check=False) or "[]")
    assert len(found) == 3, f"{found}\n{log[-3000:]}"
    texts = []
    for entry in found:
        assert "error" not in entry, entry
        own = {"/link/agent/agent.token", "/run/node/agent.token"}
        assert set(entry["files"]) <= own, entry["files"]
        assert entry["processes"] == [], entry["processes"]
        assert not any(v.startswith(("REACHED", "RESOLVED")) for v in entry["sockets"].values()), entry["sockets"]
        assert entry["writes"] == [], entry["writes"]
        assert entry["become_root"] == "", entry["become_root"]
        assert entry["forked"] < 256, entry["forked"]
        texts.append(f"{entry['site']}: {entry['forked']} forks")
    left = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        left = [
            (s, p["pid"])
            for s in ("site-a", "site-b", "site-c-node")
            for p in fed.processes(s)
            if "left behind" in p["command"]
        ]
        if not left:
            break
        time.sleep(1)
    for service in ("site-a", "site-b", "site-c-agent", "site-c-node"):
        assert fed.running(service), f"{service} does not run any more"
    assert not left, f"processes left behind after 30 s: {left}"
    return f"{'; '.join(texts)}: no file of the agent's, no memory, no way out, no write, no root; nothing left behind"
