"""A real federation of processes on loopback learns exactly what the simulation in process learns."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dpfpl_bench.simulation.in_process import Simulation, SimulationOutcome, prepare_sites
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.data import DataSettings, list_classes, load_pool, partition_sites
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.node.launch import start_agent, start_node, wait_for_agent
from dpfpl_client.node.supernode import wait_until_connected
from dpfpl_client.site.init import initialise
from dpfpl_client.site.settings import load_site
from dpfpl_client.use.prompt import load_prompt
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.ops.processes import ProcessGroup, free_ports
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.supervise import run_experiment
from dpfpl_server.sites.provision import ProvisionRequest, provision
from dpfpl_server.sites.superlink import SuperLinkSettings, start_superlink

pytestmark = [pytest.mark.processes, pytest.mark.slow]

SITES = ("north", "south")
SEED = 7
POLICY = """\
experiments = ["parity", "vectors"]
max_epsilon_per_experiment = 50.0
max_epsilon_lifetime = 50.0
metrics = "exact"
"""


@pytest.fixture
def experiment() -> Experiment:
    return Experiment(
        name="parity",
        classes=list_classes(DataSettings(source="digits")),
        sites=SITES,
        model=ModelSettings(width=128),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0, sample_rate=0.05, nominal_site_size=600),
        rounds=RoundSettings(number=3, local_steps=2),
    )


def fill_in_kit(kit: Path, index: int, address: str) -> Path:
    """What an administrator would edit, with a seed, which only public data may have."""
    site_file = kit / "site.toml"
    initialise(site_file, "digits", kit.name)
    part = f'\npartition = "pathological"\nnum_sites = {len(SITES)}\nsite_index = {index}\n'
    text = site_file.read_text().replace("\n[server]", f"{part}\n[simulation]\nseed = {SEED}\n\n[server]", 1)
    site_file.write_text(text.replace("unix:state/agent.sock", address))
    (kit / "policy.toml").write_text(POLICY)
    return site_file


def test_deployed_over_grpc_and_simulated_give_the_same_prompts_and_class_vectors(
    tmp_path: Path, experiment: Experiment
) -> None:
    fleet, control, *agent_ports = free_ports(2 + len(SITES))
    provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", SITES, port=fleet))
    kits = [
        fill_in_kit(tmp_path / "kits" / name, index, f"127.0.0.1:{port}")
        for index, (name, port) in enumerate(zip(SITES, agent_ports, strict=True))
    ]
    with ProcessGroup() as group:
        server = SuperLinkSettings(tmp_path / "server", fleet_address=f"127.0.0.1:{fleet}", control_port=control)
        start_superlink(server, group)
        agents = [start_agent(kit, load_site(kit), group) for kit in kits]
        for agent, kit in zip(agents, kits, strict=True):
            wait_for_agent(agent, load_site(kit))
        for node in [start_node(load_site(kit), group) for kit in kits]:
            wait_until_connected(node)
        result = run_experiment(experiment, tmp_path / "server", tmp_path / "run")
        vectors = with_class_vectors(experiment)
        run_experiment(vectors, tmp_path / "server", tmp_path / "vectors")

    assert_same_class_vectors(vectors, tmp_path / "vectors", kits)
    outcome = simulate(experiment)
    simulated, personal = outcome.checkpoint.global_context, [outcome.personal[name] for name in SITES]
    deployed = RunFolder(tmp_path / "run").load_checkpoint()
    assert deployed is not None
    assert deployed.round == 3
    np.testing.assert_allclose(deployed.global_context, simulated, rtol=0, atol=2e-5)
    assert np.abs(simulated).max() > 1e-2, "the comparison would mean nothing if nothing had been learned"
    for kit, expected in zip(kits, personal, strict=True):
        record = DiskStore(load_site(kit).state_folder).read("parity", 3)
        assert record is not None
        np.testing.assert_allclose(record.state.context, expected, rtol=0, atol=2e-5)
    assert result["transport"] == "grpc+tls"
    assert result["node_authentication"] is True
    assert [entry["sites"] for entry in result["rounds"]] == [sorted(SITES)] * 3
    assert len(result["privacy"]["epsilons"]) == 3
    assert (tmp_path / "run" / "report.html").exists()
    charges = {row.pop("experiment"): row for row in json.loads(ledger(kits[0]))["experiments"]}
    paid = {name: (row["rounds"], row["scored"], row["charges"], row["released"]) for name, row in charges.items()}
    assert paid["parity"] == (3, True, 4, 4), "every round once, and the scores once"


def with_class_vectors(experiment: Experiment) -> Experiment:
    privacy = PrivacySettings(mechanism="one_shot", trust="local", noise_multiplier=0.5, nominal_site_size=600)
    return dataclasses.replace(experiment, name="vectors", privacy=privacy)


def assert_same_class_vectors(experiment: Experiment, run: Path, kits: list[Path]) -> None:
    backbone, simulated = load_backbone("embedded"), simulate(experiment).checkpoint
    deployed = RunFolder(run).load_checkpoint()
    assert deployed is not None
    assert deployed.evidence.chosen(experiment) == simulated.evidence.chosen(experiment) == "evidence"
    for name, kit in zip(SITES, kits, strict=True):
        np.testing.assert_allclose(deployed.evidence.rows[name], simulated.evidence.rows[name], rtol=0, atol=1e-3)
        prompt = load_prompt(kit.parent, experiment.name)
        assert prompt.choice is not None
        choice = dataclasses.replace(prompt.choice, pool=simulated.evidence.packed(experiment, name))
        expected = dataclasses.replace(prompt, global_context=simulated.global_context, choice=choice)
        found, wanted = prompt.head(backbone), expected.head(backbone)
        assert found is not None
        assert wanted is not None
        np.testing.assert_allclose(found.vectors, wanted.vectors, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.bias, wanted.bias, rtol=0, atol=1e-2)


def simulate(experiment: Experiment) -> SimulationOutcome:
    """The same experiment in process."""
    torch.set_num_threads(1)
    backbone = load_backbone("embedded")
    pool = load_pool(DataSettings(source="digits"), experiment.classes)
    data = partition_sites(pool, experiment.classes, "pathological", len(SITES), 0)
    sites = prepare_sites(data, experiment.classes, FeatureCache(None, backbone), SITES)
    return Simulation(backbone, sites, SEED).run(experiment)


def ledger(site_file: Path) -> str:
    command = [sys.executable, "-m", "dpfpl_client", "ledger", "show", "--json", "--site", str(site_file)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
