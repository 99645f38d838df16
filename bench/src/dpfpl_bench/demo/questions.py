"""``dpfpl-bench demo-vlm``: a real federation that learns prompts for a generative model that answers questions."""

from pathlib import Path

from dpfpl_bench.demo.demonstration import DemoRequest, Federation, Scenario, edit_kit
from dpfpl_bench.demo.drawn_sites import drawn_sites, with_neighbours, write_questions
from dpfpl_bench.simulate.simulation import SimulatedSite, prepare_sites
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.data import DataSettings, load_site_data
from dpfpl_client.models.backbone import Backbone
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import (
    Experiment,
    ModelSettings,
    OptimizerSettings,
    PrivacySettings,
    PromptSettings,
    RoundSettings,
    TaskSettings,
)
from dpfpl_common.privacy_plan import resolve_noise

__all__ = ["DEMO_VLM", "MODEL", "VLM_SITES", "vlm_experiment"]

VLM_SITES = ("clinic-a", "workshop-b", "shop-c")
MODEL = "embedded-vlm"
TRAIN, TEST = 300, 150


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
            privacy=PrivacySettings(
                mechanism="per_step", target_epsilon=request.epsilon, nominal_site_size=round(sum(sizes) / len(sizes))
            ),
            rounds=RoundSettings(number=request.rounds, local_steps=2),
            task=TaskSettings(kind="vqa"),
        )
    )


def _with_the_model(text: str) -> str:
    """The model, and a registry of this demo's own: every demo draws the same pictures, and nobody is in them."""
    return 'registry = "registry"\n' + text.replace('model = "embedded" ', f'model = "{MODEL}" ', 1)


def _fill_in(work: Path, epsilon: float) -> None:
    for name, site in zip(VLM_SITES, drawn_sites(len(VLM_SITES), TRAIN, TEST, seed=0), strict=True):
        questions = write_questions(work / "data" / name, site)
        edit_kit(work / "kits" / name, str(questions), _with_the_model, "demo-vlm", epsilon)


def _federation(request: DemoRequest) -> Federation:
    work = request.out / "work"
    sources = [
        DataSettings(source="questions", path=str(work / "data" / name / "questions.jsonl")) for name in VLM_SITES
    ]
    backbone = load_backbone(MODEL)
    drawn = with_neighbours([load_site_data(source, ()) for source in sources])
    sites = prepare_sites(drawn, (), FeatureCache(work / "cache", backbone), VLM_SITES)
    return Federation(backbone, sites, vlm_experiment(request, backbone, sites))


DEMO_VLM = Scenario(VLM_SITES, "questions", _fill_in, _federation)
