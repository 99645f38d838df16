"""The same simulation on Flower's own runtime: every site is a virtual SuperNode, its ClientApp runs in a Ray actor.

Actors come and go and any of them may serve any site, so whatever a site keeps lies in a folder, as at a deployed one::

    plan.json                 model, seed, threads, the sites in the order of their partition ids
    <site>/data.safetensors   image features and labels
    <site>/ledger.sqlite      what was charged
    <site>/experiments/       prompts and releases
"""

import functools
import importlib.util
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from safetensors.torch import load_file, save_file

from dpfpl_bench.simulation.in_process import SimulatedSite, SimulationOutcome, answer, personal_contexts
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.backbone import Backbone, LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import ConfigError, RoundError
from dpfpl_common.experiment import Experiment
from dpfpl_server.federation.exchange import exchange
from dpfpl_server.federation.rounds import DPFPLStrategy, Status

__all__ = ["FlowerSimulation", "client_app", "nodes_by_partition", "require_ray"]

MAX_ACTORS = 2
START_SECONDS = 600.0
"""Until Ray has started and the actors have loaded torch and the model, also on a machine that does much else."""
RAY_STARTS = 5
RAY_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about future defaults
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # actors use this environment, also under ``uv run``
}
PLACE = ("partition-id", "num-partitions")
"""What Flower's simulation tells a node in its configuration."""
PARTS = ("train", "test", "neighbour_test")


@dataclass(frozen=True)
class Plan:
    """What every actor needs to know; travels as ``plan.json``."""

    model: str
    offline: bool
    seed: int
    threads: int
    sites: tuple[str, ...]
    classes: tuple[str, ...]


class FlowerSimulation:
    """Runs experiments over simulated sites, with the results of ``dpfpl_bench.simulation.in_process.Simulation``.

    Args:
        model: as for ``load_backbone``; every actor loads it once.
        offline: as for ``load_backbone``.
        sites: names and features.
        seed: of sampling, factor starts and noise.
        grid: of a runtime that is up and has a node for each site, as under ``flwr run``; None starts one for each run.
    """

    def __init__(
        self, model: str, offline: bool, sites: Sequence[SimulatedSite], seed: int, grid: Grid | None = None
    ) -> None:
        self._sites = list(sites)
        self._grid = grid
        names = tuple(site.name for site in sites)
        self._plan = Plan(model, offline, seed, torch.get_num_threads(), names, sites[0].features.classes)

    def run(
        self, experiment: Experiment, on_status: Callable[[Status], None] = lambda status: None
    ) -> SimulationOutcome:
        """One experiment from start to end; the sites start fresh."""
        if self._grid is not None:
            return self._run_over(self._grid, experiment, on_status)
        finished: list[SimulationOutcome] = []
        stopped = threading.Event()
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            _stop_pulling_when(stopped, grid)
            finished.append(self._run_over(grid, experiment, on_status))

        try:
            _run_on_ray(server, client_app, len(self._sites))
        finally:
            stopped.set()
        if not finished:
            raise RoundError(
                code="SIMULATION_FAILED",
                message="Flower's simulation runtime ended before the experiment did.",
                advice="Try again, or use --set engine=inprocess, which needs no runtime.",
            )
        return finished[0]

    def _run_over(self, grid: Grid, experiment: Experiment, on_status: Callable[[Status], None]) -> SimulationOutcome:
        started = time.monotonic()
        randomness = SeededRandomness(self._plan.seed).for_round("server", 0)
        with tempfile.TemporaryDirectory(prefix="dpfpl-flower-") as folder:
            _write_plan(Path(folder), self._plan, self._sites)
            strategy = DPFPLStrategy(
                experiment,
                dict(zip(self._plan.sites, nodes_by_partition(grid, folder), strict=True)),
                keys=None,
                on_status=on_status,
                noise=randomness.noise,
                sampler=randomness.sampler,
            )
            checkpoint = strategy.run(grid)
            personal = personal_contexts(
                {site: DiskStore(Path(folder) / site) for site in self._plan.sites}, experiment
            )
        return SimulationOutcome(
            checkpoint, strategy.final_metrics, strategy.final_scores, personal, time.monotonic() - started
        )


# At the driver


def require_ray() -> None:
    """Refuse early where the runtime is missing.

    Raises:
        ConfigError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            code="MISSING_EXTRA",
            message="Flower's simulation runtime needs Ray, which is not installed.",
            advice="Install the extra: pip install 'dpfpl-bench[flower]', or use --set engine=inprocess.",
        )


def _run_on_ray(server: ServerApp, client: ClientApp, num_sites: int) -> None:
    actors = max(1, min(MAX_ACTORS, os.cpu_count() or 1, num_sites))
    with _quiet():
        from flwr.simulation import run_simulation  # sets variables of Ray's

        with _started_ray(actors):
            run_simulation(
                server_app=server,
                client_app=client,
                num_supernodes=num_sites,
                backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower's log without its announcements; what Ray reads from the environment comes and goes with the run."""
    log = logging.getLogger("flwr")
    level, before = log.level, dict(os.environ)
    log.setLevel(logging.ERROR)
    os.environ.update(RAY_VARIABLES)
    try:
        yield
    finally:
        log.setLevel(level)
        for added in set(os.environ) - set(before):
            del os.environ[added]
        os.environ.update(before)


@contextmanager
def _started_ray(actors: int) -> Iterator[None]:
    """Ray, which Flower takes where it runs already. It gives its first process half a minute to come up; where that is
    too little it is started again.
    """
    import ray

    for left in reversed(range(RAY_STARTS)):
        try:
            ray.init(
                num_cpus=actors,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},  # actors import what we do
            )
            break
        except Exception:  # Ray raises nothing more particular where its node or its first worker is late
            ray.shutdown()
            if not left:
                raise
    try:
        yield
    finally:
        ray.shutdown()


def _stop_pulling_when(stopped: threading.Event, grid: Grid) -> None:
    """Let the server's thread end soon after the runtime has; otherwise it would wait out every deadline."""
    pull = grid.pull_messages

    def pull_unless_stopped(message_ids: list[str]) -> list[Message]:
        if stopped.is_set():
            raise RoundError(code="SIMULATION_FAILED", message="Flower's simulation runtime has ended.")
        return list(pull(message_ids))

    setattr(grid, "pull_messages", pull_unless_stopped)  # noqa: B010  mypy forbids to assign a method


def nodes_by_partition(grid: Grid, folder: str = "") -> list[int]:
    """The runtime's node ids in the order of their partitions, once all are there.

    Flower draws node ids at random, so every node is asked which partition it is, and remembers the folder.

    Raises:
        RoundError: a node does not start.
    """
    end = time.monotonic() + START_SECONDS
    found: dict[int, int] = {}
    count = 1
    while len(found) < count:
        content = RecordDict({"plan": ConfigRecord({"folder": folder})})
        nodes = set(grid.get_node_ids()) - set(found.values())
        questions = {str(node): grid.create_message(content, "query", node, "0") for node in nodes}
        outcome = exchange(grid, questions, START_SECONDS)
        if outcome.failures:
            node, why = min(outcome.failures.items())
            raise RoundError(
                code="SITES_MISSING",
                message=f"The virtual node {node} does not start: {why}",
                advice="Try again, or use --set engine=inprocess, which needs no runtime.",
            )
        for node, reply in outcome.replies.items():
            partition, count = (int(str(reply.content["node"][key])) for key in PLACE)
            found[partition] = int(node)
        if not nodes:
            if time.monotonic() >= end:
                raise RoundError(
                    code="SITES_MISSING", message=f"Flower registered {len(found)} of {count} virtual nodes."
                )
            time.sleep(0.05)
    return [found[partition] for partition in range(count)]


def _write_plan(folder: Path, plan: Plan, sites: Sequence[SimulatedSite]) -> None:
    (folder / "plan.json").write_text(json.dumps(asdict(plan)), encoding="utf-8")
    for site in sites:
        tensors = {}
        for part in PARTS:
            images: LabelledFeatures = getattr(site.features, part)
            tensors[f"{part}_features"] = images.features.contiguous()
            tensors[f"{part}_labels"] = images.labels.contiguous()
        (folder / site.name).mkdir()
        save_file(tensors, folder / site.name / "data.safetensors")


# In the actors: everything is found again from the folder's path, which each node keeps in its Flower state

client_app = ClientApp()
"""A virtual site's ClientApp, in any simulation of Flower's."""


@client_app.query()
def introduce(message: Message, context: Context) -> Message:
    """Keep where the plan is; say which of how many partitions this node is."""
    context.state["plan"] = message.content["plan"]
    return Message(
        RecordDict({"node": ConfigRecord({key: context.node_config[key] for key in PLACE})}), reply_to=message
    )


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Take part in a round."""
    return _answer(*_place(context), message)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer the final request."""
    return _answer(*_place(context), message)


def _place(context: Context) -> tuple[str, str]:
    """The plan's folder, and which of its sites this node is."""
    folder = str(context.state["plan"]["folder"])
    return folder, _plan(folder).sites[int(context.node_config["partition-id"])]


@functools.cache
def _plan(folder: str) -> Plan:
    table = json.loads((Path(folder) / "plan.json").read_text(encoding="utf-8"))
    return Plan(**{**table, "sites": tuple(table["sites"]), "classes": tuple(table["classes"])})


@functools.cache
def _backbone(model: str, offline: bool, threads: int) -> Backbone:
    torch.set_num_threads(threads)
    return load_backbone(model, offline=offline)


@functools.cache
def _features(folder: str, site: str) -> SiteFeatures:
    tensors = load_file(Path(folder) / site / "data.safetensors")
    train, test, neighbour_test = (
        LabelledFeatures(tensors[f"{part}_features"], tensors[f"{part}_labels"]) for part in PARTS
    )
    return SiteFeatures(train, test, neighbour_test, _plan(folder).classes)


def _answer(folder: str, site: str, message: Message) -> Message:
    """The site's reply. The ledger is opened again each time: another actor may have added to it since."""
    plan, own = _plan(folder), Path(folder) / site
    backbone = _backbone(plan.model, plan.offline, plan.threads)
    with closing(Ledger(own / "ledger.sqlite")) as ledger:
        features, randomness = _features(folder, site), SeededRandomness(plan.seed)
        return answer(SiteAgent(site, backbone, features, None, ledger, DiskStore(own), randomness), message)
