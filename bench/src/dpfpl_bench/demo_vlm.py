"""``dpfpl-bench demo-vlm``: a real federation that learns prompts for a generative model that answers questions."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpfpl_bench.demo import DemoRequest, clear_earlier, edit_kit, start_federation
from dpfpl_bench.floors import trained_floors
from dpfpl_bench.simulation import SimulatedSite, prepare_sites
from dpfpl_bench.tiny_vlm.sites import drawn_sites, with_neighbours, write_questions
from dpfpl_client.agent.feature_cache import FeatureCache
from dpfpl_client.data import DataSettings, load_site_data
from dpfpl_client.learning.backbone import Backbone, load_backbone
from dpfpl_common.experiment import (
    Experiment,
    ModelSettings,
    OptimizerSettings,
    PrivacySettings,
    PromptSettings,
    RoundSettings,
    TaskSettings,
)
from dpfpl_common.planning import resolve_noise
from dpfpl_common.processes import ProcessGroup, free_ports
from dpfpl_server.provision import ProvisionRequest, provision
from dpfpl_server.report import write_report
from dpfpl_server.run import run_experiment
from dpfpl_server.run_folder import RunFolder
from dpfpl_server.strategy import Status

__all__ = ["MODEL", "VLM_SITES", "run_demo_vlm", "vlm_experiment"]

VLM_SITES = ("clinic-a", "workshop-b", "shop-c")
MODEL = "embedded-vlm"
TRAIN, TEST = 300, 150


def run_demo_vlm(request: DemoRequest, on_status: Callable[[Status], None]) -> dict[str, Any]:
    """Draw three sites' pictures and questions, provision, start everything, run, stop; what result.json holds.

    Raises:
        DpfplError: anything that did not work; the logs stay in ``out/work``.
    """
    started = time.monotonic()
    work = request.out / "work"
    clear_earlier(request.out)
    fleet, control = free_ports(2)
    on_status({"phase": "PROVISIONING", "text": "drawing pictures, making certificates, keys and kits"})
    provision(ProvisionRequest(work / "server", work / "kits", VLM_SITES, port=fleet))
    for name, site in zip(VLM_SITES, drawn_sites(len(VLM_SITES), TRAIN, TEST, seed=0), strict=True):
        questions = write_questions(work / "data" / name, site)
        edit_kit(work / "kits" / name, str(questions), _with_the_model, "demo-vlm", request.epsilon)
    on_status({"phase": "READING_DATA", "text": "reading questions, calibrating the noise"})
    backbone, simulated = _same_sites_in_process(work)
    experiment = vlm_experiment(request, backbone, simulated)
    with ProcessGroup() as group:
        on_status({"phase": "STARTING", "text": "starting the server and three sites"})
        start_federation(work, fleet, control, group, VLM_SITES)
        result = run_experiment(experiment, work / "server", request.out, on_status)
    on_status({"phase": "COMPUTING_FLOORS", "text": "computing the floors: every site alone, all data in one place"})
    result["floors"] |= trained_floors(backbone, simulated, experiment, seed=0)
    for entry in result["sites"]:  # what a deployed site keeps to itself; here the pictures are drawn
        entry["test_images"] = TEST
    result["seconds_in_all"] = round(time.monotonic() - started, 3)
    folder = RunFolder(request.out)
    folder.write_json("result.json", result)
    write_report(folder.path)
    return result


def vlm_experiment(request: DemoRequest, backbone: Backbone, sites: list[SimulatedSite]) -> Experiment:
    """What the three sites learn: to have their questions answered in their own words."""
    sizes = [len(site.features.train) for site in sites]
    return resolve_noise(
        Experiment(
            name="demo-vlm",
            classes=(),
            sites=VLM_SITES,
            model=ModelSettings(width=backbone.width, id=MODEL, fingerprint=backbone.fingerprint),
            prompt=PromptSettings(num_context=4, rank=2, init_text="please answer the question"),
            optimizer=OptimizerSettings(global_learning_rate=0.02, personal_learning_rate=0.05),
            privacy=PrivacySettings(target_epsilon=request.epsilon, nominal_site_size=round(sum(sizes) / len(sizes))),
            rounds=RoundSettings(number=request.rounds, local_steps=2),
            task=TaskSettings(kind="vqa"),
        )
    )


def _with_the_model(text: str) -> str:
    """The model, and a registry of this demo's own: every demo draws the same pictures, and nobody is in them."""
    return 'registry = "registry"\n' + text.replace('model = "embedded" ', f'model = "{MODEL}" ', 1)


def _same_sites_in_process(work: Path) -> tuple[Backbone, list[SimulatedSite]]:
    """The three sites' data as the floors need them: together, which no real federation could have."""
    sources = [
        DataSettings(source="questions", path=str(work / "data" / name / "questions.jsonl")) for name in VLM_SITES
    ]
    backbone = load_backbone(MODEL)
    sites = with_neighbours([load_site_data(source, ()) for source in sources])
    return backbone, prepare_sites(sites, (), FeatureCache(work / "cache", backbone), VLM_SITES)
