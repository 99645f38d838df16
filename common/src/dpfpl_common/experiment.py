"""What one federated training is: the operator's experiment.toml as frozen values."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, Strict

from dpfpl_common.config import ImpossibleError, Texts, build, matching, read_toml, settings, to_table
from dpfpl_common.errors import ConfigError
from dpfpl_common.evidence import moment_pays
from dpfpl_common.privacy.noise import grid_allows
from dpfpl_common.privacy.one_shot import VOTE_SHARE
from dpfpl_common.secure.graph import MOST_SITES, threshold_for

__all__ = [
    "LONGEST_NAME",
    "LONGEST_QUESTION",
    "MECHANISMS",
    "METHODS",
    "TASKS",
    "Accounting",
    "AggregationSettings",
    "Choice",
    "Experiment",
    "GradientSettings",
    "Mechanism",
    "Method",
    "ModelSettings",
    "OptimizerSettings",
    "Precision",
    "PrivacySettings",
    "PromptSettings",
    "RoundSettings",
    "SiteName",
    "TaskSettings",
    "Trust",
    "Unit",
    "choose_mechanism",
    "experiment_table",
    "load_experiment",
    "parse_experiment",
    "unprintable",
    "with_secure",
]

Accounting = Literal["honest", "paper"]
Clipping = Literal["joint", "separate"]
Mechanism = Literal["per_step", "one_shot"]
Method = Literal["dpfpl", "dplora", "fedotp", "fedpgp", "promptfl"]
Optimizer = Literal["adam", "sgd"]
Precision = Literal["float32", "bfloat16"]
Projection = Literal["none", "text"]
Rule = Literal["mean", "median", "trimmed_mean", "krum"]
Task = Literal["classify", "vqa", "caption"]
Trust = Literal["distributed", "central", "local", "secure"]
Unit = Literal["example", "site"]

MECHANISMS: tuple[str, ...] = get_args(Mechanism)
METHODS: tuple[Method, ...] = get_args(Method)
TASKS: tuple[str, ...] = get_args(Task)

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
LONGEST_NAME = 200
LONGEST_QUESTION = 1000
JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner: Persian words and composed emoji are written with them."""


def unprintable(text: str) -> str:
    """The first character that belongs in no line of text, of a question or an answer; empty if all do."""
    return next((char for char in text if not char.isprintable() and char not in JOINERS), "")


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    fine = all(name.strip() and len(name) <= LONGEST_NAME and name.isprintable() for name in names)
    if not fine or len(set(names)) != len(names):
        raise ImpossibleError("", names, "a list of distinct, printable, non-empty names")
    return names


Chance = Annotated[float, Field(ge=1e-4, le=1)]
Names = Annotated[Texts, AfterValidator(_distinct)]
Norm = Annotated[float, Field(ge=1e-9, le=1e9)]
ExperimentName = Annotated[
    str, matching(NAME.pattern, "1-63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit")
]
SiteName = Annotated[str, matching(SITE_NAME.pattern, "the name that the operator gave: 1-63 of a-z, 0-9 and '-'")]


@settings
class ModelSettings:
    """The frozen vision-language model every site must have.

    Attributes:
        id: "embedded", a Hugging Face id or a folder; informative for the sites, whose own site.toml decides.
        width: width d of the text tower's token embeddings.
        fingerprint: hash of the model's files; sites with another model refuse. Empty: any model of that width.
    """

    width: Annotated[int, Field(ge=1, le=65536)]
    id: str = "embedded"
    fingerprint: str = ""


@settings
class PromptSettings:
    """The learned prompt.

    Attributes:
        method: what is learned; see ``dpfpl_client.learning.methods``.
        num_context: number of context vectors before the class name.
        rank: rank k of the factors of the personal context.
        init_text: the context starts as this text's embeddings, repeated to the left if it has fewer tokens than
            num_context. Empty: start from zero vectors plus N(0, 0.02^2), as the paper.
        personal_strength: alpha; evaluated, used and exported is ``p_G + alpha p_L``. 1: as trained; 0: the shared
            prompt alone. It does not change training.
        absent_weight: of ``one_shot``: the least share of the loss that holds the classes which were not found in the
            site's release to their plain text; 0: only as much as the noise may hide.
        retention: of ``per_step``: weight of a term that keeps all classes as far apart as the shared prompt has them
            while the personal part is trained, computed from public facts alone; 1: as long as one example's gradient
            may be; 0: none.
        contrast: of ``fedpgp`` under ``per_step``: weight of its contrastive term, likewise without images; 0: none.
        evidence: of ``one_shot``: the sites' noised class sums are pooled into class vectors, which are used where the
            sites' images vote for them (``dpfpl_common.evidence``); false: prompts alone, as in the paper.
        usual_mix: share of future images that a site expects from its usual mix of classes, from 0 to below 1; the rest
            may be of any class. Only with ``evidence``, which takes two rounds.
    """

    method: Method = "dpfpl"
    num_context: Annotated[int, Field(ge=1, le=1024)] = 4
    rank: Annotated[int, Field(ge=1)] = 4
    init_text: str = "a photo of a"
    personal_strength: Annotated[float, Field(ge=0, le=10)] = 1.0
    absent_weight: Annotated[float, Field(ge=0, le=0.95)] = 0.0
    retention: Annotated[float, Field(ge=0, le=100)] = 0.0
    contrast: Annotated[float, Field(ge=0, le=100)] = 0.0
    evidence: bool = True
    usual_mix: Annotated[float, Field(ge=0, le=0.999)] = 0.5


@settings
class OptimizerSettings:
    """How released (already noised) gradients move the contexts; post-processing, so free of privacy cost."""

    name: Optimizer = "adam"
    global_learning_rate: Annotated[float, Field(ge=0, le=1e6)] = 0.02
    personal_learning_rate: Annotated[float, Field(ge=0, le=1e6)] = 0.02


@settings
class PrivacySettings:
    """What is protected, and how.

    Attributes:
        unit: ``example``, one training example of one site, added or removed; ``site``, one site's whole data set.
        mechanism: ``per_step``, noise at every step; ``one_shot``, one noised sum of image features per class at the
            start, after which training is post-processing. ``auto``: see ``choose_mechanism``; an experiment has the
            mechanism and the trust that it chose.
        trust: who adds the noise of the shared gradient, see ``dpfpl_common.privacy_plan``; ``auto`` as ``mechanism``.
        target_epsilon: calibrates ``noise_multiplier`` so that the recipient of a site's personalised prompt is held to
            this epsilon, under the unit ``site`` another site of the federation; absent if noise_multiplier is given.
        target_delta: delta of every epsilon reported.
        noise_multiplier: noise standard deviation over clipping norm, unitless; 0 = no noise, no privacy claim.
        clipping_norm: L2 bound C_G of one example's gradient by the global context; under the unit ``site`` of the
            whole update of one round.
        factor_clipping_norm: L2 bound C_u = C_v of each personal block: its gradient towards a factor, under ``fedotp``
            towards the personal context; 0 = the same as clipping_norm.
        projection: of ``one_shot``'s class sums: ``none``, or ``text``, onto the public directions that the classes'
            text features take as the prompt moves, so that the noise of all others is left out.
        clipping: ``joint``, one factor for all blocks of an example; ``separate``, one for each block.
        accounting: ``honest``; ``paper`` computes target_epsilon's noise by the paper's formula, for reproductions.
        sample_rate: chance q that an example joins a step (Poisson).
        site_sample_rate: chance q_s that a site joins a round (Poisson); below 1 only under the unit ``site``.
        nominal_site_size: public stand-in for the number of training images of a site: a round number known beforehand,
            not the real count.
        tolerated_dropouts: D; with more sites missing a round is not aggregated.
        tolerated_colluders: K sites that may pool what they know against another; their noise shares do not count.
    """

    unit: Unit = "example"
    mechanism: Literal[Mechanism, "auto"] = "auto"
    trust: Literal[Trust, "auto"] = "auto"
    target_epsilon: Annotated[float | None, Field(ge=1e-3, le=1e3)] = None
    target_delta: Annotated[float, Field(ge=1e-15, le=0.5)] = 1e-5
    noise_multiplier: Annotated[float | None, Field(ge=0, le=1e6)] = None
    clipping_norm: Norm = 0.1
    factor_clipping_norm: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    projection: Projection = "none"
    clipping: Clipping = "joint"
    accounting: Accounting = "honest"
    sample_rate: Chance = 0.5
    site_sample_rate: Chance = 1.0
    nominal_site_size: Annotated[int, Field(ge=1, le=10**9)] = 300
    tolerated_dropouts: Annotated[int, Field(ge=0)] = 0
    tolerated_colluders: Annotated[int, Field(ge=0, le=10**6)] = 1

    def __post_init__(self) -> None:
        if 0 < self.factor_clipping_norm < 1e-9:
            raise ImpossibleError(
                "factor_clipping_norm", self.factor_clipping_norm, "0, or a number from 1e-09 to 1e+09"
            )

    @property
    def factor_norm(self) -> float:
        """C_u = C_v, with the default filled in."""
        return self.factor_clipping_norm or self.clipping_norm


@settings
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

    number: Annotated[int, Field(ge=1, le=100_000)] = 10
    local_steps: Annotated[int, Field(ge=1, le=100_000)] = 4
    min_sites: Annotated[int, Field(ge=0)] = 0
    deadline: Annotated[float, Field(ge=1, le=1e6)] = 300.0
    evaluate_every: Annotated[int, Field(ge=1, le=100_000)] = 1


@settings
class AggregationSettings:
    """How the sites' updates become one; every site counts the same, whatever size it claims.

    Attributes:
        rule: ``mean``, the paper's; ``median`` or ``trimmed_mean``, coordinate by coordinate; or ``krum``, the one
            update that is nearest to its neighbours. The last three tolerate some hostile sites but need ``local``
            trust: only there does each message carry enough noise of its own.
        trim: how many hostile sites ``krum`` tolerates, and ``trimmed_mean``, which cuts so many values at each end of
            every coordinate.
        largest_site: the most training images a site may have, in nominal sizes; larger updates are rejected.
    """

    rule: Rule = "mean"
    trim: Annotated[int, Field(ge=1, le=10**6)] = 1
    largest_site: Annotated[float, Field(ge=1, le=1e6)] = 100.0


@settings
class GradientSettings:
    """How exactly one example's gradient is computed; it is clipped afterwards, so the sensitivity is the same.

    Attributes:
        precision: ``float32``, or ``bfloat16`` to round the factors of large products in the backward pass.
        classes: how many classes of an example's loss count in its gradient: its label and those that the model
            confuses it with most, so at least 2; 0 for all.
    """

    precision: Precision = "float32"
    classes: Annotated[int, Field(ge=0, le=10**6)] = 0

    def __post_init__(self) -> None:
        if self.classes == 1:
            raise ImpossibleError("classes", 1, "the label and a rival, so at least 2; or 0 for all classes")


@settings
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

    kind: Task = "classify"
    question: str = ""
    max_answer_tokens: Annotated[int, Field(ge=1, le=1024)] = 8

    def __post_init__(self) -> None:
        if len(self.question) > LONGEST_QUESTION or unprintable(self.question):
            expected = f"one printable line of at most {LONGEST_QUESTION} characters"
            raise ImpossibleError("question", self.question, expected)

    @property
    def in_words(self) -> bool:
        """Whether answers are a site's own words, not one of the experiment's classes."""
        return self.kind != "classify"


@settings
class SiteDescription:
    """What a site tells the operator of itself before there is an experiment: its model, and if it likes its classes.

    Attributes:
        site: its name.
        model: fingerprint and width of the model that it has.
        classes: what it has images of, in the experiment's words; none where it keeps that to itself.
    """

    site: SiteName
    model: ModelSettings
    classes: Texts = ()


@settings
class Experiment:
    """One federated training with a name and a configuration.

    Attributes:
        name: of the experiment, its folder and its charges; a changed configuration needs a new one.
        classes: the names that the prompt tells apart; none for questions.
        sites: who takes part; left out: all provisioned sites.
    """

    name: ExperimentName
    classes: Names
    sites: Annotated[tuple[SiteName, ...], Strict(False), AfterValidator(_distinct)]
    model: ModelSettings
    prompt: PromptSettings = field(default_factory=PromptSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    rounds: RoundSettings = field(default_factory=RoundSettings)
    gradients: GradientSettings = field(default_factory=GradientSettings)
    aggregation: AggregationSettings = field(default_factory=AggregationSettings)
    task: TaskSettings = field(default_factory=TaskSettings)

    def __post_init__(self) -> None:
        if "auto" in (self.privacy.mechanism, self.privacy.trust):
            chosen = choose_mechanism(self.privacy, self.prompt, self.task)
            privacy = dataclasses.replace(self.privacy, mechanism=chosen.mechanism, trust=chosen.trust)
            object.__setattr__(self, "privacy", privacy)
        _check_sites(self)
        _check_privacy(self)
        _check_prompt(self)

    @property
    def context_shape(self) -> tuple[int, int]:
        """(num_context, width) of every context array."""
        return (self.prompt.num_context, self.model.width)

    @property
    def min_sites(self) -> int:
        """Usable replies without which a round is not aggregated; at least sites less tolerated drop-outs.

        None where sites are sampled: the server adds the whole noise, however many reply, and divides by a constant.
        """
        if self.privacy.site_sample_rate < 1:
            return 0
        return self.rounds.min_sites or len(self.sites) - self.privacy.tolerated_dropouts

    @property
    def uses_evidence(self) -> bool:
        """Whether the sites' noised class sums leave them and are pooled; see ``dpfpl_common.evidence``.

        One round collects, the next one votes: with a single round there are prompts alone.
        """
        return self.prompt.evidence and self.privacy.mechanism == "one_shot" and self.rounds.number >= 2

    @property
    def honest_shares(self) -> int:
        """H: how many noise shares an aggregate holds at least that no colluder knows.

        A site knows its own share, so at least one does not count even where no site colludes with another.
        """
        return max(1, len(self.sites) - self.privacy.tolerated_dropouts - max(1, self.privacy.tolerated_colluders))

    @property
    def uses_moment(self) -> bool:
        """Whether sites send a second moment of their images with their votes: where it can be worth its share of the
        budget, by public numbers alone; see ``dpfpl_common.evidence.moment_pays``.
        """
        z, sites = self.privacy.noise_multiplier, len(self.sites)
        if z is None or not self.uses_evidence or len(self.classes) < 2:
            return False
        noises = sites / self.honest_shares if self.privacy.trust == "secure" else sites
        images = self.privacy.nominal_site_size * sites
        return moment_pays(len(self.classes), images, z / math.sqrt(VOTE_SHARE), noises)

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
        for section, default in _LATER_TABLES.items():
            if getattr(self, section) == default:
                del table[section]
        for section, key in _LATER_KEYS:
            if table[section][key] == getattr(type(getattr(self, section)), key):
                del table[section][key]
        return json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    def digest(self) -> str:
        """sha256 of the canonical JSON, the identity that sites approve."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def with_noise_multiplier(self, noise_multiplier: float) -> "Experiment":
        """The same experiment with its noise level filled in."""
        return dataclasses.replace(self, privacy=dataclasses.replace(self.privacy, noise_multiplier=noise_multiplier))


_LATER_TABLES = {"aggregation": AggregationSettings(), "gradients": GradientSettings(), "task": TaskSettings()}
_LATER_KEYS = (
    ("prompt", "personal_strength"),
    ("prompt", "absent_weight"),
    ("prompt", "retention"),
    ("prompt", "contrast"),
    ("privacy", "projection"),
)
"""What an experiment's JSON leaves out at its default, because it came after digests were first approved."""


def experiment_table(path: Path) -> dict[str, Any]:
    """experiment.toml as a table: the file's name where it has none, and no classes where answers are words."""
    table = {"name": path.stem, **read_toml(path)}
    task = table.get("task")
    if isinstance(task, dict) and task.get("kind") in ("vqa", "caption"):
        table.setdefault("classes", [])
    return table


def load_experiment(path: Path) -> Experiment:
    """Read experiment.toml; errors name the key, the value and what was expected."""
    return build(Experiment, experiment_table(path), path.name)


def parse_experiment(text: str) -> Experiment:
    """The inverse of ``Experiment.to_json``; for what arrives in a message."""
    try:
        table: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(code="BAD_EXPERIMENT", message="The experiment is not valid JSON.") from None
    return build(Experiment, table, "experiment")


@dataclass(frozen=True)
class Choice:
    """What ``auto`` stands for in an experiment, and why."""

    mechanism: Mechanism
    trust: Trust
    reason: str


def choose_mechanism(
    privacy: PrivacySettings, prompt: PromptSettings, task: TaskSettings, served: Collection[str] = MECHANISMS
) -> Choice:
    """Mechanism and trust, chosen where they are ``auto``; what is named is never replaced.

    ``one_shot`` with ``local`` trust wherever it can serve: it is the better at most epsilons
    (docs/results/accuracy.md), holds the operator to the target as well and is charged once. ``per_step`` otherwise:
    for questions, whole sites, and where another setting is one of ``per_step`` only. A server that knows who enrolled
    asks ``with_secure`` besides.

    Args:
        privacy: as asked for.
        prompt: of the same experiment.
        task: of the same experiment.
        served: the mechanisms under which the model can learn, where it is known.
    """
    mechanism, reason = privacy.mechanism, "the experiment names it"
    if mechanism == "auto":
        against = (
            ("one_shot" not in served, "the model has no class features, which one_shot needs"),
            (
                privacy.trust not in ("auto", "local", "secure"),
                f"one_shot needs local or secure trust, not {privacy.trust}",
            ),
            (privacy.unit != "example", "one_shot protects single examples, not whole sites"),
            (privacy.clipping != "joint", "separate clipping needs several blocks, and one_shot releases one"),
            (privacy.accounting != "honest", "the paper's formula is about noise at every step"),
            (task.in_words, f"the task {task.kind} has no classes whose features one_shot could sum"),
            (task.question != "", "a question is for generative models, which have no class features"),
            (prompt.retention != 0, "prompt.retention is a setting of per_step"),
            (prompt.contrast != 0, "prompt.contrast is a setting of per_step"),
        )
        found = next((why for holds, why in against if holds), None)
        mechanism = "per_step" if found else "one_shot"
        reason = found or "no setting rules out one_shot: one charge, which also bounds what the operator learns"
    trust = privacy.trust
    if trust == "auto":
        trust = "local" if mechanism == "one_shot" else "distributed"
    return Choice(mechanism, trust, reason)


def with_secure(experiment: Experiment, enrolled: Collection[str]) -> tuple[Experiment, str]:
    """An experiment that left its trust to ``auto``, with ``secure`` where its sums can be made; and why, or why not.

    Args:
        experiment: with what ``choose_mechanism`` chose.
        enrolled: sites that made their keys themselves, an aggregation key among them, as the register knows them.
    """
    if experiment.privacy.mechanism != "one_shot":
        return experiment, f"what {experiment.privacy.mechanism} releases is not summed in secret"
    count, missing = len(experiment.sites), sorted(set(experiment.sites) - set(enrolled))
    if missing:
        return experiment, f"{len(missing)} of {count} sites enrolled no keys of their own, {missing[0]} among them"
    try:
        secure = dataclasses.replace(experiment, privacy=dataclasses.replace(experiment.privacy, trust="secure"))
    except ConfigError as error:
        return experiment, f"secure is not possible: {error.message.removesuffix('.')}"
    return secure, f"all {count} sites enrolled keys of their own, so the operator can be kept to sums"


def _check_sites(e: Experiment) -> None:
    """Refuse impossible lists of classes and sites, and rounds that such sites cannot make."""
    if e.task.in_words and e.classes:
        expected = f"an empty list: with the task {e.task.kind}, answers are the sites' own words"
        raise ImpossibleError("classes", e.classes, expected)
    if len(e.classes) < 2 and not e.task.in_words:
        raise ImpossibleError("classes", e.classes, "at least two class names")
    if not e.sites:
        raise ImpossibleError("sites", e.sites, "at least one site")
    dropouts, quorum, count = e.privacy.tolerated_dropouts, e.rounds.min_sites, len(e.sites)
    if dropouts >= count:
        raise ImpossibleError("privacy.tolerated_dropouts", dropouts, f"a number from 0 to {count - 1}")
    if quorum and e.privacy.site_sample_rate < 1:
        raise ImpossibleError("rounds.min_sites", quorum, "0, as a round of sampled sites needs no quorum")
    if quorum and not count - dropouts <= quorum <= count:
        raise ImpossibleError("rounds.min_sites", quorum, f"0, or a number from {count - dropouts} to {count}")
    # A round with just the quorum must leave something; Krum's guarantee needs two more than 2 * trim + 1 updates.
    trim, most = e.aggregation.trim, {"trimmed_mean": (e.min_sites - 1) // 2, "krum": (e.min_sites - 3) // 2}
    if trim > most.get(e.aggregation.rule, trim):
        raise ImpossibleError(
            "aggregation.trim", trim, f"a number from 1 to {most[e.aggregation.rule]} for so few sites"
        )


def _check_privacy(e: Experiment) -> None:
    """Refuse what has no sound analysis, with the reason, and noise that no run could draw."""
    p = e.privacy
    if reason := _unsound(p, e.aggregation.rule):
        raise ConfigError(
            code="NO_SOUND_ANALYSIS",
            message=f"Refused: {reason}.",
            advice="For one_shot, median, trimmed_mean and krum set trust to local, for secure trust the mechanism to "
            "one_shot; without it, local holds the operator to the same epsilon and distributed to a larger one. "
            "Otherwise use clipping joint, accounting honest and projection none. The unit site needs the mechanism "
            "per_step and trust distributed or, to sample sites, central.",
        )
    if p.target_epsilon is None and p.noise_multiplier is None:
        raise ConfigError(
            code="IMPOSSIBLE_VALUE",
            message="The experiment's [privacy] needs target_epsilon or noise_multiplier.",
            advice="Give one of them; noise_multiplier = 0 is no noise and no privacy.",
        )
    if p.trust == "secure":
        _check_secure(e)
    # All blocks of a step together have at most three times the context's coordinates, whatever the method and rank.
    if p.noise_multiplier and not grid_allows(p.noise_multiplier, 3 * math.prod(e.context_shape)):
        raise ImpossibleError("privacy.noise_multiplier", p.noise_multiplier, "less, for a context of this size")


def _check_secure(e: Experiment) -> None:
    """Refuse sums that could not be unmasked, or that could hold too little noise if sites are missing."""
    p, count = e.privacy, len(e.sites)
    if not 3 <= count <= MOST_SITES:
        raise ImpossibleError("sites", count, f"3 to {MOST_SITES} sites for secure trust")
    if not e.uses_evidence:
        raise ImpossibleError("privacy.trust", p.trust, "local, or prompt.evidence true and two rounds or more")
    if p.noise_multiplier == 0:
        raise ImpossibleError("privacy.noise_multiplier", 0, "above 0 for secure trust, which sums noised integers")
    # Both hold where the survivors can unmask a sum and one of them at least is honest and not its own victim.
    most = count - max(threshold_for(count, p.tolerated_colluders), max(1, p.tolerated_colluders) + 1)
    if p.tolerated_dropouts > most:
        expected = (
            f"at most {most} with {count} sites, of which {p.tolerated_colluders} may collude, under secure trust"
        )
        raise ImpossibleError("privacy.tolerated_dropouts", p.tolerated_dropouts, expected)


def _check_prompt(e: Experiment) -> None:
    """Refuse ranks that are too large, and options that would silently do nothing."""
    prompt, privacy, most = e.prompt, e.privacy, min(e.context_shape)
    if prompt.rank > most:
        raise ImpossibleError("prompt.rank", prompt.rank, f"1 up to {most}, the smaller of num_context and width")
    steps = (privacy.mechanism, privacy.unit, e.task.kind) == ("per_step", "example", "classify")
    where = "the mechanism per_step, the unit example and the task classify"
    for key, serves, why in (
        (
            "absent_weight",
            privacy.mechanism == "one_shot",
            "only one_shot knows, at no cost, what a site lacks",
        ),
        ("retention", steps, f"it goes with {where}"),
        ("contrast", steps and prompt.method == "fedpgp", f"it is a term of fedpgp, under {where}"),
    ):
        if getattr(prompt, key) and not serves:
            raise ImpossibleError(f"prompt.{key}", getattr(prompt, key), f"0: {why}")


def _unsound(p: PrivacySettings, rule: str) -> str:
    """Why no analysis covers the combination; empty if one does."""
    site, once, separate = p.unit == "site", p.mechanism == "one_shot", p.clipping == "separate"
    reasons = (
        (not site and p.site_sample_rate < 1, "sampling sites is analysed for the unit site only"),
        (site and once, "one_shot bounds what one image adds to the class sums, not what a whole site adds"),
        (
            site and p.trust == "local",
            "under local trust the personal prompt learns from noised steps; a whole update is noised once a round",
        ),
        (
            site and separate,
            "under the unit site one vector is clipped, the whole update: there are no blocks",
        ),
        (site and p.accounting == "paper", "the paper's formula is about single examples, not about whole sites"),
        (
            site and p.site_sample_rate < 1 and p.trust != "central",
            "under distributed trust the sampled sites would add a random number of noise shares, which may be fewer "
            "than the analysis counts on",
        ),
        (
            once and p.trust not in ("local", "secure"),
            f"the mechanism one_shot cannot run under {p.trust} trust: what a site sends is trained on its own noised "
            "class sums, which carry their whole noise already; shares of noise have no meaning there",
        ),
        (
            p.trust == "secure" and not once,
            "secure trust sums integers, which one_shot releases; an update of per_step is rounded at each site, and a "
            "sum of rounded values has no exact noise",
        ),
        (
            once and p.accounting == "paper",
            "the paper's formula is about noise at every step, and one_shot adds noise once",
        ),
        (
            p.projection != "none" and not once,
            f"the projection {p.projection} is one of class sums of image features, which {p.mechanism} does not "
            "release; its gradients are projected by the method's own directions",
        ),
        (
            separate and (once or p.trust == "local"),
            "separate clipping needs several blocks, and only one is released",
        ),
        (
            rule != "mean" and p.trust != "local",
            f"{rule} is no function of the sum of all messages, so the noise that the sum carries under {p.trust} "
            "trust does not protect it; each message must carry the whole noise",
        ),
    )
    return next((why for holds, why in reasons if holds), "")
