"""A real federation on public digits with seeded noise, whose programs are killed at exact moments.

The ServerApp is ours; around its saving, telling and summing it looks into ``kill.json`` in the run's folder, which
says at which moments which processes get SIGKILL, each once. An agent may look into the ``kill.json`` of its kit
likewise.
"""

import functools
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from running import command_line, marked

from dpfpl_client.agent.ledger.book import Charge
from dpfpl_client.agent.ledger.view import observed_ledger
from dpfpl_client.data import DataSettings, list_classes
from dpfpl_client.node.launch import wait_for_agent
from dpfpl_client.node.supernode import SuperNodeSettings, start_supernode, wait_until_connected
from dpfpl_client.site.init import initialise
from dpfpl_client.site.settings import load_site
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.ops.guard import descendants
from dpfpl_common.ops.processes import Keeper, ManagedProcess, ProcessGroup, child_environment, free_ports
from dpfpl_server.runs import supervise
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.sites.control import bundle_files
from dpfpl_server.sites.provision import ProvisionRequest, provision
from dpfpl_server.sites.register import load_sites
from dpfpl_server.sites.superlink import SuperLinkSettings, launch_superlink, start_superlink, submit_run

SITES = ("north", "south")
ROUNDS = 3
SEED = 7
START_S = 120.0
"""On a busy machine too."""
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
    wanted = json.loads(file.read_text()) if file.exists() else []
    for at in wanted:
        if (at["moment"], at["number"]) == (moment, number):
            file.write_text(json.dumps([other for other in wanted if other is not at]))
            for pid in at["pids"] or [os.getpid()]:
                os.kill(pid, signal.SIGKILL)
"""


@dataclass(frozen=True)
class Kill:
    """SIGKILL to these processes, or to the one that comes to the moment: of a round, or of an attempt at a sum."""

    moment: str
    number: int
    pids: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.moment} {self.number}"


def order(folder: Path, kills: Iterable[Kill]) -> None:
    """Have them happen, whichever moment comes first."""
    (folder / "kill.json").write_text(json.dumps([vars(kill) for kill in kills]))


def all_happened(folder: Path) -> bool:
    """Whether every kill that was ordered happened."""
    return bool(json.loads((folder / "kill.json").read_text()) == [])


def fill_in(
    site_file: Path, part: tuple[int, int], *, address: str = "", partition: str = "pathological", policy: str = POLICY
) -> None:
    """Complete a kit as its administrator would: which part of the digits, of how many, and where the agent listens."""
    index, count = part
    initialise(site_file, "digits", "")
    dealt = f'\npartition = "{partition}"\nnum_sites = {count}\nsite_index = {index}\n'
    text = site_file.read_text().replace("\n[server]", f"{dealt}\n[server]", 1)
    site_file.write_text(text.replace("unix:state/agent.sock", address or "unix:state/agent.sock"))
    (site_file.parent / "policy.toml").write_text(policy)


def end_session(server: Path, site: str) -> None:
    """As if the server had missed two heartbeats of a site that vanished: a minute, and Flower takes none shorter than
    10 s."""
    node = load_sites(server)[site].node_id
    assert node is not None
    with closing(sqlite3.connect(server / "flower" / "superlink.db", timeout=10)) as database, database:
        signed = node - (1 << 64) if node >= 1 << 63 else node
        changed = database.execute("UPDATE node SET online_until = ? WHERE node_id = ?", (time.time() - 1, signed))
        assert changed.rowcount == 1


class Server:
    """A provisioned server, and the kits of its sites, of which none is filled in."""

    def __init__(self, root: Path, sites: tuple[str, ...]) -> None:
        self.root, self.folder, self.sites, self.group = root, root / "server", sites, ProcessGroup()
        self.fleet, self.control = free_ports(2)
        self.kits = provision(ProvisionRequest(self.folder, root / "kits", sites, port=self.fleet)).kits

    def start_server(self, environment: Mapping[str, str] | None = None) -> None:
        settings = SuperLinkSettings(self.folder, f"127.0.0.1:{self.fleet}", self.control)
        start_superlink(settings, self.group, extra_environment=environment)


class Federation:
    """A server and its sites, of which each has its own part of the digits and seeded noise."""

    sites = SITES
    policy = POLICY
    partition = "pathological"
    agent_program = ""
    """What runs instead of the product's agent, with its arguments."""

    def __init__(self, root: Path) -> None:
        self.root, self.server, self.group = root, root / "server", ProcessGroup()
        self.fleet, self.control, *ports = free_ports(2 + len(self.sites))
        self.agents: dict[str, ManagedProcess] = {}
        self.nodes: dict[str, ManagedProcess] = {}
        self.marks = {site: marked() for site in self.sites}
        path = root / "path"
        path.mkdir()
        (path / "killing_app.py").write_text(KILLING_APP)
        (path / "killing.py").write_text(KILLING)
        (root / "agent_program.py").write_text(self.agent_program)
        self.path = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
        self.files = self.provisioned()
        for index, (site, port) in enumerate(zip(self.sites, ports, strict=True)):
            part, file = (index, len(self.sites)), self.files[site]
            fill_in(file, part, address=f"127.0.0.1:{port}", partition=self.partition, policy=self.policy)
            file.write_text(f"{file.read_text()}\n[simulation]\nseed = {SEED}\n")

    def provisioned(self) -> dict[str, Path]:
        """The site.toml of each site, from a server made here."""
        kits = self.root / "kits"
        provision(ProvisionRequest(self.server, kits, self.sites, port=self.fleet))
        return {site: kits / site / "site.toml" for site in self.sites}

    def experiment(self, name: str) -> Experiment:
        return Experiment(
            name=name,
            classes=list_classes(DataSettings(source="digits")),
            sites=self.sites,
            model=ModelSettings(width=128),
            privacy=PrivacySettings(
                mechanism="per_step", noise_multiplier=1.0, sample_rate=0.05, nominal_site_size=600
            ),
            rounds=RoundSettings(number=ROUNDS, local_steps=2, deadline=120.0),
        )

    def state(self, site: str) -> Path:
        return load_site(self.files[site]).state_folder

    def start(self) -> None:
        for site in self.sites:
            self.start_agent(site)
        settings = self.superlink_settings()
        environment = {"PYTHONPATH": self.path}
        self.superlink = start_superlink(settings, self.group, extra_environment=environment)
        for site, agent in self.agents.items():
            wait_for_agent(agent, load_site(self.files[site]))
        for site in self.sites:
            self.start_node(site)
        for node in self.nodes.values():
            wait_until_connected(node, timeout_s=START_S)

    def superlink_settings(self) -> SuperLinkSettings:
        return SuperLinkSettings(self.server, f"127.0.0.1:{self.fleet}", self.control)

    def start_agent(self, site: str) -> ManagedProcess:
        """The product's, or the one that can be held or killed; its log goes on."""
        settings = load_site(self.files[site])
        settings.state_folder.mkdir(mode=0o700, exist_ok=True)
        settings.ready_file.unlink(missing_ok=True)
        program = [str(self.root / "agent_program.py")] if self.agent_program else ["-m", "dpfpl_client"]
        self.agents[site] = self.group.start(
            f"agent of {site}",
            [sys.executable, *program, "agent", "--site", str(self.files[site])],
            log_file=settings.state_folder / "agent.log",
            environment=child_environment({"OMP_NUM_THREADS": "1"}, offline=True),
            folder=settings.state_folder,
        )
        return self.agents[site]

    def start_node(self, site: str, *, warm: bool = True) -> ManagedProcess:
        """The site's SuperNode, or Flower's own command."""
        settings = load_site(self.files[site])
        node = SuperNodeSettings(
            site_name=settings.name,
            server_address=settings.server.address,
            ca_certificate=settings.path(settings.server.ca_certificate),
            node_key=settings.path(settings.server.node_key),
            state_folder=settings.state_folder,
            agent_address=settings.agent_address,
            agent_token_file=settings.token_file,
            poll_s=0.5,
            warm=warm,
        )
        self.nodes[site] = start_supernode(node, self.group, extra_environment=self.marks[site])
        return self.nodes[site]

    def start_node_again(self, site: str, *, warm: bool = True) -> ManagedProcess:
        """In the place of one that is gone, for which the server need not wait any more."""
        end_session(self.server, site)
        return self.start_node(site, warm=warm)

    def superlink_pids(self) -> tuple[int, ...]:
        """The SuperLink itself and its guard's other children; the guard stays, to be seen taking the rest down."""
        named = tuple(pid for pid in descendants(self.superlink.pid) if b"superlink_process" in command_line(pid))
        assert named
        return named

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

    def folder(self, name: str) -> RunFolder:
        return RunFolder(self.root / "runs" / name)

    def kill_at(self, name: str, *kills: Kill) -> None:
        """Have processes of the server, or the ServerApp itself, killed at moments of the run."""
        self.folder(name).begin(self.experiment(name))
        order(self.folder(name).path, kills)

    def run(self, of: str | Experiment, limits: supervise.Limits | None = None) -> dict[str, Any]:
        """The experiment to its end, supervised in this process as ``dpfpl-server run`` does."""
        of = self.experiment(of) if isinstance(of, str) else of
        folder, bundle = self.folder(of.name).path, None
        if (folder / "kill.json").exists():  # then with the ServerApp that can be killed
            text = bundle_files()["pyproject.toml"].replace(b"dpfpl_server.federation.app:app", b"killing_app:app")
            bundle = {"pyproject.toml": text}
        with mock.patch.object(supervise, "submit_run", functools.partial(submit_run, bundle=bundle)):
            return supervise.run_experiment(of, self.server, folder, limits=limits)

    def run_kept(self, name: str) -> dict[str, Any]:
        """The experiment to its end, while whatever dies at a site starts again, as under ``dpfpl-client start``."""
        keepers = [
            Keeper(running[site], functools.partial(start, site), self.group, print)
            for running, start in ((self.agents, self.start_agent), (self.nodes, self.start_node_again))
            for site in self.sites
        ]
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(self.run, name)
            while not run.done():
                for keeper in keepers:
                    keeper.look()
                time.sleep(0.1)
            return run.result()

    def charges(self, site: str, name: str) -> list[Charge]:
        """What the site's ledger says of an experiment, in order."""
        ledger = observed_ledger(load_site(self.files[site]))
        try:
            return [charge for charge in ledger.charges() if charge.experiment == name]
        finally:
            ledger.close()

    def charged_once(self, name: str, rounds: Iterable[int]) -> None:
        """Every site was charged once for each of these, and released something for each charge."""
        for site in self.sites:
            charges = self.charges(site, name)
            assert [charge.round for charge in charges] == list(rounds)
            assert all(charge.release_digest for charge in charges)

    def context(self, name: str) -> np.ndarray:
        checkpoint = self.folder(name).load_checkpoint()
        assert checkpoint is not None
        assert checkpoint.round == self.experiment(name).rounds.number
        return checkpoint.global_context
