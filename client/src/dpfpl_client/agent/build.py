"""Builds a site's agent from its site.toml."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from dpfpl_client.agent.audit import AUDIT_FILE, AuditLog
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.endpoint import Agent
from dpfpl_client.agent.features import FeatureCache, Progress, site_features
from dpfpl_client.agent.keys import SigningAgent, aggregation_keys, load_signing_key
from dpfpl_client.agent.ledger.anchor import Locks, Registry, StateLock
from dpfpl_client.agent.ledger.dataset import open_ledger
from dpfpl_client.agent.policy_file import PolicyFile, load_policy
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.data import DataProblem, DataSettings, ImageRecord, SiteData, list_classes, load_site_data
from dpfpl_client.learning.step import RandomnessSource, SeededRandomness, SystemRandomness
from dpfpl_client.models.backbone import Backbone
from dpfpl_client.models.loader import load_computing
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.errors import ConfigError, DataError, ModelError
from dpfpl_common.policy import EXACT_METRICS, Policy
from dpfpl_common.privacy.accounting import load_library

__all__ = ["BuiltAgent", "build_agent", "check_delta", "check_public", "without_unusable_words"]


# Questions and answers whose words a model cannot be told are left out when the agent starts, not found in a round.


def without_unusable_words(data: SiteData, backbone: Backbone) -> SiteData:
    """The data without examples whose question or answer the model refuses, and a warning for each.

    They stay registered and are never trained on. Meant for questions: class names are the experiment's business.

    Raises:
        DataError: SPECIAL_TOKEN, no training example is left.
    """
    problems: list[DataProblem] = []

    def usable(records: Sequence[ImageRecord]) -> tuple[ImageRecord, ...]:
        return tuple(record for record in records if _usable(record, backbone, problems))

    kept = dataclasses.replace(
        data, train=usable(data.train), test=usable(data.test), neighbour_test=usable(data.neighbour_test)
    )
    if data.train and not kept.train:
        raise DataError(
            code="SPECIAL_TOKEN",
            message=f"No training example is left: {problems[0].message}",
            advice="Do not use the model's own control tokens in questions and answers.",
        )
    return dataclasses.replace(kept, problems=(*data.problems, *problems))


def _usable(record: ImageRecord, backbone: Backbone, problems: list[DataProblem]) -> bool:
    try:
        backbone.check_words(record.question, record.label)
    except ModelError as error:
        message = f"The example {record.key!r} is left out. {error.message} {error.advice}"
        problems.append(DataProblem(error.code, message))
        return False
    return True


@dataclass(frozen=True)
class BuiltAgent:
    """An agent ready to serve, and what it was built from.

    ``endpoint`` is the agent with its signature; ``loosened`` names the rules that policy.toml makes looser than what
    was accepted, where the stricter old ones hold.
    """

    agent: SiteAgent
    endpoint: Agent
    backbone: Backbone
    data: SiteData
    class_names: tuple[str, ...]
    lock: Locks
    loosened: list[str]


def build_agent(settings: SiteSettings, progress: Progress | None = None) -> BuiltAgent:
    """Load policy, data and model, compute missing image features, open the ledger.

    Raises:
        DpfplError: anything that is wrong with policy, data, model or state; then nothing is served.
    """
    load_policy(settings.path(settings.policy))  # before anything is made
    load_library()  # no request waits for that second
    key_file = settings.path(settings.agent.key)
    key = load_signing_key(key_file) if settings.server.address or key_file.exists() else None  # no server, no need
    aggregation = aggregation_keys(settings)
    aggregation.pinned()  # a mistake in peers.toml is said now, not in the first sum
    state = settings.state_folder
    lock = Locks(StateLock(state))
    try:
        audit = AuditLog(state / AUDIT_FILE)
        rules = PolicyFile(settings.path(settings.policy), state, audit)
        policy = rules.current()
        check_public(policy, settings.data)
        class_names = list_classes(settings.data)
        data = load_site_data(settings.data, class_names, index_path=state / "cache" / "images.json")
        check_delta(policy, data)
        registry = Registry(settings.registry_folder)
        ledger, problems = open_ledger(state, registry, data, audit)
        data = dataclasses.replace(data, problems=(*data.problems, *problems))
        lock.add(registry.hold(ledger.identity))
        backbone = load_computing(settings.model, settings.compute, offline=settings.offline)
        if not class_names:
            data = without_unusable_words(data, backbone)
        features = site_features(FeatureCache(state / "cache", backbone), data, class_names, progress)
    except BaseException:
        lock.release()
        raise
    agent = SiteAgent(
        settings.name,
        backbone,
        features,
        rules,
        ledger,
        DiskStore(state),
        randomness_of(settings),
        public=settings.data.is_public,
        audit=audit,
        aggregation=aggregation,
    )
    audit.write("agent_started", ledger=ledger.identity, record=ledger.records, loosened=rules.pending())
    return BuiltAgent(
        agent, agent if key is None else SigningAgent(agent, key), backbone, data, class_names, lock, rules.pending()
    )


def check_public(policy: Policy, data: DataSettings) -> None:
    """Refuse what is sound on public data alone: exact accuracies, and sites that are dealt their examples.

    Raises:
        ConfigError: DATA_NOT_PUBLIC.
    """
    what = f"policy.toml metrics is {policy.metrics}" if policy.metrics in EXACT_METRICS else ""
    if data.partition != "none":
        what = f"[data] partition is {data.partition}"
    if what and not data.is_public:
        raise ConfigError(
            code="DATA_NOT_PUBLIC",
            message=f"{what}, which tells of single examples, and the data are not declared public.",
            advice='Set metrics = "noised" and partition = "none"; or, if everybody may know these images, '
            "[data] public = true in site.toml.",
        )


def check_delta(policy: Policy, data: SiteData) -> None:
    """Refuse a delta with which a mechanism could publish one of the images and still keep its promise.

    Raises:
        ConfigError: DELTA_TOO_LARGE.
    """
    if policy.delta * len(data.train) >= 1:
        raise ConfigError(
            code="DELTA_TOO_LARGE",
            message=f"policy.toml delta is {policy.delta:g}, which is not below 1 / {len(data.train)} training images.",
            advice="Set delta well below that.",
        )


def randomness_of(settings: SiteSettings) -> RandomnessSource:
    """Real randomness, unless site.toml asks for a simulation on built-in public data."""
    return SeededRandomness(settings.simulation.seed) if settings.simulation is not None else SystemRandomness()
