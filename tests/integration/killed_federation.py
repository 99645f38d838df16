"""A real federation on public digits with seeded noise, whose programs are killed at exact moments.

The ServerApp is ours; around its saving, telling and summing it looks into ``kill.json`` in the run's folder, which
says at which moment which processes get SIGKILL, once. An agent may look into the ``kill.json`` of its kit likewise.
"""

import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpfpl_client.agent.ledger.anchor import Registry
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.data import DataSettings, list_classes
from dpfpl_client.node.launch import wait_for_agent
from dpfpl_client.node.supernode import SuperNodeSettings, start_supernode, wait_until_connected
from dpfpl_client.site.init import initialise
from dpfpl_client.site.settings import load_site
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.ops.guard import descendants
from dpfpl_common.ops.processes import ManagedProcess, ProcessGroup, child_environment, free_ports
from dpfpl_server.runs import supervise
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.supervise import run_experiment
from dpfpl_server.sites.control import bundle_files
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
from dpfpl_common.secure.server import ServerSum
from dpfpl_server.federation.app import app
from dpfpl_server.federation.secure import SumBook
from dpfpl_server.runs.folder import RunFolder
from killing import kill_if_wanted

folders = []

def at(folder, moment, number):
    kill_if_wanted(folder.path, moment, number)

begin, save, tell = RunFolder.__init__, RunFolder.save_checkpoint, RunFolder.add_event

def remember(self, *arguments):
    begin(self, *arguments)
    folders.append(self)

def save_checkpoint(self, checkpoint):
    at(self, "before checkpoint", checkpoint.round)
    save(self, checkpoint)
    at(self, "after checkpoint", checkpoint.round)

def add_event(self, event):
    tell(self, event)
    at(self, event["phase"], event.get("round", 0))

RunFolder.__init__, RunFolder.save_checkpoint, RunFolder.add_event = remember, save_checkpoint, add_event

def around(owner, name, when):
    """A sum's moments: ``rows masked asked``, ``taken`` (a first reply) and ``closed``."""
    real = getattr(owner, name)
    def wrapped(self, *arguments):
        step, found = self.step, real(self, *arguments)
        at(folders[-1], f"{self.terms.sum} {step} {when}", self.terms.attempt)
        return found
    setattr(owner, name, wrapped)

for name, when in {"requests": "asked", "take": "taken", "close": "closed"}.items():
    around(ServerSum, name, when)

change = SumBook.change

def changed(self, name, **values):
    """And ``rows pending kept`` before the last step, ``rows values kept`` after it."""
    change(self, name, **values)
    for key in ("values", "pending"):
        if values.get(key):
            at(folders[-1], f"{name} {key} kept", self.entries[name]["attempt"])

SumBook.change = changed
'''
KILLING = """
import json, os, signal

def kill_if_wanted(folder, moment, number):
    file = folder / "kill.json"
    if not file.exists():
        return
    wanted = json.loads(file.read_text())
    if (wanted["moment"], wanted["round"]) == (moment, number):
        file.unlink()
        for pid in wanted["pids"] or [os.getpid()]:
            os.kill(pid, signal.SIGKILL)
"""
KILLING_AGENT = '''
"""The product's agent, killed at the moment of a sum that kill.json names: ``rows masked asked``, ``writes``,
``written`` or ``answers``; before and after it keeps its integers, ``noised`` and ``kept``."""
import sys
from pathlib import Path
sys.path.append(str(Path(__file__).parent / "path"))
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.store import DiskStore
from killing import kill_if_wanted

kit, now = Path(sys.argv[-1]).parent, []
add_up, write_sum = SiteAgent.add_up, DiskStore.write_sum

def at(when):
    request = now[-1]
    kill_if_wanted(kit, f"{request.sum} {request.step} {when}", request.attempt)

def hooked_add_up(self, request):
    now.append(request)
    at("asked")
    reply = add_up(self, request)
    at("answers")
    return reply

def hooked_write_sum(self, experiment, name, kept):
    integers = now[-1].step == "masked" and len(kept.answered.replies) == 2
    at("noised" if integers else "writes")
    write_sum(self, experiment, name, kept)
    at("kept" if integers else "written")

SiteAgent.add_up, DiskStore.write_sum = hooked_add_up, hooked_write_sum
from dpfpl_client.cli.main import main
main()
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
    sites = SITES
    policy = POLICY
    partition = "pathological"
    agent_program = ""

    def __post_init__(self) -> None:
        self.fleet, self.control, *agents = free_ports(2 + len(self.sites))
        self.server = self.root / "server"
        self.agents: dict[str, ManagedProcess] = {}
        self.nodes: dict[str, ManagedProcess] = {}
        (self.root / "path").mkdir()
        (self.root / "path" / "killing_app.py").write_text(KILLING_APP)
        (self.root / "path" / "killing.py").write_text(KILLING)
        (self.root / "agent_program.py").write_text(self.agent_program)
        files = self.provisioned()
        self.kits = [
            self._kit(files[site], index, f"127.0.0.1:{port}")
            for index, (site, port) in enumerate(zip(self.sites, agents, strict=True))
        ]

    def provisioned(self) -> dict[str, Path]:
        """The site.toml of each site, from a server made here."""
        kits = self.root / "kits"
        provision(ProvisionRequest(self.server, kits, self.sites, port=self.fleet))
        return {site: kits / site / "site.toml" for site in self.sites}

    def experiment(self, name: str) -> Experiment:
        return experiment(name)

    def _kit(self, site_file: Path, index: int, address: str) -> Path:
        initialise(site_file, "digits", "")
        part = (
            f'\npartition = "{self.partition}"\nnum_sites = {len(self.sites)}\nsite_index = {index}\n'
            "\n[simulation]\nseed = 7\n"
        )
        text = site_file.read_text().replace("\n[server]", f"{part}\n[server]", 1)
        site_file.write_text(text.replace("unix:state/agent.sock", address))
        (site_file.parent / "policy.toml").write_text(self.policy)
        return site_file

    def start(self) -> None:
        for site in self.sites:
            self.start_agent(site)
        self.start_superlink()
        for site, agent in self.agents.items():
            wait_for_agent(agent, load_site(self.kit(site)))
        for site in self.sites:
            self.start_node(site)
        for node in self.nodes.values():
            wait_until_connected(node)

    def kit(self, site: str) -> Path:
        return self.kits[self.sites.index(site)]

    def start_agent(self, site: str) -> ManagedProcess:
        """The product's, or the one that can be held or killed; its log goes on."""
        kit = self.kit(site)
        state = load_site(kit).state_folder
        state.mkdir(mode=0o700, exist_ok=True)
        load_site(kit).ready_file.unlink(missing_ok=True)
        program = [str(self.root / "agent_program.py")] if self.agent_program else ["-m", "dpfpl_client"]
        self.agents[site] = self.group.start(
            f"agent of {site}",
            [sys.executable, *program, "agent", "--site", str(kit)],
            log_file=state / "agent.log",
            environment=child_environment({"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}, offline=True),
            folder=state,
        )
        return self.agents[site]

    def start_superlink(self) -> ManagedProcess:
        environment = {"PYTHONPATH": str(self.root / "path")}
        self.superlink = start_superlink(self.superlink_settings(), self.group, extra_environment=environment)
        return self.superlink

    def superlink_settings(self) -> SuperLinkSettings:
        return SuperLinkSettings(self.server, f"127.0.0.1:{self.fleet}", self.control, task_poll_s=0.2)

    def start_node(
        self, site: str, *, warm: bool = True, extra_environment: Mapping[str, str] | None = None
    ) -> ManagedProcess:
        settings = load_site(self.kit(site))
        node = SuperNodeSettings(
            site_name=settings.name,
            server_address=settings.server.address,
            ca_certificate=settings.path(settings.server.ca_certificate),
            node_key=settings.path(settings.server.node_key),
            state_folder=settings.state_folder,
            agent_address=settings.agent_address,
            agent_token_file=settings.token_file,
            poll_s=0.2,
            warm=warm,
        )
        self.nodes[site] = start_supernode(node, self.group, extra_environment=extra_environment)
        return self.nodes[site]

    def superlink_pids(self) -> list[int]:
        """The SuperLink itself and its guard's other children; the guard stays, to be seen taking the rest down."""
        named = [pid for pid in descendants(self.superlink.pid) if b"superlink_process" in command_line(pid)]
        assert named
        return named

    def folder(self, name: str) -> RunFolder:
        return RunFolder(self.root / "runs" / name)

    def run(self, name: str, limits: supervise.Limits | None = None) -> dict[str, Any]:
        """The experiment to its end, supervised in this process as ``dpfpl-server run`` does."""
        return run_experiment(self.experiment(name), self.server, self.folder(name).path, limits=limits)

    def kill_at(self, name: str, moment: str, number: int, pids: list[int] | None = None) -> None:
        """Have these processes killed, or the ServerApp itself, at a moment of the run."""
        folder = self.folder(name)
        folder.begin(self.experiment(name))
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
        assert checkpoint.round == self.experiment(name).rounds.number
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
