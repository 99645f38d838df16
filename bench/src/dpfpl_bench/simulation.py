"""A whole federation in one process: the strategy and the agent core that are deployed, without network."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpfpl_bench.inprocess_grid import InProcessGrid
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.endpoint import Agent
from dpfpl_client.agent.feature_cache import FeatureCache, Progress, site_features
from dpfpl_client.agent.ledger import Ledger
from dpfpl_client.agent.store import MemoryStore, Store
from dpfpl_client.data import SiteData
from dpfpl_client.learning.backbone import Backbone
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.learning.randomness import RandomnessSource, SeededRandomness
from dpfpl_common.experiment import Experiment
from dpfpl_common.noise import NoiseSource
from dpfpl_server.result import mean
from dpfpl_server.run_folder import Checkpoint
from dpfpl_server.strategy import DPFPLStrategy, Status

__all__ = [
    "SimulatedSite",
    "Simulation",
    "SimulationOutcome",
    "mean_local_accuracy",
    "personal_contexts",
    "prepare_sites",
    "site_names",
]


@dataclass(frozen=True)
class SimulatedSite:
    """A site's name and image features."""

    name: str
    features: SiteFeatures
    num_classes: int


@dataclass(frozen=True)
class SimulationOutcome:
    """What a simulated run left behind.

    Attributes:
        checkpoint: the server's, after the last round.
        final: accuracies after the last round, by site.
        personal: personal contexts [num_context, width] after each site's last round, by site.
        seconds: of the whole run.
    """

    checkpoint: Checkpoint
    final: dict[str, dict[str, float]]
    personal: dict[str, npt.NDArray[np.float64]]
    seconds: float


def prepare_sites(
    data: Sequence[SiteData],
    class_names: Sequence[str],
    cache: FeatureCache,
    names: Sequence[str],
    progress: Progress | None = None,
) -> list[SimulatedSite]:
    """Image features of every simulated site; all share one model and one cache."""
    return [
        SimulatedSite(name, site_features(cache, site, class_names, progress), len(site.classes))
        for name, site in zip(names, data, strict=True)
    ]


class Simulation:
    """Runs experiments over simulated sites.

    Args:
        backbone: the shared frozen model.
        sites: names and features.
        seed: of sampling, factor starts and (unless ``randomness`` says otherwise) noise.
        randomness: real randomness instead of the seeded one.
    """

    def __init__(
        self,
        backbone: Backbone,
        sites: Sequence[SimulatedSite],
        seed: int,
        randomness: RandomnessSource | None = None,
    ) -> None:
        self._backbone = backbone
        self._sites = list(sites)
        self._randomness = randomness or SeededRandomness(seed)

    def run(
        self,
        experiment: Experiment,
        on_status: Callable[[Status], None] = lambda status: None,
        server_noise: NoiseSource | None = None,
    ) -> SimulationOutcome:
        """One experiment from start to end; the sites start fresh."""
        started = time.monotonic()
        stores = {site.name: MemoryStore() for site in self._sites}
        grid = InProcessGrid({site.name: self._agent(site, stores[site.name]) for site in self._sites})
        server = self._randomness.for_round("server", 0)
        strategy = DPFPLStrategy(
            experiment,
            grid.nodes,
            keys=None,
            on_status=on_status,
            noise=server_noise or server.noise,
            sampler=server.sampler,
        )
        checkpoint = strategy.run(grid)
        personal = personal_contexts(stores, experiment)
        return SimulationOutcome(checkpoint, strategy.final_metrics, personal, time.monotonic() - started)

    def _agent(self, site: SimulatedSite, store: MemoryStore) -> Agent:
        return SiteAgent(site.name, self._backbone, site.features, None, Ledger(None), store, self._randomness)


def personal_contexts(stores: Mapping[str, Store], experiment: Experiment) -> dict[str, npt.NDArray[np.float64]]:
    """The personal context [num_context, width] of every site that took part in a round, by site."""
    last = {site: store.read(experiment.name, store.last_round(experiment.name)) for site, store in stores.items()}
    return {site: record.state.context for site, record in last.items() if record is not None}


def site_names(count: int) -> list[str]:
    """site-1, site-2, ... with as many digits as needed to sort well."""
    digits = len(str(count))
    return [f"site-{number:0{digits}d}" for number in range(1, count + 1)]


def mean_local_accuracy(status: Status) -> float | None:
    """Mean local accuracy of the personalised prompts that a finished round reports."""
    return mean(metrics.get("personal_local") for metrics in status["metrics"].values())
