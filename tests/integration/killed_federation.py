"""A real federation of two sites on public digits with seeded noise, whose server is killed at an exact moment.

The ServerApp is ours; around its saving and telling it looks into ``kill.json`` in the run's folder, which says at
which moment which processes get SIGKILL, once.
"""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpfpl_client.agent.ledger.anchor import Registry
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.data import DataSettings, list_classes
from dpfpl_client.node.launch import start_agent, wait_for_agent
from dpfpl_client.node.supernode import SuperNodeSettings, start_supernode, wait_until_connected
from dpfpl_client.site.init import initialise
from dpfpl_client.site.settings import load_site
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.ops.guard import descendants
from dpfpl_common.ops.processes import ManagedProcess, ProcessGroup, free_ports
from dpfpl_server.runs import supervise
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.supervise import run_experiment
from dpfpl_server.sites.bundle import bundle_files
from dpfpl_server.sites.provision import ProvisionRequest, provision
from dpfpl_server.sites.superlink import SuperLinkSettings, launch_superlink, start_superlink, submit_run

SITES = ("north", "south")
ROUNDS = 4
POLICY = """\
experiments = ["*"]
max_epsilon_per_experiment = 50.0
max_epsilon_lifetime = 500.0
max_epsilon_operator = 100.0
max_epsilon_operator_lifetime = 1000.0
metrics = "exact"
"""
KILLING_APP = '''
"""Our ServerApp, killed at the moment that kill.json names."""
import json, os, signal
from dpfpl_server.federation.app import app
from dpfpl_server.runs.folder import RunFolder

def at(folder, moment, number):
    file = folder.path / "kill.json"
    if not file.exists():
        return
    wanted = json.loads(file.read_text())
    if (wanted["moment"], wanted["round"]) == (moment, number):
        file.unlink()
        for pid in wanted["pids"] or [os.getpid()]:
            os.kill(pid, signal.SIGKILL)

save, tell = RunFolder.save_checkpoint, RunFolder.add_event

def save_checkpoint(self, checkpoint):
    at(self, "before checkpoint", checkpoint.round)
    save(self, checkpoint)
    at(self, "after checkpoint", checkpoint.round)

def add_event(self, event):
    tell(self, event)
    at(self, event["phase"], event.get("round", 0))

RunFolder.save_checkpoint, RunFolder.add_event = save_checkpoint, add_event
'''


def experiment(name: str) -> Experiment:
    return Experiment(
        name=name,
        classes=list_classes(DataSettings(source="digits")),
        sites=SITES,
        model=ModelSettings(width=128),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0, sample_rate=0.05, nominal_site_size=600),
        rounds=RoundSettings(number=ROUNDS, local_steps=2, deadline=120.0),
    )


@dataclass
class Federation:
    root: Path
    group: ProcessGroup = field(default_factory=ProcessGroup)

    def __post_init__(self) -> None:
        self.fleet, self.control, *agents = free_ports(2 + len(SITES))
        self.server = self.root / "server"
        provision(ProvisionRequest(self.server, self.root / "kits", SITES, port=self.fleet))
        (self.root / "path").mkdir()
        (self.root / "path" / "killing_app.py").write_text(KILLING_APP)
        self.kits = [self._kit(index, f"127.0.0.1:{port}") for index, port in enumerate(agents)]

    def _kit(self, index: int, address: str) -> Path:
        site_file = self.root / "kits" / SITES[index] / "site.toml"
        initialise(site_file, "digits", SITES[index])
        part = (
            f'\npartition = "pathological"\nnum_sites = {len(SITES)}\nsite_index = {index}\n\n[simulation]\nseed = 7\n'
        )
        text = site_file.read_text().replace("\n[server]", f"{part}\n[server]", 1)
        site_file.write_text(text.replace("unix:state/agent.sock", address))
        (site_file.parent / "policy.toml").write_text(POLICY)
        return site_file

    def start(self) -> None:
        agents = [start_agent(kit, load_site(kit), self.group) for kit in self.kits]
        self.start_superlink()
        for agent in agents:
            wait_for_agent(agent)
        for node in [self.start_node(kit) for kit in self.kits]:
            wait_until_connected(node)

    def start_superlink(self) -> ManagedProcess:
        environment = {"PYTHONPATH": str(self.root / "path")}
        self.superlink = start_superlink(self.superlink_settings(), self.group, extra_environment=environment)
        return self.superlink

    def superlink_settings(self) -> SuperLinkSettings:
        return SuperLinkSettings(self.server, f"127.0.0.1:{self.fleet}", self.control, task_poll_s=0.2)

    def start_node(self, kit: Path) -> ManagedProcess:
        settings = load_site(kit)
        node = SuperNodeSettings(
            site_name=settings.name,
            server_address=settings.server.address,
            ca_certificate=settings.path(settings.server.ca_certificate),
            node_key=settings.path(settings.server.node_key),
            state_folder=settings.state_folder,
            agent_address=settings.agent_address,
            agent_token_file=settings.token_file,
            poll_s=0.2,
        )
        return start_supernode(node, self.group)

    def superlink_pids(self) -> list[int]:
        """The SuperLink itself and its guard's other children; the guard stays, to be seen taking the rest down."""
        named = [pid for pid in descendants(self.superlink.pid) if b"superlink_process" in command_line(pid)]
        assert named
        return named

    def folder(self, name: str) -> RunFolder:
        return RunFolder(self.root / "runs" / name)

    def run(self, name: str, limits: supervise.Limits | None = None) -> dict[str, Any]:
        """The experiment to its end, supervised in this process as ``dpfpl-server run`` does."""
        return run_experiment(experiment(name), self.server, self.folder(name).path, limits=limits)

    def kill_at(self, name: str, moment: str, number: int, pids: list[int] | None = None) -> None:
        """Have these processes killed, or the ServerApp itself, at a moment of the run."""
        folder = self.folder(name)
        folder.begin(experiment(name))
        folder.write_json("kill.json", {"moment": moment, "round": number, "pids": pids or []})

    def restart_superlink_when_dead(self) -> threading.Thread:
        """As an operator or a service manager would, with the same database."""
        dead = self.superlink

        def restart() -> None:
            dead.wait(120)
            self.group.processes.remove(dead)
            time.sleep(1.0)
            self.superlink = launch_superlink(self.superlink_settings(), self.group)

        thread = threading.Thread(target=restart)
        thread.start()
        return thread

    def charges(self) -> dict[str, set[tuple[tuple[int, ...], int]]]:
        """By experiment, what each site's ledger says: the rounds charged, in order, and how many were released."""
        found: dict[str, set[tuple[tuple[int, ...], int]]] = {}
        for kit in self.kits:
            settings = load_site(kit)
            ledger = Ledger(settings.state_folder / "ledger.sqlite", Registry(settings.registry_folder), observe=True)
            charges = ledger.charges()
            ledger.close()
            for name in {charge.experiment for charge in charges}:
                own = [charge for charge in charges if charge.experiment == name]
                released = sum(bool(charge.release_digest) for charge in own)
                found.setdefault(name, set()).add((tuple(charge.round for charge in own), released))
        return found

    def context(self, name: str) -> np.ndarray:
        checkpoint = self.folder(name).load_checkpoint()
        assert checkpoint is not None
        assert checkpoint.round == ROUNDS
        return checkpoint.global_context


def use_killing_app(monkeypatch: Any) -> None:
    """Runs are submitted with the ServerApp that can be killed."""
    text = bundle_files()["pyproject.toml"].replace(b"dpfpl_server.federation.app:app", b"killing_app:app")

    def submit(server: Path, config: dict[str, Any]) -> int:
        return submit_run(server, config, bundle={"pyproject.toml": text})

    monkeypatch.setattr(supervise, "submit_run", submit)


def command_line(pid: int) -> bytes:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""
