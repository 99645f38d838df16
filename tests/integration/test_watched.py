"""DR2 and DR12: what is killed is back by itself, or health is red by its name; a site is revoked in mid-run.

One federation of two sites on public digits, started by the commands that people type.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dpfpl_client.data import DataSettings, list_classes
from dpfpl_client.doctor import site_troubles
from dpfpl_client.site.init import initialise
from dpfpl_client.site.settings import load_site
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.ops.guard import descendants
from dpfpl_common.ops.processes import free_ports, wait_until
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.sites.provision import ProvisionRequest, provision
from dpfpl_server.watch.metrics import server_troubles

pytestmark = [pytest.mark.processes, pytest.mark.slow]

SITES = ("north", "south")
RED_S = 30.0
POLICY = """\
experiments = ["*"]
max_epsilon_per_experiment = 50.0
max_epsilon_lifetime = 500.0
max_epsilon_operator = 100.0
max_epsilon_operator_lifetime = 1000.0
metrics = "exact"
"""
COMMANDS = Path(sys.executable).parent


@dataclass
class Federation:
    """A server and its sites; up to ``parts`` of them in time, each with its own part of the digits."""

    root: Path
    sites: tuple[str, ...] = SITES
    parts: int = len(SITES)
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fleet, self.control, *self.ports = free_ports(2 + self.parts)
        provision(ProvisionRequest(self.root / "server", self.root / "kits", self.sites, port=self.fleet))
        for site in self.sites:
            self.fill_in(site)

    def fill_in(self, site: str) -> None:
        """Complete a site's kit: the next part of the digits, an address of its agent, its policy."""
        index = self.parts - len(self.ports)
        file = self.root / "kits" / site / "site.toml"
        initialise(file, "digits", site)
        part = f'\npartition = "pathological"\nnum_sites = {self.parts}\nsite_index = {index}\n'
        text = file.read_text().replace("\n[server]", f"{part}\n[server]", 1)
        file.write_text(text.replace("unix:state/agent.sock", f"127.0.0.1:{self.ports.pop(0)}"))
        (file.parent / "policy.toml").write_text(POLICY)

    def start(self, name: str, *command: str) -> None:
        with (self.root / f"{name}.out").open("ab") as out:
            program = [str(COMMANDS / command[0]), *command[1:]]
            self.started[name] = subprocess.Popen(program, cwd=self.root, stdout=out, stderr=subprocess.STDOUT)

    def start_server(self) -> None:
        self.start(
            "server", "dpfpl-server", "start", "--host", "127.0.0.1",
            "--port", str(self.fleet), "--control-port", str(self.control),
        )  # fmt: skip

    def start_site(self, site: str) -> None:
        self.start(site, "dpfpl-client", "start", "--site", f"kits/{site}/site.toml")

    def output(self, name: str) -> str:
        return (self.root / f"{name}.out").read_text()

    def health(self, *command: str) -> dict[str, str]:
        """Which parts the command ``health`` calls red, with their codes; empty if all is well."""
        done = subprocess.run(
            [str(COMMANDS / command[0]), "health", *command[1:], "--json"],
            cwd=self.root,
            capture_output=True,
            text=True,
        )
        reasons = {entry["part"]: entry["code"] for entry in json.loads(done.stdout)["reasons"]}
        assert done.returncode == (1 if reasons else 0)
        return reasons

    def server_health(self) -> dict[str, str]:
        """The same without the second or more that a command takes to start."""
        return {trouble.part: trouble.code for trouble in server_troubles(self.root / "server")}

    def site_health(self, site: str) -> dict[str, str]:
        settings = load_site(self.root / "kits" / site / "site.toml")
        return {trouble.part: trouble.code for trouble in site_troubles(settings)}

    def pids(self, name: str, program: bytes) -> list[int]:
        """The processes below a started command that run a program, parents first."""
        return [
            pid
            for pid in descendants(self.started[name].pid)
            if program in (line := command_line(pid)) and b"guard.py" not in line
        ]

    def operator(self, *command: str) -> str:
        """What a command of ``dpfpl-server`` prints; it must succeed."""
        done = subprocess.run(
            [str(COMMANDS / "dpfpl-server"), *command], cwd=self.root, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, name: str, rounds: int, dropouts: int = 0) -> subprocess.Popen[bytes]:
        """Begin an experiment; returns once its second round is at work."""
        running = self.begin(name, rounds, self.sites, dropouts)
        wait_until(lambda: self.rounds(name) >= 1, timeout_s=90, what=f"round 1 of {name}")
        return running

    def begin(self, name: str, rounds: int, sites: tuple[str, ...], dropouts: int = 0) -> subprocess.Popen[bytes]:
        """Start an experiment as ``dpfpl-server run`` does."""
        text = Experiment(
            name=name,
            classes=list_classes(DataSettings(source="digits")),
            sites=sites,
            model=ModelSettings(width=128),
            privacy=PrivacySettings(
                noise_multiplier=1.0, sample_rate=0.05, nominal_site_size=600, tolerated_dropouts=dropouts
            ),
            rounds=RoundSettings(number=rounds, local_steps=2, deadline=60.0),
        )
        (self.root / f"{name}.json").write_text(text.to_json())
        code = (
            "import sys; from pathlib import Path; from dpfpl_common.experiment import parse_experiment;"
            "from dpfpl_server.runs.supervise import run_experiment;"
            f"experiment = parse_experiment(Path({name + '.json'!r}).read_text());"
            f"run_experiment(experiment, Path('server'), Path('runs/{name}'))"
        )
        with (self.root / f"{name}.out").open("ab") as out:
            return subprocess.Popen([sys.executable, "-c", code], cwd=self.root, stdout=out, stderr=out)

    def rounds(self, name: str) -> int:
        folder = self.root / "runs" / name
        return len(RunFolder(folder).store.rounds()) if (folder / "run.sqlite").exists() else 0

    def events(self, name: str) -> list[dict[str, Any]]:
        return RunFolder(self.root / "runs" / name).store.events()

    def stop(self) -> None:
        for process in self.started.values():
            process.send_signal(signal.SIGTERM)
        for process in self.started.values():
            process.wait(30)


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("watched"))
    try:
        made.start_server()
        wait_until(lambda: "Listening" in made.output("server"), timeout_s=90, what="the server")
        for site in SITES:
            made.start_site(site)
        for site in SITES:
            wait_until(lambda site=site: "Connected" in made.output(site), timeout_s=180, what=site)  # type: ignore[misc]
        wait_until(lambda: made.server_health() == {}, timeout_s=30, what="green")
        yield made
    finally:
        made.stop()


def kill_and_watch(federation: Federation, name: str, program: bytes, part: str, health: object) -> tuple[float, float]:
    """Kill one process; seconds until health names its part (or infinity), and until all is green again."""
    (victim, *_) = federation.pids(name, program)
    os.kill(victim, signal.SIGKILL)
    began, red = time.monotonic(), float("inf")
    while time.monotonic() - began < RED_S:
        parts = health()  # type: ignore[operator]
        if part in parts and red == float("inf"):
            red = time.monotonic() - began
        back = [pid for pid in federation.pids(name, program) if pid != victim]
        if back and not parts:
            return red, time.monotonic() - began
        time.sleep(0.1)
    return red, float("inf")


@pytest.mark.parametrize(
    ("program", "part"), [(b"sites.superlink_process", "superlink"), (b"sites.executor", "executor")]
)
def test_DR2_a_killed_part_of_the_server_is_back_and_the_run_goes_on(
    federation: Federation, program: bytes, part: str
) -> None:
    run = federation.run(f"kill-{part}", 6)
    red, back = kill_and_watch(federation, "server", program, part, federation.server_health)
    print(f"DR2 {part}: red after {red:.1f} s, green again after {back:.1f} s")
    assert min(red, back) <= RED_S
    assert run.wait(180) == 0, federation.output(f"kill-{part}")
    assert federation.rounds(f"kill-{part}") == 6
    assert "ended with status 137; starting it again in" in federation.output("server")


@pytest.mark.parametrize(("program", "part"), [(b"dpfpl_client\0agent", "agent"), (b"node.warm_node", "link")])
def test_DR2_a_killed_part_of_a_site_is_back_and_the_run_goes_on(
    federation: Federation, program: bytes, part: str
) -> None:
    run = federation.run(f"kill-site-{part}", 6)
    red, back = kill_and_watch(federation, "north", program, part, lambda: federation.site_health("north"))
    print(f"DR2 site's {part}: red after {red:.1f} s, green again after {back:.1f} s")
    assert min(red, back) <= RED_S
    assert run.wait(240) == 0, federation.output(f"kill-site-{part}")
    assert federation.rounds(f"kill-site-{part}") == 6


def test_DR2_a_part_that_hangs_is_named(federation: Federation) -> None:
    (victim, *_) = federation.pids("server", b"sites.executor")
    os.kill(victim, signal.SIGSTOP)
    try:
        began = time.monotonic()
        wait_until(lambda: federation.server_health().get("executor") == "PROCESS_HANGS", timeout_s=RED_S, what="red")
        print(f"DR2 executor stopped: red after {time.monotonic() - began:.1f} s")
    finally:
        os.kill(victim, signal.SIGCONT)
    wait_until(lambda: federation.server_health() == {}, timeout_s=15, what="green")


def test_DR12_a_run_goes_on_without_a_site_that_is_revoked_and_each_terminal_says_why(federation: Federation) -> None:
    rounds = 20  # long enough to be at work when the command that revokes has started, on a busy machine too
    run = federation.run("leaving", rounds, dropouts=1)
    began = time.monotonic()
    federation.operator("sites", "revoke", "south")
    assert federation.started["south"].wait(90) != 0, "it does not try for ever"
    print(f"DR12: the revoked site's terminal ended after {time.monotonic() - began:.1f} s")
    assert "KEY_WITHDRAWN" in federation.output("south")
    assert "revoked" in federation.output("south")
    assert run.wait(300) == 0, federation.output("leaving")
    assert federation.rounds("leaving") == rounds
    assert any("goes on with 1 of 2 sites" in event.get("text", "") for event in federation.events("leaving"))
    without_quorum = federation.begin("without-quorum", 2, SITES)
    assert without_quorum.wait(60) != 0, "at once: nobody waits for a revoked site"
    said = federation.output("without-quorum")
    assert "The site 'south' was revoked at this server. Leave it out of the experiment" in said


@pytest.mark.parametrize("name", ["server", "north"])
def test_DR2_without_its_supervisor_everything_ends_and_is_red(federation: Federation, name: str) -> None:
    """Runs last."""
    federation.started[name].kill()
    began = time.monotonic()
    wanted = {"supervisor", "superlink", "executor"} if name == "server" else {"agent", "link"}
    health = federation.server_health if name == "server" else lambda: federation.site_health(name)
    wait_until(lambda: set(health()) == wanted, timeout_s=RED_S, what=f"{wanted} to be red")
    said = ("dpfpl-server",) if name == "server" else ("dpfpl-client", "--site", f"kits/{name}/site.toml")
    assert set(federation.health(*said)) == wanted
    print(f"DR2 supervisor of {name}: {sorted(wanted)} red after {time.monotonic() - began:.1f} s")
