"""experiment.toml: what stands there, and what is taken where it says nothing of mechanism and trust."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpfpl_common.config import from_table, read_toml, shown, to_table
from dpfpl_common.errors import ConfigError
from dpfpl_common.privacy.noise import grid_allows

__all__ = [
    "LONGEST_QUESTION",
    "MECHANISMS",
    "METHODS",
    "PRECISIONS",
    "PROJECTIONS",
    "RULES",
    "TASKS",
    "TRUST_MODES",
    "UNITS",
    "AggregationSettings",
    "Experiment",
    "GradientSettings",
    "ModelSettings",
    "OptimizerSettings",
    "PrivacySettings",
    "PromptSettings",
    "RoundSettings",
    "TaskSettings",
    "check_prompt",
    "check_task",
    "choice",
    "experiment_from_table",
    "floats_as_floats",
    "impossible",
    "load_experiment",
    "mechanism_for",
    "parse_experiment",
    "refuse_unsound",
    "unprintable",
    "within",
]


# Checks of an experiment's values; what fails them is an error that names key, value and expectation.


def choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not one of these."""
    if value not in allowed:
        raise impossible(key, value, "one of " + ", ".join(allowed))


def within(key: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside of an interval; NaN is outside."""
    if not low <= value <= high:
        raise impossible(key, value, f"a number from {low:g} to {high:g}")


def impossible(key: str, value: object, expected: str) -> ConfigError:
    """The error for a value that cannot be."""
    return ConfigError(
        code="IMPOSSIBLE_VALUE",
        message=f"The experiment's {key} is {shown(value)}, expected {expected}.",
        advice="Correct experiment.toml.",
    )


def floats_as_floats(settings: Any) -> None:
    """A whole number given for a float is the same setting, so it must give the same digest."""
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if f.type in (float, float | None) and isinstance(value, int) and not isinstance(value, bool):
            try:
                object.__setattr__(settings, f.name, float(value))
            except OverflowError:
                raise impossible(f.name, value, "a number") from None


# How exactly a site computes the gradients that it then clips.


PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class GradientSettings:
    """How exactly one example's gradient is computed; it is clipped afterwards, so the sensitivity is the same.

    Attributes:
        precision: ``float32``, or ``bfloat16`` to round the factors of large products on the way back.
        classes: how many classes of an example's loss count towards its gradient: its label and those that the model
            confuses it with most, so at least 2; 0 for all.
    """

    precision: str = "float32"
    classes: int = 0


# What is asked of the model: a class for an image, an answer to a question about it, or a caption.


TASKS = ("classify", "vqa", "caption")
LONGEST_QUESTION = 1000

JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner: Persian words and composed emoji are written with them."""


@dataclass(frozen=True)
class TaskSettings:
    """What is asked of the model.

    Attributes:
        kind: ``classify``, one of the experiment's classes for an image; for generative models ``vqa``, an answer in
            words to a question on an image, or ``caption``, words about an image to the one question below or to none.
            Of the latter two the list of classes is empty: what sites ask and answer is their own.
        question: of ``classify`` with a generative model: asked of every image; empty: a plain one. Of ``caption``:
            asked of every image whose line asks nothing itself; empty: nothing is asked.
        max_answer_tokens: of ``vqa`` and ``caption``: longer answers are cut off when the prompt is tested.
    """

    kind: str = "classify"
    question: str = ""
    max_answer_tokens: int = 8

    @property
    def in_words(self) -> bool:
        """Whether answers are a site's own words, not one of the experiment's classes."""
        return self.kind != "classify"


def check_task(task: TaskSettings, classes: Sequence[str]) -> None:
    """Refuse impossible values, and classes where questions are asked.

    Raises:
        ConfigError: naming the key, the value and what was expected.
    """
    choice("task.kind", task.kind, TASKS)
    within("task.max_answer_tokens", task.max_answer_tokens, 1, 1024)
    if len(task.question) > LONGEST_QUESTION or unprintable(task.question):
        raise impossible("task.question", task.question, f"one printable line of at most {LONGEST_QUESTION} characters")
    if task.in_words and classes:
        expected = f"an empty list: with the task {task.kind}, answers are the sites' own words"
        raise impossible("classes", classes, expected)


def unprintable(text: str) -> str:
    """The first character that belongs in no line of text, of a question or an answer; empty if all do."""
    return next((char for char in text if not char.isprintable() and char not in JOINERS), "")


# Checks of an experiment's [prompt]: ranges, and options that say nothing to the mechanism or method that runs.


def check_prompt(experiment: "Experiment") -> None:
    """Refuse what cannot be, or would silently do nothing.

    Raises:
        ConfigError: names key, value and expectation.
    """
    prompt, privacy = experiment.prompt, experiment.privacy
    within("prompt.num_context", prompt.num_context, 1, 1024)
    within("prompt.rank", prompt.rank, 1, min(experiment.context_shape))
    within("prompt.personal_strength", prompt.personal_strength, 0.0, 10.0)
    within("prompt.absent_weight", prompt.absent_weight, 0.0, 0.95)
    within("prompt.retention", prompt.retention, 0.0, 100.0)
    within("prompt.contrast", prompt.contrast, 0.0, 100.0)
    noised_steps = (privacy.mechanism, privacy.unit, experiment.task.kind) == ("per_step", "example", "classify")
    if prompt.absent_weight and privacy.mechanism != "one_shot":
        raise impossible(
            "prompt.absent_weight",
            prompt.absent_weight,
            "0: which classes a site lacks is known without a further release under the mechanism one_shot only",
        )
    if prompt.retention and not noised_steps:
        raise impossible(
            "prompt.retention",
            prompt.retention,
            "0: it goes with the mechanism per_step, the unit example and the task classify",
        )
    if prompt.contrast and not (noised_steps and prompt.method == "fedpgp"):
        raise impossible(
            "prompt.contrast",
            prompt.contrast,
            "0: it is a term of fedpgp, under the mechanism per_step, the unit example and the task classify",
        )


# Combinations of privacy settings that no analysis covers, and why: they are refused before anything runs.


def refuse_unsound(p: "PrivacySettings", rule: str) -> None:
    """Refuse combinations without a sound analysis, with the reason."""
    reason = _unsound_site_unit(p)
    if reason:
        pass
    elif p.mechanism == "one_shot" and p.trust != "local":
        reason = (
            f"the mechanism one_shot cannot run under {p.trust} trust: what a site sends is trained on its own noised "
            "class sums, which carry their whole noise already; shares of noise have no meaning there"
        )
    elif p.mechanism == "one_shot" and p.accounting == "paper":
        reason = "the paper's formula is about noise at every step; one_shot adds noise once"
    elif p.projection != "none" and p.mechanism != "one_shot":
        reason = (
            f"the projection {p.projection} is one of class sums of image features, which {p.mechanism} does not "
            "release; its gradients are projected by the method's own directions"
        )
    elif p.clipping == "separate" and (p.mechanism == "one_shot" or p.trust == "local"):
        reason = "separate clipping needs several blocks; here only one is released"
    elif rule != "mean" and p.trust != "local":
        reason = (
            f"{rule} is no function of the sum of all messages, so the noise that the sum carries under {p.trust} "
            "trust does not protect it; each message must carry the whole noise"
        )
    if reason:
        raise ConfigError(
            code="NO_SOUND_ANALYSIS",
            message=f"Refused: {reason}.",
            advice="For one_shot, median, trimmed_mean and krum set trust to local; otherwise use clipping joint, "
            "accounting honest and projection none. The unit site needs the mechanism per_step and trust distributed "
            "or, to sample sites, central.",
        )


def _unsound_site_unit(p: "PrivacySettings") -> str:
    """Why the settings around the unit ``site`` have no sound analysis; empty if they have one."""
    if p.unit != "site":
        if p.site_sample_rate < 1:
            return "sampling sites is analysed for the unit site only"
        return ""
    if p.mechanism != "per_step":
        return "one_shot bounds what one image adds to the class sums, not what a whole site adds"
    if p.trust == "local":
        return "under local trust the personal prompt learns from noised steps; a whole update is noised once a round"
    if p.clipping != "joint":
        return "under the unit site one vector is clipped, the whole update; there are no separate blocks"
    if p.accounting != "honest":
        return "the paper's formula is about single examples, not about whole sites"
    if p.site_sample_rate < 1 and p.trust != "central":
        return (
            "under distributed trust the sampled sites would add a random number of noise shares, which may be fewer "
            "than the analysis counts on"
        )
    return ""


# What one federated training is: the operator's experiment.toml as frozen values.


TRUST_MODES = ("distributed", "central", "local")
MECHANISMS = ("per_step", "one_shot")
PROJECTIONS = ("none", "text")
CLIPPINGS = ("joint", "separate")
ACCOUNTINGS = ("honest", "paper")
UNITS = ("example", "site")
METHODS = ("dpfpl", "dplora", "fedotp", "fedpgp", "promptfl")
SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
OPTIMIZERS = ("adam", "sgd")
RULES = ("mean", "median", "trimmed_mean", "krum")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True)
class ModelSettings:
    """The frozen vision-language model every site must have.

    Attributes:
        id: "embedded", a Hugging Face id or a folder; informative for the sites, whose own site.toml decides.
        width: width d of the text tower's token embeddings.
        fingerprint: hash of the model's files; sites with another model refuse. Empty: any model of that width.
    """

    width: int
    id: str = "embedded"
    fingerprint: str = ""


@dataclass(frozen=True)
class PromptSettings:
    """The learned prompt.

    Attributes:
        method: who learns what; see ``dpfpl_client.learning.methods``.
        num_context: number of context vectors before the class name.
        rank: rank k of the factors of the personal context.
        init_text: the context starts as this text's embeddings, repeated to the left if it has fewer tokens than
            num_context. Empty: start from zero vectors plus N(0, 0.02^2), as the paper.
        personal_strength: alpha; evaluated, used and exported is ``p_G + alpha p_L``. 1: as trained; 0: the shared
            prompt alone. Training is the same whatever it is.
        absent_weight: of ``one_shot``: at least this share of the loss keeps the classes of which nothing was found in
            the site's release where the plain text has them; 0: no more than what the noise may hide.
        retention: of ``per_step``: weight of a pull, made of public facts alone, that keeps all classes apart as the
            shared prompt has them while the personal part is trained; 1: as long as one example may pull; 0: none.
        contrast: of ``fedpgp`` under ``per_step``: weight of its contrastive term, likewise without images; 0: none.
        evidence: of ``one_shot``: the sites' noised class sums are pooled into class vectors, which are used where the
            sites' images vote for them (``dpfpl_common.evidence``); false: prompts alone, as in the paper.
        usual_mix: share of future images that a site expects from its usual mix of classes, from 0 to below 1; the rest
            may be of any class. Only with ``evidence``.
    """

    method: str = "dpfpl"
    num_context: int = 4
    rank: int = 4
    init_text: str = "a photo of a"
    personal_strength: float = 1.0
    absent_weight: float = 0.0
    retention: float = 0.0
    contrast: float = 0.0
    evidence: bool = True
    usual_mix: float = 0.5


@dataclass(frozen=True)
class OptimizerSettings:
    """How released (already noised) gradients move the contexts; post-processing, so free of privacy cost."""

    name: str = "adam"
    global_learning_rate: float = 0.02
    personal_learning_rate: float = 0.02


@dataclass(frozen=True)
class PrivacySettings:
    """What is protected how.

    Attributes:
        unit: ``example``, one training example of one site, added or removed; ``site``, one site's whole data set.
        mechanism: ``per_step``, noise at every step; ``one_shot``, one noised sum of image features per class at the
            start, after which training is post-processing. A file that leaves it and ``trust`` out gets what
            ``dpfpl_common.experiment`` says.
        trust: who adds the noise of the shared gradient, see ``dpfpl_common.privacy_plan``.
        target_epsilon: calibrates ``noise_multiplier`` so that whoever receives a site's personalised prompt is held to
            this epsilon, under the unit ``site`` another site of the federation; absent if noise_multiplier is given.
        target_delta: delta of every epsilon reported.
        noise_multiplier: noise standard deviation over clipping norm, unitless; 0 = no noise, no privacy claim.
        clipping_norm: L2 bound C_G of one example's gradient towards the global context; under the unit ``site`` of the
            whole update of one round.
        factor_clipping_norm: L2 bound C_u = C_v of each personal block: its gradient towards a factor, under ``fedotp``
            towards the personal context; 0 = the same as clipping_norm.
        projection: of ``one_shot``'s class sums: ``none``, or ``text``, onto the public directions that the classes'
            text features take as the prompt moves, so that the noise of all others is left out.
        clipping: ``joint``, one factor for all blocks of an example; ``separate``, one for each block.
        accounting: ``honest``; ``paper`` computes target_epsilon's noise by the paper's formula, for reproductions.
        sample_rate: chance q that an example joins a step (Poisson).
        site_sample_rate: chance q_s that a site joins a round (Poisson); below 1 only under the unit ``site``.
        nominal_site_size: public stand-in for the number of training images of a site.
        tolerated_dropouts: D; with more sites missing a round is not aggregated.
        tolerated_colluders: K sites that may pool what they know against another; their noise shares do not count.
    """

    unit: str = "example"
    mechanism: str = "per_step"
    trust: str = "distributed"
    target_epsilon: float | None = None
    target_delta: float = 1e-5
    noise_multiplier: float | None = None
    clipping_norm: float = 0.1
    factor_clipping_norm: float = 0.0
    projection: str = "none"
    clipping: str = "joint"
    accounting: str = "honest"
    sample_rate: float = 0.5
    site_sample_rate: float = 1.0
    nominal_site_size: int = 300
    tolerated_dropouts: int = 0
    tolerated_colluders: int = 1

    @property
    def factor_norm(self) -> float:
        """C_u = C_v, with the default filled in."""
        return self.factor_clipping_norm or self.clipping_norm


@dataclass(frozen=True)
class RoundSettings:
    """How the federation proceeds.

    Attributes:
        number: rounds in all.
        local_steps: noised steps each site makes in one round.
        min_sites: fewer usable replies than this and the round is not aggregated; 0 = all sites less the drop-outs.
            Where sites are sampled there is no quorum, and it must stay 0.
        deadline: seconds after which a round closes.
        evaluate_every: sites evaluate their prompts every so many rounds (the first and last always).
    """

    number: int = 10
    local_steps: int = 4
    min_sites: int = 0
    deadline: float = 300.0
    evaluate_every: int = 1


@dataclass(frozen=True)
class AggregationSettings:
    """How the sites' updates become one; every site counts the same, whatever it says of itself.

    Attributes:
        rule: ``mean``, the paper's; ``median`` or ``trimmed_mean``, coordinate by coordinate; or ``krum``, the one
            update that is nearest to its neighbours. The last three bear some hostile sites but need ``local`` trust:
            only there is each message noised enough by itself.
        trim: how many hostile sites ``krum`` bears, and ``trimmed_mean``, which cuts off so many values at each end of
            every coordinate.
        largest_site: the most training images a site may have, in nominal sizes; larger updates are dropped.
    """

    rule: str = "mean"
    trim: int = 1
    largest_site: float = 100.0


@dataclass(frozen=True)
class Experiment:
    """One federated training with a name and a configuration."""

    name: str
    classes: tuple[str, ...]
    sites: tuple[str, ...]
    model: ModelSettings
    prompt: PromptSettings = field(default_factory=PromptSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    rounds: RoundSettings = field(default_factory=RoundSettings)
    gradients: GradientSettings = field(default_factory=GradientSettings)
    aggregation: AggregationSettings = field(default_factory=AggregationSettings)
    task: TaskSettings = field(default_factory=TaskSettings)

    def __post_init__(self) -> None:
        for part in (self.prompt, self.optimizer, self.privacy, self.rounds, self.aggregation):
            floats_as_floats(part)
        _check(self)

    @property
    def context_shape(self) -> tuple[int, int]:
        """(num_context, width) of every context array."""
        return (self.prompt.num_context, self.model.width)

    @property
    def min_sites(self) -> int:
        """Usable replies without which a round is not aggregated; at least sites less tolerated drop-outs.

        None where sites are sampled: there the server adds the whole noise, whoever replies, and divides by a constant.
        """
        if self.privacy.site_sample_rate < 1:
            return 0
        return self.rounds.min_sites or len(self.sites) - self.privacy.tolerated_dropouts

    @property
    def uses_evidence(self) -> bool:
        """Whether the sites' noised class sums leave them and are pooled; see ``dpfpl_common.evidence``."""
        return self.prompt.evidence and self.privacy.mechanism == "one_shot"

    @property
    def total_steps(self) -> int:
        """Noised steps over the whole experiment, the accountant's composition length."""
        return self.rounds.number * self.rounds.local_steps

    @property
    def is_private(self) -> bool:
        """Whether any noise is added."""
        return self.privacy.noise_multiplier != 0.0

    def to_json(self) -> str:
        """Canonical JSON: the same experiment always gives the same bytes.

        Settings that came with a later release are left out at their defaults, so that experiments keep their digests.
        """
        table = to_table(self)
        if self.aggregation == AggregationSettings():
            del table["aggregation"]
        if self.gradients == GradientSettings():
            del table["gradients"]
        for later in ("personal_strength", "absent_weight", "retention", "contrast"):
            if getattr(self.prompt, later) == getattr(PromptSettings, later):
                del table["prompt"][later]
        if self.task == TaskSettings():
            del table["task"]
        if self.privacy.projection == PrivacySettings.projection:
            del table["privacy"]["projection"]
        return json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    def digest(self) -> str:
        """sha256 of the canonical JSON, the identity that sites approve."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def with_noise_multiplier(self, noise_multiplier: float) -> "Experiment":
        """The same experiment with its noise level filled in."""
        return dataclasses.replace(self, privacy=dataclasses.replace(self.privacy, noise_multiplier=noise_multiplier))


def parse_experiment(text: str) -> Experiment:
    """The inverse of ``Experiment.to_json``; for what arrives in a message."""
    try:
        table: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(code="BAD_EXPERIMENT", message="The experiment is not valid JSON.") from None
    return from_table(Experiment, table, "experiment")


def _check(e: Experiment) -> None:
    if not NAME.fullmatch(e.name):
        raise impossible("name", e.name, "1-63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit")
    check_task(e.task, e.classes)
    for key, names in (("sites", e.sites),) if e.task.in_words else (("classes", e.classes), ("sites", e.sites)):
        if not names or len(set(names)) != len(names) or not all(_is_name(n) for n in names):
            raise impossible(key, names, "a list of distinct, printable, non-empty names")
    if len(e.classes) < 2 and not e.task.in_words:
        raise impossible("classes", e.classes, "at least two class names")
    for site in e.sites:
        if not SITE_NAME.fullmatch(site):
            raise impossible("sites", site, "names of 1-63 of a-z, 0-9 and '-'")
    p, r, o = e.privacy, e.rounds, e.optimizer
    within("model.width", e.model.width, 1, 65536)
    choice("prompt.method", e.prompt.method, METHODS)
    check_prompt(e)
    choice("optimizer.name", o.name, OPTIMIZERS)
    within("optimizer.global_learning_rate", o.global_learning_rate, 0.0, 1e6)
    within("optimizer.personal_learning_rate", o.personal_learning_rate, 0.0, 1e6)
    choice("gradients.precision", e.gradients.precision, PRECISIONS)
    within("gradients.classes", e.gradients.classes, 0, 10**6)
    if e.gradients.classes == 1:
        raise impossible("gradients.classes", 1, "the label and a rival, so at least 2; or 0 for all classes")
    choice("privacy.unit", p.unit, UNITS)
    choice("privacy.mechanism", p.mechanism, MECHANISMS)
    choice("privacy.trust", p.trust, TRUST_MODES)
    choice("privacy.projection", p.projection, PROJECTIONS)
    choice("privacy.clipping", p.clipping, CLIPPINGS)
    choice("privacy.accounting", p.accounting, ACCOUNTINGS)
    choice("aggregation.rule", e.aggregation.rule, RULES)
    # A round with just the quorum must leave something; Krum's guarantee needs two more than 2 * trim + 1 updates.
    most = {"trimmed_mean": (e.min_sites - 1) // 2, "krum": (e.min_sites - 3) // 2}
    within("aggregation.trim", e.aggregation.trim, 1, most.get(e.aggregation.rule, 10**6))
    within("aggregation.largest_site", e.aggregation.largest_site, 1.0, 1e6)
    refuse_unsound(p, e.aggregation.rule)
    if (p.target_epsilon is None) and (p.noise_multiplier is None):
        raise impossible("privacy", "neither", "target_epsilon or noise_multiplier (0 for no noise)")
    if p.target_epsilon is not None:
        within("privacy.target_epsilon", p.target_epsilon, 1e-3, 1e3)
    if p.noise_multiplier is not None:
        within("privacy.noise_multiplier", p.noise_multiplier, 0.0, 1e6)
    # All blocks of a step together have at most three times the context's coordinates, whatever the method and rank.
    if p.noise_multiplier and not grid_allows(p.noise_multiplier, 3 * math.prod(e.context_shape)):
        raise impossible("privacy.noise_multiplier", p.noise_multiplier, "less, for a context of this size")
    within("privacy.target_delta", p.target_delta, 1e-15, 0.5)
    within("privacy.clipping_norm", p.clipping_norm, 1e-9, 1e9)
    if p.factor_clipping_norm:
        within("privacy.factor_clipping_norm", p.factor_clipping_norm, 1e-9, 1e9)
    within("privacy.sample_rate", p.sample_rate, 1e-6, 1.0)
    within("privacy.site_sample_rate", p.site_sample_rate, 1e-6, 1.0)
    within("privacy.nominal_site_size", p.nominal_site_size, 1, 10**9)
    within("privacy.tolerated_dropouts", p.tolerated_dropouts, 0, len(e.sites) - 1)
    within("privacy.tolerated_colluders", p.tolerated_colluders, 0, 10**6)
    within("rounds.number", r.number, 1, 100_000)
    within("rounds.local_steps", r.local_steps, 1, 100_000)
    if r.min_sites and p.site_sample_rate < 1:
        raise impossible("rounds.min_sites", r.min_sites, "0, as a round of sampled sites needs no quorum")
    if r.min_sites:
        within("rounds.min_sites", r.min_sites, len(e.sites) - p.tolerated_dropouts, len(e.sites))
    within("rounds.deadline", r.deadline, 1.0, 1e6)
    within("rounds.evaluate_every", r.evaluate_every, 1, 100_000)
    within("prompt.usual_mix", e.prompt.usual_mix, 0.0, 0.999)
    if e.uses_evidence and r.number < 2:
        raise impossible("rounds.number", r.number, "at least 2 with prompt.evidence: collect, then vote")


def _is_name(text: str) -> bool:
    return bool(text.strip()) and len(text) <= 200 and text.isprintable()


def load_experiment(path: Path) -> Experiment:
    """Read experiment.toml; errors name the key, the value and what was expected."""
    return experiment_from_table(read_toml(path), path.name)


def experiment_from_table(table: Mapping[str, Any], where: str) -> Experiment:
    """An experiment from the content of a file; mechanism and trust, if left out, as ``mechanism_for`` says.

    What crosses the wire, and what a run folder keeps, names both and is not read by this.
    """
    privacy = table.get("privacy", {})
    if not isinstance(privacy, Mapping):
        return from_table(Experiment, table, where)  # says what is wrong with it
    mechanism, trust = mechanism_for(table)
    chosen = {"mechanism": mechanism, "trust": trust, **privacy}
    return from_table(Experiment, {**table, "privacy": chosen}, where)


def mechanism_for(table: Mapping[str, Any], served: Collection[str] = MECHANISMS) -> tuple[str, str]:
    """Mechanism and trust of an experiment's table, filled in where they are left out.

    ``one_shot`` with ``local`` trust wherever it can serve: it is the better at most epsilons (docs/privacy.md), holds
    the operator to the target as well and is charged once. ``per_step`` otherwise: for questions, whole sites, and
    where another setting is one of ``per_step`` only.

    Args:
        table: the experiment's.
        served: the mechanisms under which the model can learn, where it is known.
    """
    privacy, task, prompt = (_part(table, name) for name in ("privacy", "task", "prompt"))
    mechanism, trust = privacy.get("mechanism"), privacy.get("trust")
    if mechanism is None:
        needs_steps = (
            "one_shot" not in served
            or trust not in (None, "local")
            or privacy.get("unit", "example") != "example"
            or privacy.get("clipping", "joint") != "joint"
            or privacy.get("accounting", "honest") != "honest"
            or task.get("kind", "classify") != "classify"
            or task.get("question", "") != ""  # asked of generative models, which have no class features
            or prompt.get("retention", 0.0) != 0.0
        )
        mechanism = "per_step" if needs_steps else "one_shot"
    if trust is None:
        trust = "local" if mechanism == "one_shot" else "distributed"
    return mechanism, trust


def _part(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = table.get(name, {})
    return part if isinstance(part, Mapping) else {}
