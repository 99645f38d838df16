"""DR2 and DR12: what is killed is back by itself, or health is red by its name; a site is revoked in mid-run.

One federation of two sites on public digits, started by the commands that people type.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from federations import end_session, fill_in
from running import command_line

from dpfpl_client.data import DataSettings, list_classes
from dpfpl_client.doctor import site_troubles
from dpfpl_client.site.settings import load_site
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.ops.guard import descendants
from dpfpl_common.ops.processes import free_ports, wait_until
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.supervise import run_experiment
from dpfpl_server.sites.admin import revoke_site
from dpfpl_server.sites.provision import ProvisionRequest, provision
from dpfpl_server.watch.metrics import server_troubles

pytestmark = [pytest.mark.processes, pytest.mark.slow]

SITES = ("north", "south")
RED_S = 30.0
BACK_S = 120.0
COMMANDS = Path(sys.executable).parent


@dataclass
class Federation:
    """A server and its sites; up to ``parts`` of them in time, each with its own part of the digits."""

    root: Path
    sites: tuple[str, ...] = SITES
    parts: int = len(SITES)
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    supervisors: ThreadPoolExecutor = field(default_factory=ThreadPoolExecutor)

    def __post_init__(self) -> None:
        self.server = self.root / "server"
        self.fleet, self.control, *self.ports = free_ports(2 + self.parts)
        provision(ProvisionRequest(self.server, self.root / "kits", self.sites, port=self.fleet))
        for site in self.sites:
            self.fill_in(site)

    def fill_in(self, site: str) -> None:
        """Complete a site's kit: the next part of the digits, an address of its agent, its policy."""
        part = (self.parts - len(self.ports), self.parts)
        fill_in(self.root / "kits" / site / "site.toml", part, address=f"127.0.0.1:{self.ports.pop(0)}")

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

    def server_health(self) -> dict[str, str]:
        """Which parts ``health`` calls red, with their codes; empty if all is well."""
        return {trouble.part: trouble.code for trouble in server_troubles(self.server)}

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

    def run(self, name: str, rounds: int, dropouts: int = 0) -> Future[dict[str, Any]]:
        """Begin an experiment; returns once its second round is at work."""
        running = self.begin(name, rounds, self.sites, dropouts)
        wait_until(lambda: running.done() or self.rounds(name) >= 1, timeout_s=90, what=f"round 1 of {name}")
        return running

    def begin(self, name: str, rounds: int, sites: tuple[str, ...], dropouts: int = 0) -> Future[dict[str, Any]]:
        """Start an experiment, supervised by a thread as ``dpfpl-server run`` does."""
        experiment = Experiment(
            name=name,
            classes=list_classes(DataSettings(source="digits")),
            sites=sites,
            model=ModelSettings(width=128),
            privacy=PrivacySettings(
                noise_multiplier=1.0, sample_rate=0.05, nominal_site_size=600, tolerated_dropouts=dropouts
            ),
            rounds=RoundSettings(number=rounds, local_steps=2, deadline=60.0),
        )
        return self.supervisors.submit(run_experiment, experiment, self.server, self.root / "runs" / name)

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


def kill_and_watch(federation: Federation, name: str, program: bytes, part: str, health: Callable[[], object]) -> None:
    """Kill one process: health names its part soon, unless it is back before; and all is green again."""
    (victim, *_) = federation.pids(name, program)
    os.kill(victim, signal.SIGKILL)

    def back() -> bool:
        return any(pid != victim for pid in federation.pids(name, program))

    wait_until(lambda: part in health() or back(), timeout_s=RED_S, what=f"{part} to be red")  # type: ignore[operator]
    if part == "link":
        end_session(federation.server, name)
    wait_until(lambda: back() and not health(), timeout_s=BACK_S, what=f"{part} to be back", interval_s=0.3)


def test_DR2_killed_parts_of_the_server_are_back_and_the_run_goes_on(federation: Federation) -> None:
    run = federation.run("kill-server", 8)
    for program, part in ((b"sites.superlink_process", "superlink"), (b"sites.executor", "executor")):
        assert not run.done()
        kill_and_watch(federation, "server", program, part, federation.server_health)
    run.result(180)
    assert federation.rounds("kill-server") == 8
    assert federation.output("server").count("ended with status 137; starting it again in") == 2


def test_DR2_killed_parts_of_a_site_are_back_and_the_run_goes_on(federation: Federation) -> None:
    run = federation.run("kill-site", 8)
    for program, part in ((b"dpfpl_client\0agent", "agent"), (b"node.warm_node", "link")):
        assert not run.done()
        kill_and_watch(federation, "north", program, part, lambda: federation.site_health("north"))
    run.result(240)
    assert federation.rounds("kill-site") == 8


def test_DR2_a_part_that_hangs_is_named(federation: Federation) -> None:
    (victim, *_) = federation.pids("server", b"sites.executor")
    os.kill(victim, signal.SIGSTOP)
    try:
        wait_until(lambda: federation.server_health().get("executor") == "PROCESS_HANGS", timeout_s=RED_S, what="red")
    finally:
        os.kill(victim, signal.SIGCONT)
    wait_until(lambda: federation.server_health() == {}, timeout_s=15, what="green")


def test_DR12_a_run_goes_on_without_a_site_that_is_revoked_and_its_terminal_says_why(federation: Federation) -> None:
    run = federation.run("leaving", 6, dropouts=1)
    assert revoke_site(federation.server, "south")
    assert federation.started["south"].wait(90) != 0, "it does not try for ever"
    assert "KEY_WITHDRAWN" in federation.output("south")
    assert "revoked" in federation.output("south")
    run.result(300)
    assert federation.rounds("leaving") == 6
    assert any("goes on with 1 of 2 sites" in event.get("text", "") for event in federation.events("leaving"))


@pytest.mark.parametrize("name", ["server", "north"])
def test_DR2_without_its_supervisor_everything_ends_and_is_red(federation: Federation, name: str) -> None:
    """Runs last."""
    federation.started[name].kill()
    wanted = {"supervisor", "superlink", "executor"} if name == "server" else {"agent", "link"}
    health = federation.server_health if name == "server" else lambda: federation.site_health(name)
    wait_until(lambda: set(health()) == wanted, timeout_s=RED_S, what=f"{wanted} to be red")
