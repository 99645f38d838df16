"""``dpfpl-bench run``: one simulated federation from data and model to result.json."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpfpl_bench.floors import centralised, local_only
from dpfpl_bench.question_sites import question_sites
from dpfpl_bench.settings import BenchSettings, build_experiment
from dpfpl_bench.simulation import SimulatedSite, Simulation, prepare_sites, site_names
from dpfpl_client.agent.feature_cache import FeatureCache
from dpfpl_client.data import DataProblem, DataSettings, SiteData, list_classes, partition_sites, read_pool
from dpfpl_client.learning.backbone import Backbone, load_backbone
from dpfpl_common.durable import write_durably
from dpfpl_common.errors import ConfigError
from dpfpl_server.result import build_result
from dpfpl_server.strategy import Status

if TYPE_CHECKING:
    from dpfpl_bench.flower_engine import FlowerSimulation

__all__ = ["RunRequest", "run_simulation", "write_result"]

FLOORS = ("all", "none")
ENGINES = {"inprocess": "in_process", "flower": "flower_simulation"}
"""Values of ``engine``, and what the result calls each as its transport."""


@dataclass(frozen=True)
class RunRequest:
    """One simulated run.

    Attributes:
        engine: "inprocess", or "flower" for Flower's simulation runtime; the same result either way.
        floors: "all" also trains the local-only and centralised floors, "none" leaves them out.
        cache: folder for image features; None keeps them in memory.
        questions: instead of ``data``, where the task is vqa; see ``question_sites``.
    """

    model: str
    data: DataSettings
    partition: str
    num_sites: int
    alpha: float
    seed: int
    bench: BenchSettings
    floors: str = "all"
    engine: str = "inprocess"
    cache: Path | None = None
    offline: bool = True
    questions: str = ""

    def __post_init__(self) -> None:
        for flag, value, allowed in (("floors", self.floors, FLOORS), ("engine", self.engine, ENGINES)):
            if value not in allowed:
                raise ConfigError(
                    code="IMPOSSIBLE_VALUE",
                    message=f"--{flag} is {value!r}, expected one of {', '.join(allowed)}.",
                    advice="Correct the flag.",
                )
        if self.bench.task.kind == "vqa" and self.engine != "inprocess":
            raise ConfigError(
                code="IMPOSSIBLE_VALUE",
                message=f"--engine is {self.engine!r}, expected inprocess for the task vqa.",
                advice="Correct the flag.",
            )


def run_simulation(
    request: RunRequest,
    on_step: Callable[[str], None] = lambda text: None,
    on_images: Callable[[int, int], None] = lambda done, total: None,
    on_status: Callable[[Status], None] = lambda status: None,
) -> dict[str, Any]:
    """Run it; the callbacks report progress. Returns what result.json holds."""
    if request.engine == "flower":
        from dpfpl_bench.flower_engine import require_ray  # takes seconds, and Ray is an extra

        require_ray()
    on_step("reading images")
    names, class_names, data, problems = _data(request)
    for problem in problems:
        on_step(f"{problem.severity}: {problem.message} [{problem.code}]")
    on_step("loading the model")
    backbone = load_backbone(request.model, offline=request.offline)
    on_step("computing image features")
    sites = prepare_sites(data, class_names, FeatureCache(request.cache, backbone), names, on_images)
    on_step("calibrating the noise")
    experiment = build_experiment(request.bench, backbone, request.model, class_names, sites)
    backbone.scorer(experiment)  # a model that cannot serve the task says so here, not as a site's refusal
    on_step("training")
    outcome = _engine(request, backbone, sites).run(experiment, on_status)
    floors = {}
    if request.floors == "all":
        on_step("floor: every site alone")
        floors["local_only"] = local_only(backbone, sites, experiment, request.seed)
        on_step("floor: all data in one place")
        floors["centralised"] = centralised(backbone, sites, experiment, request.seed)
    return build_result(
        experiment,
        transport=ENGINES[request.engine],
        history=outcome.checkpoint.history,
        final=outcome.final,
        num_classes={site.name: site.num_classes for site in sites},
        seconds=outcome.seconds,
        seed=request.seed,
        extra_floors=floors,
        real_noise=False,
    )


def _data(request: RunRequest) -> tuple[list[str], tuple[str, ...], list[SiteData], list[DataProblem]]:
    """Names of the sites, classes, every site's data, and what is wrong with them."""
    if request.bench.task.kind == "vqa":
        names, sites = question_sites(request.questions, request.num_sites, request.seed)
        return names, (), sites, [problem for site in sites for problem in site.problems]
    classes = list_classes(request.data)
    pool = read_pool(request.data, classes, request.cache / "images.json" if request.cache else None)
    sites = partition_sites(pool.records, classes, request.partition, request.num_sites, request.seed, request.alpha)
    return site_names(request.num_sites), classes, sites, list(pool.problems)


def _engine(request: RunRequest, backbone: Backbone, sites: list[SimulatedSite]) -> "Simulation | FlowerSimulation":
    if request.engine == "inprocess":
        return Simulation(backbone, sites, request.seed)
    from dpfpl_bench.flower_engine import FlowerSimulation

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
