"""``dpfpl-bench run``: one simulated federation from data and model to result.json."""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from dpfpl_bench.simulation.baselines import trained_floors
from dpfpl_bench.simulation.curves import mix_curve, own_at_equal_others, preference_curve, strength_curve
from dpfpl_bench.simulation.in_process import SimulatedSite, Simulation, prepare_sites, site_names
from dpfpl_bench.simulation.questions import question_sites
from dpfpl_bench.simulation.settings import RunSettings, build_experiment
from dpfpl_bench.simulation.sources import check_spelling, domain_parts, own_classes, own_sites, several_times
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.data import DataSettings, ImageRecord, SiteData, list_classes, partition_sites, read_pool
from dpfpl_client.models.backbone import Backbone, too_long_answers
from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_client.models.loader import load_computing
from dpfpl_client.site.settings import ComputeSettings
from dpfpl_common.config import ImpossibleError, Texts, settings
from dpfpl_common.errors import ConfigError
from dpfpl_common.ops.files import write_durably
from dpfpl_server.federation.rounds import Status
from dpfpl_server.runs.plan import evidence_is_off
from dpfpl_server.runs.result import build_result, verdict

if TYPE_CHECKING:
    from dpfpl_bench.simulation.flower_engine import FlowerSimulation

    Engine = Callable[[Backbone, list[SimulatedSite]], Simulation | FlowerSimulation]

__all__ = ["DOMAIN_FOLDERS", "RunRequest", "data_digest", "run_simulation", "sites_data", "write_result"]

DOMAIN_FOLDERS = "domain-folders"
"""A partition that only the bench knows: one site for each folder of a folder of domains."""

ENGINES = {"inprocess": "in_process", "flower": "flower_simulation"}
"""Values of ``engine``, and what the result calls each as its transport."""


@settings
class RunRequest(RunSettings):
    """One simulated run.

    Attributes:
        name: of the experiment.
        data: where its images are; partitioned by ``partition``.
        own: each site's own images, by its name; instead of ``data``, ``sites`` and ``partition``.
        questions: instead of ``data``, where the task is vqa or caption; see ``question_sites``.
        classes: of the data; None: all that the source has.
        seed: of partition, sampling and simulated noise.
        engine: "inprocess", or "flower" for Flower's simulation runtime; the same result either way.
        threads: of the matrix library.
        compute: where the model computes; ``engine`` flower only knows the default.
        cache: folder for image features; empty keeps them in memory.
        offline: do not reach for hub ids.
    """

    name: str = "bench"
    data: DataSettings = field(default_factory=lambda: DataSettings("digits"))
    own: dict[str, DataSettings] = field(default_factory=dict)
    questions: str = ""
    classes: Texts | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    engine: Literal["inprocess", "flower"] = "inprocess"
    threads: Annotated[int, Field(ge=1)] = 1
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    cache: str = ""
    offline: bool = True

    def __post_init__(self) -> None:
        if self.engine != "inprocess" and self.compute != ComputeSettings():
            raise ImpossibleError("engine", self.engine, "'inprocess' where compute is given")
        if self.engine != "inprocess" and self.privacy.trust == "secure":
            raise ImpossibleError("engine", self.engine, "'inprocess' for secure trust")
        if self.engine != "inprocess" and self.task.in_words:
            raise ImpossibleError("engine", self.engine, f"'inprocess' for the task {self.task.kind}")
        if self.cache and not Path(self.cache).is_dir() and Path(self.cache).exists():
            raise ImpossibleError("cache", self.cache, "a folder")


def run_simulation(
    request: RunRequest,
    on_step: Callable[[str], None] = lambda text: None,
    on_count: Callable[[int, int], None] = lambda done, total: None,
    on_status: Callable[[Status], None] = lambda status: None,
    engine: "Engine | None" = None,
) -> dict[str, Any]:
    """Run it; the callbacks report progress. Returns what result.json holds.

    ``engine`` makes what runs the experiment over these sites; None: what the request asks for.
    """
    if request.engine == "flower":
        from dpfpl_bench.simulation.flower_engine import require_ray  # takes seconds, and Ray is an extra

        require_ray()
    on_step("reading images")
    names, class_names, data = sites_data(request, on_step)
    on_step("loading the model")
    backbone = load_computing(request.model, request.compute, offline=request.offline)
    on_step("computing image features")
    cache = Path(request.cache) if request.cache else None
    sites = prepare_sites(data, class_names, FeatureCache(cache, backbone), names, on_count)
    on_step("calibrating the noise")
    experiment = build_experiment(request.name, request, backbone, class_names, sites)
    scorer = backbone.scorer(experiment)  # a model that cannot serve the task says so here, not as a site's refusal
    asked = [pair for site in sites for part in (site.features.train, site.features.test) for pair in part.asked]
    if warning := too_long_answers(scorer, experiment.task, [answer for _, answer in asked]):
        on_step(f"warning: {warning}")
    if warning := evidence_is_off(experiment):
        on_step(f"warning: {warning}")
    on_step("training")
    outcome = (engine or functools.partial(_engine, request))(backbone, sites).run(experiment, on_status)
    floors = trained_floors(backbone, sites, experiment, request.seed, on_step, on_count, which=request.floors)
    result = build_result(
        experiment,
        transport=ENGINES[request.engine],
        history=outcome.checkpoint.history,
        final=outcome.final,
        scores=outcome.scores,
        num_classes={site.name: site.num_classes for site in sites},
        seconds=outcome.seconds,
        seed=request.seed,
        extra_floors=floors,
        evidence=outcome.checkpoint.evidence,
        real_noise=False,
    )
    for entry, site in zip(result["sites"], sites, strict=True):
        entry["test_images"] = len(site.features.test)
    result["verdict"] = verdict(result)
    result["strength_curve"] = strength_curve(
        backbone, sites, experiment, outcome.checkpoint.global_context, outcome.personal
    )
    if isinstance(backbone, DualEncoder):
        result["preference_curve"] = preference_curve(
            backbone, sites, experiment, outcome.checkpoint.global_context, outcome.personal
        )
    if outcome.checkpoint.evidence.rows:
        result["mix_curve"] = mix_curve(backbone, sites, experiment, outcome.checkpoint, request.seed)
        result["own_at_equal_others"] = own_at_equal_others(result["mix_curve"])
    result["data_digest"] = data_digest(data)
    return result


def data_digest(data: Sequence[SiteData]) -> str:
    """sha256 over every image's pixels, class and part, whatever the files are called: two runs saw the same images."""
    lines = sorted(f"{part} {r.digest} {r.label}\n" for site in data for part, r in _parts(site))
    return hashlib.sha256("".join(dict.fromkeys(lines)).encode()).hexdigest()


def _parts(site: SiteData) -> list[tuple[str, ImageRecord]]:
    return [("train", r) for r in site.train] + [("test", r) for r in (*site.test, *site.neighbour_test)]


def sites_data(
    request: RunRequest, on_step: Callable[[str], None]
) -> tuple[list[str], tuple[str, ...], list[SiteData]]:
    """Names of the sites, classes, and every site's data; ``on_step`` is told what is wrong with them."""
    if request.own:
        class_names = () if request.task.in_words else request.classes or own_classes(request.own)
        check_spelling(class_names)
        data = own_sites(request.own, class_names)
        for name, site in zip(request.own, data, strict=True):
            for problem in site.problems:
                on_step(f"{name}: warning: {problem}")
        if count := several_times(data):
            on_step(
                f"warning: {count} image{'s are' if count > 1 else ' is'} at more than one site, so less protected and "
                "tested on twice. [SHARED_IMAGES]"
            )
        return list(request.own), class_names, data
    if request.task.in_words:
        names, asked = question_sites(request.questions, request.sites, request.seed)
        for problem in (problem for site in asked for problem in site.problems):
            on_step(f"warning: {problem}")
        return names, (), asked
    names = site_names(request.sites)
    if request.partition == DOMAIN_FOLDERS:
        parts = domain_parts(request.data)
        class_names = request.classes or own_classes(parts)
        data = own_sites(parts, class_names)
        if len(data) != request.sites:
            raise ConfigError(
                code="IMPOSSIBLE_VALUE",
                message=f"--sites is {request.sites}, the folder holds {len(data)} domains.",
                advice=f"Give --sites {len(data)}, or remove the folders that are too many.",
            )
        return names, class_names, data
    class_names = request.classes or list_classes(request.data)
    pool = read_pool(request.data, class_names, Path(request.cache) / "images.json" if request.cache else None)
    for problem in pool.problems:
        on_step(f"warning: {problem}")
    data = partition_sites(pool.records, class_names, request.partition, request.sites, request.seed, request.alpha)
    return names, class_names, data


def _engine(request: RunRequest, backbone: Backbone, sites: list[SimulatedSite]) -> "Simulation | FlowerSimulation":
    if request.engine == "inprocess":
        return Simulation(backbone, sites, request.seed)
    from dpfpl_bench.simulation.flower_engine import FlowerSimulation

    return FlowerSimulation(request.model, request.offline, sites, request.seed)


def write_result(result: dict[str, Any], path: Path) -> None:
    """Write result.json, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, (json.dumps(result, indent=2) + "\n").encode(), 0o644)
    except OSError as error:
        raise ConfigError(
            code="CANNOT_WRITE",
            message=f"The result cannot be written to {path} ({error.strerror or error}).",
            advice="Give --out a file in a folder that you may write to.",
        ) from None
