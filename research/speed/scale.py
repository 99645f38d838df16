"""``python -m research scale``: what a round costs as the number of sites grows, with a real agent for every one.

Every site is the agent that is deployed, with its ledger, its store and its signature; the server is the strategy that
is deployed, with its checks and its checkpoint on disk. Only network and processes are left out. All sites run in this
process, one after another, so a round's seconds are everybody's work: ``server_s`` is what is left without the agents'.
Sites draw their images from the built-in digits, with repetition: a thousand sites of 60 have more than there are.
"""

import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dpfpl_bench.simulation.in_process import InProcessGrid, site_names
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.endpoint import Agent
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.agent.keys import SigningAgent
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.store import MemoryStore
from dpfpl_client.data import DataSettings, list_classes, load_pool
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.backbone import Backbone, LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.wire.payloads import EvaluateRequest, SiteReply, SumReply, SumRequest, TrainRequest
from dpfpl_server.federation.rounds import DPFPLStrategy
from dpfpl_server.runs.folder import RunFolder

__all__ = ["ScaleRequest", "markdown", "measure_scale"]


@dataclass(frozen=True)
class ScaleRequest:
    """What to measure.

    Attributes:
        counts: numbers of sites, smallest first: the memory is the largest so far.
        rounds: of each; the first one, in which agents build their learners, is told apart.
        images: training images of a site.
    """

    counts: tuple[int, ...] = (10, 100, 1000)
    rounds: int = 3
    images: int = 60


def measure_scale(request: ScaleRequest, on_step: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """One row a count: seconds of a round and of the server's part, bytes, memory, the run file's size."""
    settings = DataSettings(source="digits")
    classes = list_classes(settings)
    backbone = load_backbone("embedded")
    records = load_pool(settings, classes)[::3]  # enough for any draw
    features = FeatureCache(None, backbone).features(records)
    labels = np.array([classes.index(record.label) for record in records])
    train = np.array([record.split == "train" for record in records])
    pools = [(np.flatnonzero(chosen), request.images) for chosen in (train, ~train)]
    rows = []
    for count in sorted(request.counts):
        rng = np.random.default_rng(0)

        def draw(pool: tuple[Any, int], rng: np.random.Generator = rng) -> LabelledFeatures:
            import torch

            chosen = torch.from_numpy(rng.choice(pool[0], pool[1]))
            return LabelledFeatures(features[chosen], torch.from_numpy(labels)[chosen])

        sites = [SiteFeatures(draw(pools[0]), draw(pools[1]), draw(pools[1]), classes) for _ in range(count)]
        rows.append(_measure(request, backbone, sites))
        on_step(", ".join(f"{key} {value}" for key, value in rows[-1].items()))
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        "| sites | a round | of it the server's | first round | up | down | memory in all | run.sqlite a round |",
        "|---" * 8 + "|",
    ]
    lines += [
        f"| {row['sites']:,} | {row['round_s']:.2f} s | {row['server_s']:.2f} s | {row['first_round_s']:.1f} s "
        f"| {row['bytes_up'] / 1e6:.2f} MB | {row['bytes_down'] / 1e6:.2f} MB | {row['memory_mib']:,.0f} MiB "
        f"| {row['file_bytes_a_round'] / 1e3:.0f} kB |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


class _Timed:
    """An agent whose time is added up in ``spent``."""

    def __init__(self, agent: Agent, spent: list[float]) -> None:
        self._agent = agent
        self._spent = spent

    def train(self, request: TrainRequest) -> SiteReply:
        """See ``Agent``."""
        began = time.perf_counter()
        try:
            return self._agent.train(request)
        finally:
            self._spent.append(time.perf_counter() - began)

    def evaluate(self, request: EvaluateRequest) -> SiteReply:
        """See ``Agent``."""
        return self._agent.evaluate(request)

    def add_up(self, request: SumRequest) -> SumReply:
        """See ``Agent``."""
        return self._agent.add_up(request)


def _measure(request: ScaleRequest, backbone: Backbone, sites: list[SiteFeatures]) -> dict[str, Any]:
    names = tuple(site_names(len(sites)))
    experiment = Experiment(
        name="scale",
        classes=sites[0].classes,
        sites=names,
        model=ModelSettings(width=backbone.width, fingerprint=backbone.fingerprint),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0, nominal_site_size=request.images),
        rounds=RoundSettings(number=request.rounds, deadline=86_400.0, evaluate_every=request.rounds),
    )
    spent: list[float] = []
    agents: dict[str, Agent] = {}
    keys = {}
    randomness = SeededRandomness(0)
    for name, features in zip(names, sites, strict=True):
        key = Ed25519PrivateKey.generate()
        keys[name] = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        agent = SiteAgent(name, backbone, features, None, Ledger(None), MemoryStore(), randomness)
        agents[name] = _Timed(SigningAgent(agent, key), spent)
    grid = InProcessGrid(agents)
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place) / "run")
        folder.begin(experiment)
        ends, computed = [time.perf_counter()], [0.0]

        def completed(checkpoint: Any) -> None:
            folder.save_checkpoint(checkpoint)
            ends.append(time.perf_counter())
            computed.append(sum(spent))

        strategy = DPFPLStrategy(experiment, grid.nodes, keys=keys, on_checkpoint=completed, on_status=folder.add_event)
        last = strategy.run(grid).history[-1]
        folder.store.close()
        size = sum(file.stat().st_size for file in folder.path.glob("run.sqlite*"))
    assert len(last["sites"]) == len(sites), last["dropped"]
    rounds = np.diff(ends)
    servers = rounds - np.diff(computed)
    later = slice(1, None) if request.rounds > 1 else slice(None)
    return {
        "sites": len(sites),
        "round_s": round(float(np.median(rounds[later])), 3),
        "server_s": round(float(np.median(servers[later])), 3),
        "first_round_s": round(float(rounds[0]), 3),
        "bytes_up": last["bytes_up"],
        "bytes_down": last["bytes_down"],
        "memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "file_bytes_a_round": round(size / request.rounds),
    }
