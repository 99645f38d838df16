"""Builds a site's agent from its site.toml."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.feature_cache import FeatureCache, Progress, site_features
from dpfpl_client.agent.ledger import Ledger
from dpfpl_client.agent.policy import load_policy
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.data import SiteData, list_classes, load_site_data
from dpfpl_client.learning.backbone import ClipBackbone, load_backbone
from dpfpl_client.learning.randomness import RandomnessSource, SeededRandomness, SystemRandomness
from dpfpl_client.site_settings import SiteSettings
from dpfpl_common.errors import StateError

__all__ = ["BuiltAgent", "StateLock", "build_agent"]


class StateLock:
    """One agent per state folder: an flock, so that a killed agent leaves nothing to clean up."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._descriptor = os.open(folder / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise StateError(
                code="STATE_LOCKED",
                message=f"Another agent is already using {folder}.",
                advice="Stop it first, or give this site a state folder of its own.",
            ) from None

    def release(self) -> None:
        """Let another agent use the folder."""
        os.close(self._descriptor)


@dataclass(frozen=True)
class BuiltAgent:
    """An agent ready to serve, and what it was built from."""

    agent: SiteAgent
    backbone: ClipBackbone
    data: SiteData
    class_names: tuple[str, ...]
    lock: StateLock


def build_agent(settings: SiteSettings, progress: Progress | None = None) -> BuiltAgent:
    """Load policy, data and model, compute missing image features, open the ledger.

    Raises:
        DpfplError: anything that is wrong with policy, data, model or state; then nothing is served.
    """
    policy = load_policy(settings.path(settings.policy))
    state = settings.state_folder
    lock = StateLock(state)
    class_names = list_classes(settings.data)
    data = load_site_data(settings.data, class_names, index_path=state / "cache" / "images.json")
    backbone = load_backbone(settings.model, offline=settings.offline)
    features = site_features(FeatureCache(state / "cache", backbone), data, class_names, progress)
    agent = SiteAgent(
        settings.name,
        backbone,
        features,
        policy,
        Ledger(state / "ledger.sqlite"),
        DiskStore(state),
        randomness_of(settings),
    )
    return BuiltAgent(agent, backbone, data, class_names, lock)


def randomness_of(settings: SiteSettings) -> RandomnessSource:
    """Real randomness, unless site.toml asks for a simulation on built-in public data."""
    return SeededRandomness(settings.simulation.seed) if settings.simulation is not None else SystemRandomness()
