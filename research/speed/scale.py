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
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from dpfpl_common.wire.payloads import SiteReply, TrainRequest
from dpfpl_server.federation.rounds import DPFPLStrategy
from dpfpl_server.runs.folder import RunFolder
from research.writing import markdown

__all__ = ["measure_scale", "scale_table"]

IMAGES = 60
"""Training images of a site."""


def measure_scale(
    counts: Sequence[int], rounds: int, on_step: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """One row a count: seconds of a round and of the server's part, bytes, memory, the run file's size.

    Args:
        counts: numbers of sites, measured smallest first: the memory is the largest so far.
        rounds: of each; the first one, in which agents build their learners, is told apart.
        on_step: told each row.
    """
    settings = DataSettings(source="digits")
    classes = list_classes(settings)
    backbone = load_backbone("embedded")
    records = load_pool(settings, classes)[::3]  # enough for any draw
    features = FeatureCache(None, backbone).features(records)
    labels = torch.tensor([classes.index(record.label) for record in records])
    of_split = {split: np.flatnonzero([record.split == split for record in records]) for split in ("train", "test")}
    rows = []
    for count in sorted(counts):
        rng = np.random.default_rng(0)

        def draw(split: str, rng: np.random.Generator = rng) -> LabelledFeatures:
            chosen = torch.from_numpy(rng.choice(of_split[split], IMAGES))
            return LabelledFeatures(features[chosen], labels[chosen])

        sites = [SiteFeatures(draw("train"), draw("test"), draw("test"), classes) for _ in range(count)]
        rows.append(_measured(rounds, backbone, sites))
        on_step(", ".join(f"{key} {value}" for key, value in rows[-1].items()))
    return rows


def scale_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    columns = {
        "sites": "{sites:,}",
        "a round": "{round_s:.2f} s",
        "of it the server's": "{server_s:.2f} s",
        "first round": "{first_round_s:.1f} s",
        "up": "{up:.2f} MB",
        "down": "{down:.2f} MB",
        "memory in all": "{memory_mib:,.0f} MiB",
        "run.sqlite a round": "{kilobytes:.0f} kB",
    }
    sizes = (
        {"up": row["bytes_up"] / 1e6, "down": row["bytes_down"] / 1e6, "kilobytes": row["file_bytes_a_round"] / 1e3}
        for row in rows
    )
    return markdown(columns, [{**row, **size} for row, size in zip(rows, sizes, strict=True)])


class _Timed(SigningAgent):
    """An agent whose time in training is added up in ``spent``."""

    def __init__(self, agent: Agent, key: Ed25519PrivateKey, spent: list[float]) -> None:
        super().__init__(agent, key)
        self._spent = spent

    def train(self, request: TrainRequest) -> SiteReply:
        began = time.perf_counter()
        try:
            return super().train(request)
        finally:
            self._spent.append(time.perf_counter() - began)


def _measured(number: int, backbone: Backbone, sites: list[SiteFeatures]) -> dict[str, Any]:
    names = tuple(site_names(len(sites)))
    experiment = Experiment(
        name="scale",
        classes=sites[0].classes,
        sites=names,
        model=ModelSettings(width=backbone.width, fingerprint=backbone.fingerprint),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0, nominal_site_size=IMAGES),
        rounds=RoundSettings(number=number, deadline=86_400.0, evaluate_every=number),
    )
    spent: list[float] = []
    agents: dict[str, Agent] = {}
    keys = {}
    randomness = SeededRandomness(0)
    for name, features in zip(names, sites, strict=True):
        key = Ed25519PrivateKey.generate()
        keys[name] = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        agent = SiteAgent(name, backbone, features, None, Ledger(None), MemoryStore(), randomness)
        agents[name] = _Timed(agent, key, spent)
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
    later = slice(1, None) if number > 1 else slice(None)
    return {
        "sites": len(sites),
        "round_s": round(float(np.median(rounds[later])), 3),
        "server_s": round(float(np.median(servers[later])), 3),
        "first_round_s": round(float(rounds[0]), 3),
        "bytes_up": last["bytes_up"],
        "bytes_down": last["bytes_down"],
        "memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "file_bytes_a_round": round(size / number),
    }
