"""A whole federation in one process: the strategy and the agent core that are deployed, without network."""

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.endpoint import Agent
from dpfpl_client.agent.features import FeatureCache, Progress, site_features
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.service import answer as agent_answer
from dpfpl_client.agent.store import MemoryStore, Store
from dpfpl_client.data import SiteData
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.learning.step import RandomnessSource, SeededRandomness
from dpfpl_client.models.backbone import Backbone
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.noise import NoiseSource
from dpfpl_common.wire.codec import KINDS, RECORD, read_request, reply_record
from dpfpl_server.federation.rounds import DPFPLStrategy, Status
from dpfpl_server.runs.folder import Checkpoint
from dpfpl_server.runs.result import mean

__all__ = [
    "InProcessGrid",
    "SimulatedSite",
    "Simulation",
    "SimulationOutcome",
    "answer",
    "mean_local_accuracy",
    "personal_contexts",
    "prepare_sites",
    "site_names",
]


# Flower's Grid without a network: messages go straight to site agents in this process.


_message: Any = Message  # the constructor's overloads leave out the form that sets the metadata
SERVER_NODE = 1 << 32
"""Node id of the server: larger than any site's position."""


class InProcessGrid(Grid):
    """Answers every message when it is pulled, by the same translation and agent core as a deployed site.

    Args:
        agents: by site name; node ids are their positions, counted from 1.
    """

    def __init__(self, agents: Mapping[str, Agent]) -> None:
        self._agents = dict(enumerate(agents.values(), start=1))
        self._names = dict(enumerate(agents, start=1))
        self._pending: dict[str, Message] = {}
        self._run: Run | None = None

    @property
    def nodes(self) -> dict[str, int]:
        """Node id of each site."""
        return {name: node for node, name in self._names.items()}

    def set_run(self, run: Run) -> None:
        """Kept for Flower's interface."""
        self._run = run

    @property
    def run(self) -> Run:
        """Run information, if Flower set any."""
        if self._run is None:
            raise RuntimeError("The in-process grid has no Flower run.")
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message with a fresh id."""
        metadata = Metadata(
            run_id=0,
            message_id=uuid.uuid4().hex,
            src_node_id=SERVER_NODE,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=ttl or 43_200.0,
            message_type=message_type,
        )
        message: Message = _message(content=content, metadata=metadata)
        return message

    def get_node_ids(self) -> Iterable[int]:
        """All sites are always online."""
        return list(self._agents)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue the messages."""
        ids = []
        for message in messages:
            self._pending[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Have the sites answer, one after another."""
        return [self._answer(self._pending.pop(key)) for key in list(message_ids) if key in self._pending]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull at once."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        return answer(self._agents[message.metadata.dst_node_id], message)


def answer(agent: Agent, message: Message) -> Message:
    """A site's reply to a message of the server's; whatever its agent raises becomes its refusal."""
    request = read_request(message.content)
    reply = agent_answer(agent, KINDS[message.metadata.message_type], request.message)
    return Message(RecordDict({RECORD: ConfigRecord(reply_record(reply))}), reply_to=message)


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
        scores: noised counts of right answers after the last round, by site.
        personal: personal contexts [num_context, width] after each site's last round, by site.
        seconds: of the whole run.
    """

    checkpoint: Checkpoint
    final: dict[str, dict[str, float]]
    scores: dict[str, tuple[float, ...]]
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
        return SimulationOutcome(
            checkpoint, strategy.final_metrics, strategy.final_scores, personal, time.monotonic() - started
        )

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
