"""What a simulated run is: experiment.toml's tables, how the data are dealt out, and the experiment made of both."""

import dataclasses
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from dpfpl_bench.simulation.in_process import SimulatedSite
from dpfpl_client.data import DataSettings
from dpfpl_client.data.settings import Alpha, Partition
from dpfpl_client.models.backbone import Backbone
from dpfpl_common.config import build, settings, to_table
from dpfpl_common.experiment import (
    AggregationSettings,
    Experiment,
    GradientSettings,
    ModelSettings,
    OptimizerSettings,
    PrivacySettings,
    PromptSettings,
    RoundSettings,
    TaskSettings,
    choose_mechanism,
)
from dpfpl_common.privacy_plan import resolve_noise

__all__ = ["RANDOM_CONTEXT", "RunPrivacy", "RunPrompt", "RunSettings", "build_experiment"]

RANDOM_CONTEXT = 16
"""Context vectors where the initial text is empty and none are asked for."""


@settings
class RunPrompt(PromptSettings):
    """[prompt] of a run; ``num_context`` 0 stands for as many vectors as the initial text has tokens."""

    num_context: Annotated[int, Field(ge=0, le=1024)] = 0


@settings
class RunPrivacy(PrivacySettings):
    """[privacy] of a run; ``nominal_site_size`` 0 stands for the mean number of training images of its sites."""

    nominal_site_size: Annotated[int, Field(ge=0, le=10**9)] = 0


@settings
class RunSettings:
    """What a run and a sweep share.

    Attributes:
        model: embedded, embedded-vlm, a folder or a hub id.
        sites: how many.
        partition: how the images are dealt out; ``domain-folders``: one site for each folder of a folder of domains.
        alpha: concentration of the Dirichlet partition.
        floors: ``all`` also trains each site alone and all data in one place, ``alone`` only each site alone under the
            same promise, ``none`` neither.
        prompt, optimizer, privacy, rounds, gradients, aggregation, task: as in experiment.toml.
    """

    model: str = "embedded"
    sites: Annotated[int, Field(ge=1)] = 4
    partition: Literal[Partition, "domain-folders"] = "pathological"
    alpha: Alpha = DataSettings.alpha
    floors: Literal["all", "alone", "none"] = "all"
    prompt: RunPrompt = field(default_factory=RunPrompt)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    privacy: RunPrivacy = field(default_factory=RunPrivacy)
    rounds: RoundSettings = field(default_factory=RoundSettings)
    gradients: GradientSettings = field(default_factory=GradientSettings)
    aggregation: AggregationSettings = field(default_factory=AggregationSettings)
    task: TaskSettings = field(default_factory=TaskSettings)


def build_experiment(
    name: str,
    run: RunSettings,
    backbone: Backbone,
    class_names: tuple[str, ...],
    sites: Sequence[SimulatedSite],
) -> Experiment:
    """The experiment, its noise multiplier calibrated."""
    sizes = [len(site.features.train) for site in sites]
    size = run.privacy.nominal_site_size or max(1, round(sum(sizes) / len(sizes)))
    length = run.prompt.num_context or backbone.num_tokens(run.prompt.init_text) or RANDOM_CONTEXT
    privacy = build(PrivacySettings, to_table(run.privacy) | {"nominal_site_size": size}, "")
    prompt = build(PromptSettings, to_table(run.prompt) | {"num_context": length}, "")
    chosen = choose_mechanism(privacy, prompt, run.task, backbone.mechanisms)
    privacy = dataclasses.replace(privacy, mechanism=chosen.mechanism, trust=chosen.trust)
    return resolve_noise(
        Experiment(
            name=name,
            classes=class_names,
            sites=tuple(site.name for site in sites),
            model=ModelSettings(width=backbone.width, id=run.model, fingerprint=backbone.fingerprint),
            prompt=prompt,
            optimizer=run.optimizer,
            privacy=privacy,
            rounds=run.rounds,
            gradients=run.gradients,
            aggregation=run.aggregation,
            task=run.task,
        )
    )
