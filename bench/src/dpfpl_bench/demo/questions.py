"""``dpfpl-bench demo-vlm``: a real federation that learns prompts for a generative model that answers questions."""

from collections.abc import Sequence
from pathlib import Path

from dpfpl_bench.demo.demonstration import DemoRequest, Federation, Scenario, edit_kit
from dpfpl_bench.demo.drawn_sites import drawn_houses, write_questions
from dpfpl_bench.simulation.in_process import SimulatedSite, prepare_sites
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

__all__ = ["MODEL", "ROUNDS", "TEST", "TRAIN", "VLM_SITES", "vlm_demo", "vlm_experiment"]

VLM_SITES = tuple(f"clinic-{letter}" for letter in "abcdefghijkl")
MODEL = "embedded-vlm"
TRAIN, TEST = 50, 40
ROUNDS = 12


def vlm_experiment(
    backbone: Backbone, sites: Sequence[SimulatedSite], epsilon: float | None, rounds: int = ROUNDS
) -> Experiment:
    """What the sites learn: to have their questions answered in the style that most of them share.

    All lines join every step, and there is one step a round: with few lines a site that is the most that a budget
    buys. The prompt is shared whole, which at a site alone is all its own, so both are trained alike.
    """
    sizes = [len(site.features.train) for site in sites]
    return resolve_noise(
        Experiment(
            name="demo-vlm",
            classes=(),
            sites=tuple(site.name for site in sites),
            model=ModelSettings(width=backbone.width, id=MODEL, fingerprint=backbone.fingerprint),
            prompt=PromptSettings(method="promptfl", num_context=4, init_text="please answer the question"),
            optimizer=OptimizerSettings(global_learning_rate=0.1),
            privacy=PrivacySettings(
                mechanism="per_step",
                target_epsilon=epsilon,
                noise_multiplier=0.0 if epsilon is None else None,
                sample_rate=1.0,
                nominal_site_size=round(sum(sizes) / len(sizes)),
            ),
            rounds=RoundSettings(number=rounds, local_steps=1),
            task=TaskSettings(kind="vqa"),
        )
    )


def _with_the_model(text: str) -> str:
    """The model, and a registry of this demo's own: every demo draws the same pictures, and nobody is in them."""
    text = text.replace('model = "embedded" ', f'model = "{MODEL}" ', 1)
    return 'registry = "registry"\n' + text.replace("\n[server]", "\npublic = true\n\n[server]", 1)


def vlm_demo(count: int = len(VLM_SITES)) -> Scenario:
    """The first ``count`` of the clinics: fewer need less memory and learn less from each other."""
    names = VLM_SITES[:count]

    def fill_in(work: Path, epsilon: float) -> None:
        for name, site in zip(names, drawn_houses(count, TRAIN, TEST, seed=0), strict=True):
            questions = write_questions(work / "data" / name, site)
            edit_kit(work / "kits" / name, str(questions), _with_the_model, "demo-vlm", epsilon)

    def federation(request: DemoRequest) -> Federation:
        work, backbone = request.out / "work", load_backbone(MODEL)
        files = [work / "data" / name / "questions.jsonl" for name in names]
        drawn = [load_site_data(DataSettings(source="questions", path=str(file)), ()) for file in files]
        sites = prepare_sites(drawn, (), FeatureCache(work / "cache", backbone), names)
        return Federation(backbone, sites, vlm_experiment(backbone, sites, request.epsilon, request.rounds))

    return Scenario(names, "questions", fill_in, federation)
