"""A site's rules, policy.toml: what may ever leave it, whatever the operator sends.

The agent enforces them before each answer; the operator's plan asks them beforehand. They are decided from policy and
experiment alone, never from the data.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, Strict

from dpfpl_common.config import matching, settings
from dpfpl_common.errors import RefusedError
from dpfpl_common.experiment import Experiment, Mechanism, Method, Trust, Unit
from dpfpl_common.privacy.accounting import exceeds
from dpfpl_common.privacy_plan import capped_event, planned_events

__all__ = ["EXACT_METRICS", "Policy", "loosened", "permit", "stricter", "violations"]

Metrics = Literal["none", "noised", "coarse", "exact"]
EXACT_METRICS = ("coarse", "exact")
"""What may leave of public data only."""
COARSE_STEP = 0.05
_APPROVAL = r"\*|[a-z0-9][a-z0-9._-]{0,62}(@[0-9a-f]{12,64})?"
_HOURS = r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d"
Approval = Annotated[str, matching(_APPROVAL, "*, a name, or name@digest with 12 digits or more")]
Hours = Annotated[str, matching(_HOURS, "a time such as 22:00-06:00")]
Repository = Annotated[str, matching(r"[\w.-]+/[\w.-]+", "a repository's name such as my-hospital/xray-prompt")]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
CountOrNone = Annotated[int, Field(ge=0)]


@settings
class Policy:
    """The site's rules; an absent rule takes the strict default.

    Attributes:
        experiments: what is approved: ``*``, any experiment that keeps the other rules; ``name@digest``, that
            configuration, of which the first 12 digits are enough; ``name``, the first configuration that is run under
            it. What you approved by ``dpfpl-client approve`` is approved as well.
        max_epsilon_per_experiment: cap on what a personalised prompt of one experiment may tell its recipient.
        max_epsilon_operator: cap on what the messages of one experiment may tell the operator, who under
            ``distributed`` trust sees each with its share of the noise only. Does not bind under ``central``, where it
            is infinite and which must be allowed by name.
        max_epsilon_lifetime: cap over all experiments on the same data.
        max_epsilon_operator_lifetime: cap on what all of them together may tell the operator; does not bind while
            ``central`` is allowed.
        delta: the delta of all caps; an experiment's own may not be larger.
        trust: allowed trust modes. ``secure`` trusts the operator to follow the protocol of secure aggregation.
        units: allowed units of privacy. Naming ``site`` means that in such an experiment the caps hold against another
            site, and that the site's own prompt, trained without noise, must never leave it.
        mechanisms: allowed mechanisms.
        methods: allowed methods.
        min_noise_multiplier: the least noise that an experiment may have.
        max_clipping_norm: the largest clipping norm that an experiment may have.
        max_rounds: most rounds of one experiment.
        max_repeats: most charges of one experiment beyond one a round, for rounds that were interrupted.
        max_rounds_per_hour: most rounds computed within an hour.
        max_experiments_per_day: most experiments begun within a day.
        max_evaluations: most distinct prompts of one experiment whose exact accuracies may leave, besides one a round.
        max_evaluations_lifetime: most distinct evaluations answered over the data's lifetime, whatever they are called.
        metrics: what may leave of how well prompts do on held-back examples: none; noised, counts within the epsilon of
            the experiment; coarse (accuracies in multiples of 0.05) or exact, of data that are public only.
        publish: repositories of a model hub that ``dpfpl-client export --push-to-hub`` may upload prompts to.
        quiet_hours: times of the day, by the site's clock, at which nothing is computed: ``22:00-06:00``.
        reply_slot: seconds that every answer takes at least; an experiment's answers all take the same time, which is
            rehearsed on made-up examples (``dpfpl_client.agent.pace``).
    """

    experiments: Annotated[tuple[Approval, ...], Strict(False)]
    max_epsilon_per_experiment: Positive
    max_epsilon_lifetime: Positive
    delta: Annotated[float, Field(gt=0, lt=0.01)] = 1e-5
    max_epsilon_operator: Positive = 20.0
    max_epsilon_operator_lifetime: Positive = 40.0
    trust: Annotated[tuple[Trust, ...], Strict(False)] = ("distributed", "local")
    units: Annotated[tuple[Unit, ...], Strict(False)] = ("example",)
    mechanisms: Annotated[tuple[Mechanism, ...], Strict(False)] = get_args(Mechanism)
    methods: Annotated[tuple[Method, ...], Strict(False)] = get_args(Method)
    min_noise_multiplier: Positive = 0.3
    max_clipping_norm: Positive = 10.0
    max_rounds: Count = 500
    max_repeats: CountOrNone = 50
    max_rounds_per_hour: Count = 3600
    max_experiments_per_day: Count = 50
    max_evaluations: CountOrNone = 10
    max_evaluations_lifetime: CountOrNone = 500
    metrics: Metrics = "noised"
    publish: Annotated[tuple[Repository, ...], Strict(False)] = ()
    quiet_hours: Annotated[tuple[Hours, ...], Strict(False)] = ()
    reply_slot: Annotated[float, Field(gt=0, le=60)] = 0.1

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


def permit(policy: Policy, experiment: Experiment, approved: bool | None = None) -> None:
    """Return if the policy allows the experiment, else refuse it.

    Args:
        policy: the rules.
        experiment: what is asked for.
        approved: whether it is approved; None to ask the policy alone.

    Raises:
        RefusedError: with the code and name of the first rule that it breaks.
    """
    if approved is None:
        approved = policy.approves(experiment)
    if not approved:
        raise _broken(
            "EXPERIMENT_NOT_APPROVED",
            "experiments",
            "Ask the site's administrator to approve it: dpfpl-client approve --pending.",
        )
    for violation in violations(policy, experiment):
        raise violation


def violations(policy: Policy, experiment: Experiment) -> Iterator[RefusedError]:
    """Every rule that an approved experiment breaks on its own, whatever the site has spent before."""
    privacy = experiment.privacy
    if privacy.trust not in policy.trust:
        yield _broken("TRUST_NOT_ALLOWED", "trust", f"Allowed: {', '.join(policy.trust)}.")
    if privacy.unit not in policy.units:
        yield _broken("UNIT_NOT_ALLOWED", "units", f"Allowed: {', '.join(policy.units)}.")
    if privacy.mechanism not in policy.mechanisms:
        yield _broken("MECHANISM_NOT_ALLOWED", "mechanisms", f"Allowed: {', '.join(policy.mechanisms)}.")
    if privacy.accounting != "honest":
        yield _broken(
            "ACCOUNTING_NOT_HONEST", "accounting", "A site accepts honest accounting only; paper is for simulations."
        )
    if experiment.prompt.method not in policy.methods:
        yield _broken("METHOD_NOT_ALLOWED", "methods", f"Allowed: {', '.join(policy.methods)}.")
    if experiment.rounds.number > policy.max_rounds:
        yield _broken("TOO_MANY_ROUNDS", "max_rounds", f"At most {policy.max_rounds} rounds.")
    if max(privacy.clipping_norm, privacy.factor_norm) > policy.max_clipping_norm:
        yield _broken("CLIPPING_NORM_TOO_LARGE", "max_clipping_norm", f"At most {policy.max_clipping_norm:g}.")
    if (privacy.noise_multiplier or 0.0) < policy.min_noise_multiplier:
        yield _broken("TOO_LITTLE_NOISE", "min_noise_multiplier", f"At least {policy.min_noise_multiplier:g}.")
    if privacy.target_delta > policy.delta:
        yield _broken("DELTA_TOO_LARGE", "delta", f"At most {policy.delta:g}.")
    events = {event.adversary: event for event in planned_events(experiment)}
    if privacy.trust != "central" and exceeds([events["operator"]], policy.delta, policy.max_epsilon_operator):
        yield _broken(
            "OPERATOR_EPSILON_OVER_CAP",
            "max_epsilon_operator",
            f"At most {policy.max_epsilon_operator:g} towards the operator: use fewer sites, or trust local.",
        )
    if exceeds([capped_event(experiment)], policy.delta, policy.max_epsilon_per_experiment):
        yield _broken(
            "EPSILON_OVER_CAP",
            "max_epsilon_per_experiment",
            f"It would cost more than the policy's epsilon of {policy.max_epsilon_per_experiment:g}.",
        )


def _broken(code: str, rule: str, advice: str) -> RefusedError:
    """A refusal for one rule of the policy; the advice says what it allows."""
    return RefusedError(code=code, message="The site's policy forbids this experiment.", rule=rule, advice=advice)


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
    return min(one, other, key=get_args(Metrics).index)


def _as_set(value: Any) -> Any:
    return set(value) if isinstance(value, tuple) else value


_SPECIAL: dict[str, Callable[[Any, Any], Any]] = {
    "experiments": _approved,
    "trust": _common,
    "units": _common,
    "mechanisms": _common,
    "methods": _common,
    "publish": _common,
    "quiet_hours": _both,
    "metrics": _fewer_metrics,
    "min_noise_multiplier": max,
    "reply_slot": max,
}
_RULES = {field.name: _SPECIAL.get(field.name, min) for field in dataclasses.fields(Policy)}
"""How two values of each rule become one; all others are upper limits."""
