"""``dpfpl-bench demo``: four sites that share handwritten digits so that no two of them have a class in common."""

from pathlib import Path

from dpfpl_bench.demo.demonstration import DemoRequest, Federation, Scenario, edit_kit
from dpfpl_bench.simulation.in_process import SimulatedSite, prepare_sites
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.data import DataSettings, list_classes, load_pool, partition_sites
from dpfpl_client.models.backbone import Backbone
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.privacy_plan import resolve_noise

__all__ = ["DEMO", "the_same_sites_in_process"]

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
