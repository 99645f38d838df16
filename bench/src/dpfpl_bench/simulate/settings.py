"""From the flags of ``dpfpl-bench run`` to an experiment."""

from dataclasses import dataclass, field

from dpfpl_bench.simulate.simulation import SimulatedSite
from dpfpl_client.models.backbone import Backbone
from dpfpl_common.experiment import (
    Experiment,
    ModelSettings,
    OptimizerSettings,
    PrivacySettings,
    PromptSettings,
    RoundSettings,
    TaskSettings,
    choose_mechanism,
)
from dpfpl_common.privacy_plan import resolve_noise

__all__ = ["BenchSettings", "build_experiment"]


@dataclass(frozen=True)
class BenchSettings:
    """What a simulated run needs beyond its data.

    Attributes:
        mechanism: empty, as ``trust``: what a file would get that leaves it out, but one that the model serves.
        epsilon: target for whoever receives a personalised prompt, under the unit ``site`` for another site; None = no
            noise, no privacy claim.
        num_context: 0 = as many vectors as the initial text has tokens.
    """

    name: str
    method: str
    rank: int
    mechanism: str
    trust: str
    epsilon: float | None
    clipping: str
    accounting: str
    delta: float
    rounds: int
    local_steps: int
    sample_rate: float
    clipping_norm: float
    learning_rate: float
    personal_learning_rate: float
    init_text: str
    num_context: int
    evaluate_every: int
    unit: str = "example"
    site_sample_rate: float = 1.0
    projection: str = "none"
    absent_weight: float = 0.0
    retention: float = 0.0
    contrast: float = 0.0
    personal_strength: float = 1.0
    task: TaskSettings = field(default_factory=TaskSettings)


def build_experiment(
    settings: BenchSettings,
    backbone: Backbone,
    model: str,
    class_names: tuple[str, ...],
    sites: list[SimulatedSite],
) -> Experiment:
    """The experiment, its noise multiplier calibrated.

    The nominal site size, public by definition, is the mean number of training images of the simulated sites.
    """
    sizes = [len(site.features.train) for site in sites]
    num_context = settings.num_context or backbone.num_tokens(settings.init_text) or 16
    mechanism, trust = _chosen(settings, backbone.mechanisms)
    experiment = Experiment(
        name=settings.name,
        classes=class_names,
        sites=tuple(site.name for site in sites),
        model=ModelSettings(width=backbone.width, id=model, fingerprint=backbone.fingerprint),
        prompt=PromptSettings(
            settings.method,
            num_context,
            settings.rank,
            settings.init_text,
            personal_strength=settings.personal_strength,
            absent_weight=settings.absent_weight,
            retention=settings.retention,
            contrast=settings.contrast,
        ),
        optimizer=OptimizerSettings("adam", settings.learning_rate, settings.personal_learning_rate),
        privacy=PrivacySettings(
            unit=settings.unit,
            mechanism=mechanism,
            trust=trust,
            target_epsilon=settings.epsilon,
            target_delta=settings.delta,
            noise_multiplier=0.0 if settings.epsilon is None else None,
            clipping_norm=settings.clipping_norm,
            projection=settings.projection,
            clipping=settings.clipping,
            accounting=settings.accounting,
            sample_rate=settings.sample_rate,
            site_sample_rate=settings.site_sample_rate,
            nominal_site_size=max(1, round(sum(sizes) / len(sizes))),
        ),
        task=settings.task,
        rounds=RoundSettings(
            number=settings.rounds, local_steps=settings.local_steps, evaluate_every=settings.evaluate_every
        ),
    )
    return resolve_noise(experiment)


def _chosen(settings: BenchSettings, served: tuple[str, ...]) -> tuple[str, str]:
    return choose_mechanism(
        {
            "privacy": {
                "mechanism": settings.mechanism or None,
                "trust": settings.trust or None,
                "unit": settings.unit,
                "clipping": settings.clipping,
                "accounting": settings.accounting,
            },
            "task": {"kind": settings.task.kind, "question": settings.task.question},
            "prompt": {"retention": settings.retention},
        },
        served,
    )
