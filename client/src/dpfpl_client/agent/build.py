"""Builds a site's agent from its site.toml."""

from dataclasses import dataclass
from pathlib import Path

from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.endpoint import Agent
from dpfpl_client.agent.feature_cache import FeatureCache, Progress, site_features
from dpfpl_client.agent.ledger import Ledger
from dpfpl_client.agent.locks import Locks, StateLock
from dpfpl_client.agent.policy import load_policy
from dpfpl_client.agent.registry import Registry
from dpfpl_client.agent.signing import SigningAgent, load_signing_key
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.data import SiteData, list_classes, load_site_data
from dpfpl_client.learning.backbone import ClipBackbone, load_backbone
from dpfpl_client.learning.randomness import RandomnessSource, SeededRandomness, SystemRandomness
from dpfpl_client.site_settings import SiteSettings
from dpfpl_common.errors import StateError

__all__ = ["BuiltAgent", "build_agent"]


@dataclass(frozen=True)
class BuiltAgent:
    """An agent ready to serve, and what it was built from; ``endpoint`` is the agent with its signature."""

    agent: SiteAgent
    endpoint: Agent
    backbone: ClipBackbone
    data: SiteData
    class_names: tuple[str, ...]
    lock: Locks


def build_agent(settings: SiteSettings, progress: Progress | None = None) -> BuiltAgent:
    """Load policy, data and model, compute missing image features, open the ledger.

    Raises:
        DpfplError: anything that is wrong with policy, data, model or state; then nothing is served.
    """
    policy = load_policy(settings.path(settings.policy))
    key_file = settings.path(settings.agent.key)
    key = load_signing_key(key_file) if settings.server.address or key_file.exists() else None  # no server, no need
    state = settings.state_folder
    lock = Locks(StateLock(state))
    try:
        store = DiskStore(state)
        registry = Registry(settings.registry_folder)
        ledger = _open_ledger(state / "ledger.sqlite", store, registry)
        lock.add(registry.hold(ledger.identity))
        class_names = list_classes(settings.data)
        data = load_site_data(settings.data, class_names, index_path=state / "cache" / "images.json")
        backbone = load_backbone(settings.model, offline=settings.offline)
        features = site_features(FeatureCache(state / "cache", backbone), data, class_names, progress)
    except BaseException:
        lock.release()
        raise
    agent = SiteAgent(settings.name, backbone, features, policy, ledger, store, randomness_of(settings))
    return BuiltAgent(agent, agent if key is None else SigningAgent(agent, key), backbone, data, class_names, lock)


def _open_ledger(path: Path, store: DiskStore, registry: Registry) -> Ledger:
    """Open the ledger, or begin one where nothing was ever released.

    Raises:
        StateError: there are releases but no ledger: what the data have paid is unknown.
    """
    if not path.exists() and any(store.rounds(name) for name in store.experiments()):
        raise StateError(
            code="LEDGER_MISSING",
            message=f"{path.parent} holds releases, but not the privacy ledger that charged them.",
            advice="Restore ledger.sqlite from a backup; without it nothing may be released.",
        )
    return Ledger(path, registry)


def randomness_of(settings: SiteSettings) -> RandomnessSource:
    """Real randomness, unless site.toml asks for a simulation on built-in public data."""
    return SeededRandomness(settings.simulation.seed) if settings.simulation is not None else SystemRandomness()
