"""A real federation on this machine, started and typed as an operator and some sites would; the demos are scenarios."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpfpl_bench.simulation.baselines import trained_floors
from dpfpl_bench.simulation.in_process import SimulatedSite
from dpfpl_client.models.backbone import Backbone
from dpfpl_client.node.launch import start_agent, start_node, wait_for_agent
from dpfpl_client.node.supernode import wait_until_connected
from dpfpl_client.site.init import initialise
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import Experiment
from dpfpl_common.ops.processes import ProcessGroup, free_port, free_ports
from dpfpl_server.federation.rounds import Status
from dpfpl_server.report import write_report
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.result import verdict
from dpfpl_server.runs.supervise import run_experiment
from dpfpl_server.sites.provision import ProvisionRequest, provision
from dpfpl_server.sites.superlink import SuperLinkSettings, start_superlink

__all__ = ["DemoRequest", "Federation", "Scenario", "demonstrate", "edit_kit", "provisioned", "start_federation"]

LONGEST_SOCKET_PATH = 100
POLICY = """\
# The demo's images are public, so its sites let exact accuracies out. Do not copy this line for data of your own.
experiments = ["{experiment}"]
max_epsilon_per_experiment = {epsilon}
max_epsilon_lifetime = {epsilon}
metrics = "exact"
"""


@dataclass(frozen=True)
class DemoRequest:
    """Attributes: ``out`` holds everything, keys and logs included; ``epsilon`` towards a prompt's recipient."""

    out: Path
    rounds: int
    epsilon: float


@dataclass(frozen=True)
class Federation:
    """The sites' data as the floors need them, together, which no real federation could have; and what they learn."""

    backbone: Backbone
    sites: list[SimulatedSite]
    experiment: Experiment


@dataclass(frozen=True)
class Scenario:
    """What differs between demos.

    Attributes:
        sites: their names.
        what: the data, in a word: "images".
        fill_in: what the sites' administrators would type, given the folder ``work`` and the target epsilon.
        federation: the same sites in this process.
    """

    sites: tuple[str, ...]
    what: str
    fill_in: Callable[[Path, float], None]
    federation: Callable[[DemoRequest], Federation]


def demonstrate(scenario: Scenario, request: DemoRequest, on_status: Callable[[Status], None]) -> dict[str, Any]:
    """Provision, start everything, run the experiment, stop everything; returns what result.json holds.

    Raises:
        DpfplError: anything that did not work; the logs stay in ``out/work``.
    """
    started = time.monotonic()
    _clear_earlier(request.out)
    on_status({"phase": "PROVISIONING", "text": "making certificates, keys and kits"})
    work, fleet, control = provisioned(scenario, request)
    on_status({"phase": "READING_DATA", "text": f"reading {scenario.what}, calibrating the noise"})
    known = scenario.federation(request)
    with ProcessGroup() as group:
        on_status({"phase": "STARTING", "text": f"starting the server and {len(scenario.sites)} sites"})
        start_federation(work, fleet, control, group, scenario.sites)
        result = run_experiment(known.experiment, work / "server", request.out, on_status)
    floors = trained_floors(
        known.backbone,
        known.sites,
        known.experiment,
        0,
        lambda text: on_status({"phase": "COMPUTING_FLOORS", "text": text}),
    )
    result["baselines"] |= floors
    result["floors"] = result["baselines"]
    sites = {site.name: site for site in known.sites}
    for entry in result["sites"]:  # what a deployed site keeps to itself; here everything is public
        site = sites[entry["name"]]
        entry["test_images"] = len(site.features.test)
        if known.experiment.classes:
            entry["num_classes"] = site.num_classes
    result["verdict"] = verdict(result)
    result["seconds_in_all"] = round(time.monotonic() - started, 3)
    folder = RunFolder(request.out)
    folder.write_json("result.json", result)
    write_report(folder.path)
    return result


def provisioned(scenario: Scenario, request: DemoRequest) -> tuple[Path, int, int]:
    """Server and kits made and filled in; their folder ``out/work`` and the fleet's and the control's port."""
    work, (fleet, control) = request.out / "work", free_ports(2)
    work.mkdir(parents=True, exist_ok=True)
    provision(ProvisionRequest(work / "server", work / "kits", scenario.sites, port=fleet))
    scenario.fill_in(work, request.epsilon)
    return work, fleet, control


def _clear_earlier(out: Path) -> None:
    """Remove an earlier demo, and nothing else."""
    if out.exists() and any(out.iterdir()) and not (out / "work").is_dir():
        raise ConfigError(
            code="NOT_A_DEMO_FOLDER",
            message=f"{out} holds something other than an earlier demo.",
            advice="Give --out a new or empty folder.",
        )
    shutil.rmtree(out, ignore_errors=True)


def edit_kit(kit: Path, data: str, edit: Callable[[str], str], experiment: str, epsilon: float) -> None:
    """Point a kit to its data, edit its site.toml, and approve one experiment with room over its epsilon."""
    site_file = kit / "site.toml"
    initialise(site_file, data, kit.name)
    text = edit(site_file.read_text())
    if len(str(kit / "state" / "agent.sock")) > LONGEST_SOCKET_PATH:
        text = text.replace("unix:state/agent.sock", f"127.0.0.1:{free_port()}")
    site_file.write_text(text)
    (kit / "policy.toml").write_text(POLICY.format(experiment=experiment, epsilon=1.25 * epsilon))


def start_federation(work: Path, fleet: int, control: int, group: ProcessGroup, sites: tuple[str, ...]) -> None:
    """The server and all sites of the provisioned folder ``work``, up and connected."""
    start_superlink(SuperLinkSettings(work / "server", fleet_address=f"127.0.0.1:{fleet}", control_port=control), group)
    kits = [work / "kits" / name / "site.toml" for name in sites]
    agents = [start_agent(kit, load_site(kit), group) for kit in kits]
    for agent, kit in zip(agents, kits, strict=True):
        wait_for_agent(agent, load_site(kit))
    for node in [start_node(load_site(kit), group) for kit in kits]:
        wait_until_connected(node)
