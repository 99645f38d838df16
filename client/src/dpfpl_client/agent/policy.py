"""The most that may ever leave a site, whatever the operator sends: policy.toml."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from dpfpl_common.accounting import epsilon
from dpfpl_common.errors import ConfigError, RefusedError
from dpfpl_common.experiment import MECHANISMS, METHODS, TRUST_MODES, UNITS, Experiment
from dpfpl_common.settings import from_table, read_toml
from dpfpl_common.trust import capped_event, planned_events

__all__ = ["METRICS", "Policy", "load_policy", "permit"]

METRICS = ("none", "coarse", "exact")
COARSE_STEP = 0.05


@dataclass(frozen=True)
class Policy:
    """The site's rules; an absent rule takes the strict default.

    Attributes:
        experiments: names of approved experiments; "*" approves any that keeps the other rules.
        max_epsilon_per_experiment: cap on what a personalised prompt of one experiment may tell its recipient.
        max_epsilon_operator: cap on what the messages of one experiment may tell the operator, who under
            ``distributed`` trust sees each with its share of the noise only. Does not bind under ``central``, where it
            is infinite and which must be allowed by name.
        max_epsilon_lifetime: cap over all experiments on the same data.
        max_epsilon_operator_lifetime: cap on what all of them together may tell the operator; does not bind while
            ``central`` is allowed.
        delta: the delta of all caps; an experiment's own may not be larger.
        trust: allowed trust modes.
        units: allowed units of privacy. Naming ``site`` means that in such an experiment the caps hold towards another
            site, and that the site's own prompt, trained without noise, must never leave it.
        mechanisms: allowed mechanisms.
        methods: allowed methods.
        min_noise_multiplier: least noise.
        max_clipping_norm: largest clipping norm.
        max_rounds: most rounds of one experiment.
        metrics: which accuracies may leave: none, coarse (multiples of 0.05) or exact.
    """

    experiments: tuple[str, ...]
    max_epsilon_per_experiment: float
    max_epsilon_lifetime: float
    delta: float = 1e-5
    max_epsilon_operator: float = 20.0
    max_epsilon_operator_lifetime: float = 40.0
    trust: tuple[str, ...] = ("distributed", "local")
    units: tuple[str, ...] = ("example",)
    mechanisms: tuple[str, ...] = MECHANISMS
    methods: tuple[str, ...] = METHODS
    min_noise_multiplier: float = 0.3
    max_clipping_norm: float = 10.0
    max_rounds: int = 500
    metrics: str = "coarse"

    def __post_init__(self) -> None:
        _require("max_epsilon_per_experiment", self.max_epsilon_per_experiment, self.max_epsilon_per_experiment > 0)
        _require("max_epsilon_lifetime", self.max_epsilon_lifetime, self.max_epsilon_lifetime > 0)
        _require("max_epsilon_operator", self.max_epsilon_operator, self.max_epsilon_operator > 0)
        _require(
            "max_epsilon_operator_lifetime", self.max_epsilon_operator_lifetime, self.max_epsilon_operator_lifetime > 0
        )
        _require("delta", self.delta, 0 < self.delta < 0.01)
        _require("trust", self.trust, set(self.trust) <= set(TRUST_MODES))
        _require("units", self.units, set(self.units) <= set(UNITS))
        _require("mechanisms", self.mechanisms, set(self.mechanisms) <= set(MECHANISMS))
        _require("methods", self.methods, set(self.methods) <= set(METHODS))
        _require("metrics", self.metrics, self.metrics in METRICS)
        _require("min_noise_multiplier", self.min_noise_multiplier, self.min_noise_multiplier > 0)
        _require("max_clipping_norm", self.max_clipping_norm, self.max_clipping_norm > 0)
        _require("max_rounds", self.max_rounds, self.max_rounds > 0)

    def released_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        """What of the site's accuracies may leave."""
        match self.metrics:
            case "exact":
                return dict(metrics)
            case "coarse":
                return {name: round(round(value / COARSE_STEP) * COARSE_STEP, 2) for name, value in metrics.items()}
            case _:
                return {}


def load_policy(path: Path) -> Policy:
    """Read policy.toml.

    Raises:
        ConfigError: it is missing, unreadable, a link, writable by others, or says something unknown or impossible:
            then nothing may leave, so the agent must not serve.
    """
    try:
        found = path.lstat()
    except OSError:
        raise ConfigError(
            code="NO_POLICY",
            message=f"There is no policy file {path}.",
            advice="Without a policy everything is refused; start from the policy.toml of your kit.",
        ) from None
    if not stat.S_ISREG(found.st_mode) or found.st_mode & stat.S_IWOTH or found.st_uid not in (0, os.getuid()):
        raise ConfigError(
            code="POLICY_NOT_PROTECTED",
            message=f"{path} is a link, is writable by everybody or belongs to another user.",
            advice="Make it a regular file of the agent's user: chmod 640.",
        )
    return from_table(Policy, read_toml(path), path.name)


def permit(policy: Policy, experiment: Experiment) -> None:
    """Let an experiment pass, or refuse it; decided from the experiment and the policy alone, never from the data.

    Raises:
        RefusedError: with the code and name of the rule that it breaks.
    """
    privacy = experiment.privacy
    if "*" not in policy.experiments and experiment.name not in policy.experiments:
        raise _refusal("EXPERIMENT_NOT_APPROVED", "experiments", "Ask the site's administrator to approve it by name.")
    if privacy.trust not in policy.trust:
        raise _refusal("TRUST_NOT_ALLOWED", "trust", f"Allowed: {', '.join(policy.trust)}.")
    if privacy.unit not in policy.units:
        raise _refusal("UNIT_NOT_ALLOWED", "units", f"Allowed: {', '.join(policy.units)}.")
    if privacy.mechanism not in policy.mechanisms:
        raise _refusal("MECHANISM_NOT_ALLOWED", "mechanisms", f"Allowed: {', '.join(policy.mechanisms)}.")
    if privacy.accounting != "honest":
        raise _refusal(
            "ACCOUNTING_NOT_HONEST", "accounting", "Only honest accounting is served; paper is for simulations."
        )
    if experiment.prompt.method not in policy.methods:
        raise _refusal("METHOD_NOT_ALLOWED", "methods", f"Allowed: {', '.join(policy.methods)}.")
    if experiment.rounds.number > policy.max_rounds:
        raise _refusal("TOO_MANY_ROUNDS", "max_rounds", f"At most {policy.max_rounds} rounds.")
    if max(privacy.clipping_norm, privacy.factor_norm) > policy.max_clipping_norm:
        raise _refusal("CLIPPING_NORM_TOO_LARGE", "max_clipping_norm", f"At most {policy.max_clipping_norm:g}.")
    if (privacy.noise_multiplier or 0.0) < policy.min_noise_multiplier:
        raise _refusal("TOO_LITTLE_NOISE", "min_noise_multiplier", f"At least {policy.min_noise_multiplier:g}.")
    if privacy.target_delta > policy.delta:
        raise _refusal("DELTA_TOO_LARGE", "delta", f"At most {policy.delta:g}.")
    events = {event.adversary: event for event in planned_events(experiment)}
    if privacy.trust != "central" and epsilon([events["operator"]], policy.delta) > policy.max_epsilon_operator:
        raise _refusal(
            "OPERATOR_EPSILON_OVER_CAP",
            "max_epsilon_operator",
            f"Towards the operator at most {policy.max_epsilon_operator:g}: fewer sites, or trust local.",
        )
    cost = epsilon([capped_event(experiment)], policy.delta)
    if cost > policy.max_epsilon_per_experiment:
        raise _refusal(
            "EPSILON_OVER_CAP",
            "max_epsilon_per_experiment",
            f"It would cost epsilon {cost:.2f}; at most {policy.max_epsilon_per_experiment:g}.",
        )


def _refusal(code: str, rule: str, advice: str) -> RefusedError:
    return RefusedError(code=code, message=f"The site's policy forbids this experiment (rule {rule}).", advice=advice)


def _require(key: str, value: object, holds: bool) -> None:
    if not holds:
        raise ConfigError(
            code="IMPOSSIBLE_VALUE", message=f"policy.toml {key} is {value!r}.", advice="Correct policy.toml."
        )
