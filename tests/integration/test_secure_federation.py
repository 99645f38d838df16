"""A real federation of processes, enrolled and pinned, sums in secret what the simulation sums, with the same noise."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from enrolled_sites import enrol_sites

from dpfpl_bench.simulation.in_process import Simulation, prepare_sites
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.agent.keys import aggregation_keys
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.data import DataSettings, list_classes, load_pool, partition_sites
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.node.launch import start_agent, start_node, wait_for_agent
from dpfpl_client.node.supernode import wait_until_connected
from dpfpl_client.site.init import initialise
from dpfpl_client.site.settings import load_site
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.ops.processes import ProcessGroup, free_ports
from dpfpl_common.secure import SUMS
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.supervise import run_experiment
from dpfpl_server.sites.superlink import SuperLinkSettings, start_superlink

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.privacy]

SITES = ("east", "north", "west")
SEED = 7
POLICY = """\
experiments = ["summed"]
max_epsilon_per_experiment = 50.0
max_epsilon_lifetime = 50.0
trust = ["secure"]
metrics = "exact"
"""


@pytest.fixture
def experiment() -> Experiment:
    return Experiment(
        name="summed",
        classes=list_classes(DataSettings(source="digits")),
        sites=SITES,
        model=ModelSettings(width=128),
        privacy=PrivacySettings(trust="secure", noise_multiplier=2.0, nominal_site_size=400),
        rounds=RoundSettings(number=2, local_steps=2),
    )


def fill_in(site_file: Path, index: int, address: str) -> Path:
    initialise(site_file, "digits", "")
    part = f'\npartition = "iid"\nnum_sites = {len(SITES)}\nsite_index = {index}\n'
    text = site_file.read_text().replace("\n[server]", f"{part}\n[simulation]\nseed = {SEED}\n\n[server]", 1)
    site_file.write_text(text.replace("unix:state/agent.sock", address))
    (site_file.parent / "policy.toml").write_text(POLICY)
    return site_file


def test_deployed_and_simulated_sum_the_same_in_secret(tmp_path: Path, experiment: Experiment) -> None:
    fleet, control, *agent_ports = free_ports(2 + len(SITES))
    files = enrol_sites(tmp_path, SITES, fleet).values()
    kits = [
        fill_in(file, i, f"127.0.0.1:{port}") for i, (file, port) in enumerate(zip(files, agent_ports, strict=True))
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

    simulated = simulate(experiment)
    deployed = RunFolder(tmp_path / "run").load_checkpoint()
    assert deployed is not None
    assert deployed.evidence.rows == {}
    for name in SUMS:
        found, expected = deployed.evidence.sums[name], simulated.checkpoint.evidence.sums[name]
        assert found.sites == expected.sites == SITES
        np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=1e-3)
    np.testing.assert_allclose(deployed.global_context, simulated.checkpoint.global_context, rtol=0, atol=2e-5)
    assert {row["epsilon"] for row in result["privacy"]["epsilons"]} == {result["privacy"]["epsilons"][0]["epsilon"]}
    assert result["scores"][0]["sites"] == 3
    for kit in kits:
        keys = aggregation_keys(load_site(kit))
        assert keys.seen() == keys.pinned(), "what the server sent is what each site had pinned"
        store = DiskStore(load_site(kit).state_folder)
        kept = [store.read_sum("summed", name) for name in SUMS]
        assert [(one.attempt, one.unmasked, one.values, one.answered.secret) for one in kept] == [
            (1, True, None, b"")
        ] * 3
        (paid,) = json.loads(client("ledger", "show", "--json", kit=kit))["experiments"]
        assert (paid["charges"], paid["released"], paid["scored"]) == (5, 5, True), "rows, vote, two rounds, scores"
        assert paid["epsilons"]["operator"] == paid["epsilons"]["other_site"]
        client("ledger", "verify", kit=kit)


def simulate(experiment: Experiment):  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    backbone = load_backbone("embedded")
    pool = load_pool(DataSettings(source="digits"), experiment.classes)
    data = partition_sites(pool, experiment.classes, "iid", len(SITES), 0)
    sites = prepare_sites(data, experiment.classes, FeatureCache(None, backbone), SITES)
    return Simulation(backbone, sites, SEED).run(experiment)


def client(*arguments: str, kit: Path) -> str:
    command = [sys.executable, "-m", "dpfpl_client", *arguments, "--site", str(kit)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
