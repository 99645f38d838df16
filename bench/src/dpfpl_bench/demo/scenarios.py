"""The scenarios of the demos: four sites that share handwritten digits, and a dozen that have questions answered."""

from collections.abc import Sequence
from pathlib import Path

from dpfpl_bench.demo.demonstration import DemoRequest, Federation, Scenario, edit_kit
from dpfpl_bench.demo.drawn_questions import drawn_houses, write_questions
from dpfpl_bench.simulation.in_process import SimulatedSite, prepare_sites
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.data import DataSettings, list_classes, load_pool, load_site_data, partition_sites
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

__all__ = [
    "DEMO",
    "MODEL",
    "ROUNDS",
    "TEST",
    "TRAIN",
    "VLM_SITES",
    "the_same_sites_in_process",
    "vlm_demo",
    "vlm_experiment",
]


# ``dpfpl-bench demo``: no two of the four sites have a class in common.


SITES = ("hospital-a", "hospital-b", "factory-c", "shop-d")
PARTITION = "pathological"


def the_same_sites_in_process(work: Path) -> tuple[Backbone, list[SimulatedSite]]:
    """The four sites' data, together."""
    settings = DataSettings(source="digits")
    classes = list_classes(settings)
    data = partition_sites(load_pool(settings, classes), classes, PARTITION, len(SITES), 0)
    backbone = load_backbone("embedded")
    return backbone, prepare_sites(data, classes, FeatureCache(work / "cache", backbone), SITES)


def _fill_in(work: Path, epsilon: float) -> None:
    for index, name in enumerate(SITES):
        share = f'\npartition = "{PARTITION}"\nnum_sites = {len(SITES)}\nsite_index = {index}\n\n[server]'

        def with_the_share(text: str, share: str = share) -> str:
            return text.replace("\n[server]", share, 1)

        edit_kit(work / "kits" / name, "digits", with_the_share, "demo", epsilon)


def _federation(request: DemoRequest) -> Federation:
    backbone, sites = the_same_sites_in_process(request.out / "work")
    sizes = [len(site.features.train) for site in sites]
    experiment = Experiment(
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
    return Federation(backbone, sites, resolve_noise(experiment))


DEMO = Scenario(SITES, "images", _fill_in, _federation)


# ``dpfpl-bench demo-vlm``: prompts for a generative model that answers questions.


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
