"""``dpfpl-bench demo``: a real federation on this machine, started and typed as an operator and four sites would."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpfpl_bench.floors import trained_floors
from dpfpl_bench.simulation import SimulatedSite, prepare_sites
from dpfpl_client.agent.feature_cache import FeatureCache
from dpfpl_client.data import DataSettings, list_classes, load_pool, partition_sites
from dpfpl_client.launch import start_agent, start_node, wait_for_agent
from dpfpl_client.learning.backbone import Backbone, load_backbone
from dpfpl_client.site_settings import load_site
from dpfpl_client.starter import initialise
from dpfpl_client.supernode import wait_until_connected
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.planning import resolve_noise
from dpfpl_common.processes import ProcessGroup, free_port, free_ports
from dpfpl_server.provision import ProvisionRequest, provision
from dpfpl_server.report import write_report
from dpfpl_server.run import run_experiment
from dpfpl_server.run_folder import RunFolder
from dpfpl_server.strategy import Status
from dpfpl_server.superlink import SuperLinkSettings, start_superlink

__all__ = [
    "SITES",
    "DemoRequest",
    "clear_earlier",
    "demo_experiment",
    "edit_kit",
    "fill_in_kit",
    "run_demo",
    "start_federation",
    "the_same_sites_in_process",
]

SITES = ("hospital-a", "hospital-b", "factory-c", "shop-d")
PARTITION = "pathological"
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


def run_demo(request: DemoRequest, on_status: Callable[[Status], None]) -> dict[str, Any]:
    """Provision, start everything, run the experiment, stop everything; returns what result.json holds.

    Raises:
        DpfplError: anything that did not work; the logs stay in ``out/work``.
    """
    started = time.monotonic()
    work = request.out / "work"
    clear_earlier(request.out)
    fleet, control = free_ports(2)
    on_status({"phase": "PROVISIONING", "text": "making certificates, keys and kits"})
    provision(ProvisionRequest(work / "server", work / "kits", SITES, port=fleet))
    for index, name in enumerate(SITES):
        fill_in_kit(work / "kits" / name, index, request.epsilon)
    on_status({"phase": "READING_DATA", "text": "reading images, calibrating the noise"})
    backbone, simulated = the_same_sites_in_process(work)
    experiment = demo_experiment(request, backbone, simulated)
    with ProcessGroup() as group:
        on_status({"phase": "STARTING", "text": "starting the server and four sites"})
        start_federation(work, fleet, control, group)
        result = run_experiment(experiment, work / "server", request.out, on_status)
    on_status({"phase": "COMPUTING_FLOORS", "text": "computing the floors: every site alone, all data in one place"})
    result["floors"] |= trained_floors(backbone, simulated, experiment, seed=0)
    known = {site.name: site for site in simulated}
    for entry in result["sites"]:  # what a deployed site keeps to itself; here the images are public
        entry["num_classes"] = known[entry["name"]].num_classes
        entry["test_images"] = len(known[entry["name"]].features.test)
    result["seconds_in_all"] = round(time.monotonic() - started, 3)
    folder = RunFolder(request.out)
    folder.write_json("result.json", result)
    write_report(folder.path)
    return result


def clear_earlier(out: Path) -> None:
    """Remove an earlier demo, and nothing else."""
    if out.exists() and any(out.iterdir()) and not (out / "work").is_dir():
        raise ConfigError(
            code="NOT_A_DEMO_FOLDER",
            message=f"{out} holds something else than an earlier demo.",
            advice="Give --out a new or empty folder.",
        )
    shutil.rmtree(out, ignore_errors=True)
    (out / "work").mkdir(parents=True)


def fill_in_kit(kit: Path, index: int, epsilon: float) -> None:
    """What a site's administrator would edit: the data in site.toml, and policy.toml."""
    part = f'\npartition = "{PARTITION}"\nnum_sites = {len(SITES)}\nsite_index = {index}\n'
    edit_kit(kit, "digits", lambda text: text.replace("\n[server]", f"{part}\n[server]", 1), "demo", epsilon)


def edit_kit(kit: Path, data: str, edit: Callable[[str], str], experiment: str, epsilon: float) -> None:
    """Point a kit to its data, edit its site.toml, and approve one experiment with room over its epsilon."""
    site_file = kit / "site.toml"
    initialise(site_file, data, kit.name)
    text = edit(site_file.read_text())
    if len(str(kit / "state" / "agent.sock")) > LONGEST_SOCKET_PATH:
        text = text.replace("unix:state/agent.sock", f"127.0.0.1:{free_port()}")
    site_file.write_text(text)
    (kit / "policy.toml").write_text(POLICY.format(experiment=experiment, epsilon=1.25 * epsilon))


def start_federation(work: Path, fleet: int, control: int, group: ProcessGroup, sites: tuple[str, ...] = SITES) -> None:
    """The server and all sites of the provisioned folder ``work``, up and connected."""
    start_superlink(SuperLinkSettings(work / "server", fleet_address=f"127.0.0.1:{fleet}", control_port=control), group)
    kits = [work / "kits" / name / "site.toml" for name in sites]
    agents = [start_agent(kit, load_site(kit), group) for kit in kits]
    for agent in agents:
        wait_for_agent(agent)
    for node in [start_node(load_site(kit), group) for kit in kits]:
        wait_until_connected(node)


def the_same_sites_in_process(work: Path) -> tuple[Backbone, list[SimulatedSite]]:
    """The four sites' data as the floors need them: together, which no real federation could have."""
    settings = DataSettings(source="digits")
    classes = list_classes(settings)
    data = partition_sites(load_pool(settings, classes), classes, PARTITION, len(SITES), 0)
    backbone = load_backbone("embedded")
    return backbone, prepare_sites(data, classes, FeatureCache(work / "cache", backbone), SITES)


def demo_experiment(request: DemoRequest, backbone: Backbone, sites: list[SimulatedSite]) -> Experiment:
    """What the four sites learn."""
    sizes = [len(site.features.train) for site in sites]
    return resolve_noise(
        Experiment(
            name="demo",
            classes=sites[0].features.classes,
            sites=SITES,
            model=ModelSettings(width=backbone.width, fingerprint=backbone.fingerprint),
            privacy=PrivacySettings(
                mechanism="one_shot",
                trust="local",
                target_epsilon=request.epsilon,
                nominal_site_size=round(sum(sizes) / len(sizes)),
            ),
            rounds=RoundSettings(number=request.rounds),
        )
    )
