"""Which experiments a policy lets pass."""

import dataclasses
import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpfpl_common.config import from_table, read_toml
from dpfpl_common.errors import ConfigError, RefusedError
from dpfpl_common.experiment import MECHANISMS, METHODS, TRUST_MODES, UNITS, Experiment
from dpfpl_common.privacy.accounting import exceeds
from dpfpl_common.privacy_plan import capped_event, planned_events

__all__ = ["EXACT_METRICS", "METRICS", "Policy", "load_policy", "loosened", "permit", "stricter"]


# The most that may ever leave a site, whatever the operator sends: policy.toml.


METRICS = ("none", "noised", "coarse", "exact")
EXACT_METRICS = ("coarse", "exact")
"""What only data that are public may be told of."""
COARSE_STEP = 0.05
_HOURS = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")
_APPROVAL = re.compile(r"\*|[a-z0-9][a-z0-9._-]{0,62}(@[0-9a-f]{12,64})?")


@dataclass(frozen=True)
class Policy:
    """The site's rules; an absent rule takes the strict default.

    Attributes:
        experiments: what is approved: ``*``, any experiment that keeps the other rules; ``name@digest``, that
            configuration, of which the first 12 digits suffice; ``name``, whatever is first run under it. What
            ``dpfpl-client approve`` was told is approved besides.
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
        max_repeats: most charges of one experiment beyond one a round, for rounds that were interrupted.
        max_rounds_per_hour: most rounds computed within an hour.
        max_experiments_per_day: most experiments begun within a day.
        max_evaluations: most distinct prompts whose exact accuracies are told of one experiment, besides one a round.
        max_evaluations_lifetime: most distinct evaluations answered over the data's lifetime, whatever they are called.
        metrics: what may leave of how well prompts do on held-back examples: none; noised, counts within the epsilon of
            the experiment; coarse (accuracies in multiples of 0.05) or exact, of data that are public only.
        quiet_hours: times of the day, by the site's clock, at which nothing is computed: ``22:00-06:00``.
        reply_slot: seconds that every answer takes at least; an experiment's answers all take the same time, which is
            rehearsed on made-up examples (``dpfpl_client.agent.pace``).
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
    max_repeats: int = 50
    max_rounds_per_hour: int = 3600
    max_experiments_per_day: int = 50
    max_evaluations: int = 10
    max_evaluations_lifetime: int = 500
    metrics: str = "noised"
    quiet_hours: tuple[str, ...] = ()
    reply_slot: float = 0.1

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
        for key in ("max_rounds", "max_rounds_per_hour", "max_experiments_per_day"):
            _require(key, getattr(self, key), getattr(self, key) > 0)
        for key in ("max_repeats", "max_evaluations", "max_evaluations_lifetime"):
            _require(key, getattr(self, key), getattr(self, key) >= 0)
        _require("reply_slot", self.reply_slot, 0 < self.reply_slot <= 60)
        _require("quiet_hours", self.quiet_hours, all(_HOURS.fullmatch(hours) for hours in self.quiet_hours))
        _require("experiments", self.experiments, all(_APPROVAL.fullmatch(entry) for entry in self.experiments))

    def current(self) -> "Policy":
        """Itself; see ``dpfpl_client.agent.policy_file.Rules``."""
        return self

    def approves(self, experiment: Experiment) -> bool:
        """Whether the experiment is approved."""
        name, digest = experiment.name, experiment.digest()
        return any(
            entry in ("*", name) or ("@" in entry and f"{name}@{digest}".startswith(entry))
            for entry in self.experiments
        )

    def wait_for_approval(self, experiment: Experiment) -> None:
        """Nothing remembers it."""

    def quiet_at(self, now: time.struct_time) -> bool:
        """Whether this is a time at which nothing is computed."""
        clock = f"{now.tm_hour:02}:{now.tm_min:02}"
        for hours in self.quiet_hours:
            begin, end = hours.split("-")
            if (begin <= clock < end) if begin <= end else (clock >= begin or clock < end):
                return True
        return False

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
    if (
        not stat.S_ISREG(found.st_mode)
        or found.st_mode & (stat.S_IWOTH | stat.S_IWGRP)
        or found.st_uid not in (0, os.getuid())
    ):
        raise ConfigError(
            code="POLICY_NOT_PROTECTED",
            message=f"{path} is a link, is writable by others or belongs to another user.",
            advice="Make it a regular file of the agent's user: chmod 640.",
        )
    _require_safe_folder(path.parent)
    return from_table(Policy, read_toml(path), path.name)


def _require_safe_folder(folder: Path) -> None:
    """Refuse a folder in which others could put another file in the policy's place."""
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ConfigError(
            code="POLICY_NOT_PROTECTED",
            message=f"{folder}, the folder of the policy, is writable by everybody.",
            advice="Take that right away: chmod o-w.",
        )


def _require(key: str, value: object, holds: bool) -> None:
    if not holds:
        raise ConfigError(
            code="IMPOSSIBLE_VALUE", message=f"policy.toml {key} is {value!r}.", advice="Correct policy.toml."
        )


# Two policies as one: of every rule the stricter one.


def stricter(one: Policy, other: Policy) -> Policy:
    """The policy that lets pass only what both let pass."""
    return Policy(**{name: rule(getattr(one, name), getattr(other, name)) for name, rule in _RULES.items()})


def loosened(old: Policy, new: Policy) -> list[str]:
    """The rules in which ``new`` would let more pass than ``old``."""
    both = stricter(old, new)
    return [name for name in _RULES if _as_set(getattr(both, name)) != _as_set(getattr(new, name))]


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(entry for entry in other if entry in one)


def _both(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({*one, *other}))


def _approved(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """Approvals by both; ``name@digest`` is within ``name``, and all within ``*``."""

    def within(entry: str, entries: tuple[str, ...]) -> bool:
        return any(
            general in ("*", entry)
            or (entry != "*" and (entry.split("@")[0] == general or (entry.startswith(general) and "@" in general)))
            for general in entries
        )

    kept = [entry for entry in other if within(entry, one)] + [entry for entry in one if within(entry, other)]
    return tuple(dict.fromkeys(kept))


def _fewer_metrics(one: str, other: str) -> str:
    return min(one, other, key=METRICS.index)


def _as_set(value: Any) -> Any:
    return set(value) if isinstance(value, tuple) else value


_SPECIAL: dict[str, Callable[[Any, Any], Any]] = {
    "experiments": _approved,
    "trust": _common,
    "units": _common,
    "mechanisms": _common,
    "methods": _common,
    "quiet_hours": _both,
    "metrics": _fewer_metrics,
    "min_noise_multiplier": max,
    "reply_slot": max,
}
_RULES = {field.name: _SPECIAL.get(field.name, min) for field in dataclasses.fields(Policy)}
"""How two values of each rule become one; all others are upper limits."""


def permit(policy: Policy, experiment: Experiment, approved: bool | None = None) -> None:
    """Let an experiment pass, or refuse it; decided from the experiment and the policy alone, never from the data.

    Args:
        policy: the rules.
        experiment: what is asked for.
        approved: whether it is approved; None to ask the policy alone.

    Raises:
        RefusedError: with the code and name of the rule that it breaks.
    """
    privacy = experiment.privacy
    if approved is None:
        approved = policy.approves(experiment)
    if not approved:
        raise _refusal(
            "EXPERIMENT_NOT_APPROVED",
            "experiments",
            "Ask the site's administrator to approve it: dpfpl-client approve --pending.",
        )
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
    if privacy.trust != "central" and exceeds([events["operator"]], policy.delta, policy.max_epsilon_operator):
        raise _refusal(
            "OPERATOR_EPSILON_OVER_CAP",
            "max_epsilon_operator",
            f"Towards the operator at most {policy.max_epsilon_operator:g}: fewer sites, or trust local.",
        )
    if exceeds([capped_event(experiment)], policy.delta, policy.max_epsilon_per_experiment):
        raise _refusal(
            "EPSILON_OVER_CAP",
            "max_epsilon_per_experiment",
            f"It would cost more; at most epsilon {policy.max_epsilon_per_experiment:g}.",
        )


def _refusal(code: str, rule: str, advice: str) -> RefusedError:
    return RefusedError(code=code, message=f"The site's policy forbids this experiment (rule {rule}).", advice=advice)
