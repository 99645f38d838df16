"""The most that may ever leave a site, whatever the operator sends: policy.toml."""

import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import MECHANISMS, METHODS, TRUST_MODES, UNITS, Experiment
from dpfpl_common.settings import from_table, read_toml

__all__ = ["METRICS", "Policy", "load_policy"]

METRICS = ("none", "coarse", "exact")
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
        max_evaluations: most distinct prompts whose accuracies are told of one experiment, besides one a round.
        metrics: which accuracies may leave: none, coarse (multiples of 0.05) or exact.
        quiet_hours: times of the day, by the site's clock, at which nothing is computed: ``22:00-06:00``.
        reply_slot: seconds; every answer is held back until a multiple of them has passed since it was asked for, and
            says as its duration no more than that.
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
    metrics: str = "coarse"
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
        for key in ("max_repeats", "max_evaluations"):
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
