"""How often an operator may make a site compute: an hour, a day, for one experiment, and at which times not at all."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta

from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_common.errors import RefusedError
from dpfpl_common.experiment import Experiment
from dpfpl_common.policy import Policy
from dpfpl_common.privacy.accounting import BOTH_PARTS, PrivacyEvent, epsilon, exceeds, exceeds_adaptively
from dpfpl_common.privacy_plan import ADVERSARIES, WHOLE_UPDATE, planned_events, planned_score_events

__all__ = ["Quotas", "check_budget", "held_to", "planned_cost", "spent"]


# Whether a site's caps cover what an experiment would cost on top of everything charged before.


RECIPIENTS = ("prompt_recipient", "other_site")


def check_budget(
    policy: Policy, ledger: Ledger, experiment: Experiment, events: Iterable[PrivacyEvent]
) -> tuple[PrivacyEvent, ...]:
    """Refuse before any work if one more charge would pass a cap; decided from the ledger alone.

    The whole plan must fit, or what was charged with this charge on top where retries made that more.

    Returns:
        The plan, if it is admitted only because nothing was charged before (see ``exceeds_adaptively``): then the
        ledger has to keep it. Else nothing.

    Args:
        policy: the caps.
        ledger: what was charged.
        experiment: who asks.
        events: the charge, for each adversary.

    Raises:
        RefusedError: BUDGET_EXHAUSTED, naming the rule; UNITS_DO_NOT_ADD_UP.
    """
    extra: dict[tuple[str, str], int] = {(event.adversary, event.part): event.steps for event in events}
    alone: list[PrivacyEvent] = []
    for adversary in ADVERSARIES:
        others = ledger.events_of_others(experiment.name, adversary)
        charged = ledger.events(experiment.name, adversary)
        plan = [
            _with_charged(planned, charged, extra.get((adversary, planned.part), 0))
            for planned in (*planned_events(experiment), *planned_score_events(experiment))
            if planned.adversary == adversary
        ]
        kinds = [dataclasses.replace(event, steps=0) for event in plan]
        plan += [event for event in charged if dataclasses.replace(event, steps=0) not in kinds]
        whole = plan[0].mechanism == WHOLE_UPDATE
        if any((other.mechanism == WHOLE_UPDATE) != whole for other in others):
            raise RefusedError(
                code="UNITS_DO_NOT_ADD_UP",
                message="This data was already charged under another unit of privacy.",
                rule="units",
                advice="Epsilons of single examples and of whole sites do not add up: use one unit for the same data.",
            )
        for rule, cap, sum_of in (
            *_rules(policy, experiment, adversary, lifetime=False, events=plan),
            *_rules(policy, experiment, adversary, lifetime=True, events=[*others, *plan]),
        ):
            # The plan is fixed before it begins; the next experiment may be chosen for what the last gave away.
            lifetime = rule.endswith("lifetime")
            over = exceeds_adaptively if others and lifetime else exceeds
            if over(sum_of, policy.delta, cap):
                raise RefusedError(
                    code="BUDGET_EXHAUSTED",
                    message="The site's privacy budget does not cover this experiment.",
                    rule=rule,
                    advice="Ask the site's administrator.",
                )
            if lifetime and not others and exceeds_adaptively(sum_of, policy.delta, cap):
                alone += plan
    return tuple(alone)


def _with_charged(planned: PrivacyEvent, charged: Sequence[PrivacyEvent], extra: int) -> PrivacyEvent:
    """A planned event with what retries made of it, less what was charged of it for both parts."""

    def steps(part: str) -> int:
        like = dataclasses.replace(planned, part=part)
        return sum(event.steps for event in charged if dataclasses.replace(event, steps=planned.steps) == like)

    return dataclasses.replace(planned, steps=max(planned.steps - steps(BOTH_PARTS), steps(planned.part) + extra))


def held_to(unit: str) -> tuple[str, ...]:
    """The adversaries whom the caps of a prompt's recipient hold; under the unit ``site`` that prompt never leaves."""
    return ("other_site",) if unit == "site" else RECIPIENTS


def spent(ledger: Ledger, delta: float, experiment: str | None = None) -> dict[str, float]:
    """Epsilon towards each adversary, of one experiment or of all.

    ``prompt_recipient`` is left out where whole data sets are protected: nothing is promised there.
    """
    sums = {adversary: ledger.events(experiment, adversary) for adversary in (*RECIPIENTS, "operator")}
    if any(event.mechanism == WHOLE_UPDATE for event in sums["other_site"]):
        del sums["prompt_recipient"]
    return {adversary: epsilon(events, delta) for adversary, events in sums.items()}


def planned_cost(ledger: Ledger | None, experiment: Experiment, delta: float) -> dict[str, tuple[float, float]]:
    """Epsilon towards each adversary of the experiment alone, and of all charges of others together with it."""
    costs = {}
    for adversary in ADVERSARIES:
        plan = [
            event
            for event in (*planned_events(experiment), *planned_score_events(experiment))
            if event.adversary == adversary
        ]
        others = ledger.events_of_others(experiment.name, adversary) if ledger is not None else []
        costs[adversary] = (epsilon(plan, delta), epsilon([*others, *plan], delta))
    return costs


def _rules(
    policy: Policy, experiment: Experiment, adversary: str, *, lifetime: bool, events: list[PrivacyEvent]
) -> list[tuple[str, float, list[PrivacyEvent]]]:
    if adversary == "operator":
        if "central" in policy.trust:  # the operator may see sums without noise: there is nothing to cap
            return []
        rule = "max_epsilon_operator_lifetime" if lifetime else "max_epsilon_operator"
    elif adversary in held_to(experiment.privacy.unit):
        rule = "max_epsilon_lifetime" if lifetime else "max_epsilon_per_experiment"
    else:
        return []
    return [(rule, float(getattr(policy, rule)), events)]


HOUR_S = 3600.0


class Quotas:
    """Remembers, since the start, when something was computed. Answers that are stored already cost no quota.

    Args:
        monotonic: seconds that no one can set back.
        local_time: the site's clock.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        local_time: Callable[[], time.struct_time] = time.localtime,
    ) -> None:
        self._monotonic, self._local_time = monotonic, local_time
        self._computed: deque[float] = deque()

    def take(self, policy: Policy, ledger: Ledger, experiment: str, round_number: int | None) -> None:
        """Count one computation in, or refuse it before anything is reserved; decided without the data.

        Args:
            policy: the limits.
            ledger: what was computed before.
            experiment: its name.
            round_number: the round; None for an evaluation.

        Raises:
            RefusedError: QUIET_HOURS, RATE_LIMITED, TOO_MANY_EXPERIMENTS, TOO_MANY_REPEATS or TOO_MANY_EVALUATIONS.
        """
        if policy.quiet_at(self._local_time()):
            raise _refusal("QUIET_HOURS", "quiet_hours", "Ask again outside these hours.")
        now = self._monotonic()
        while self._computed and self._computed[0] <= now - HOUR_S:
            self._computed.popleft()
        if len(self._computed) >= policy.max_rounds_per_hour:
            raise _refusal("RATE_LIMITED", "max_rounds_per_hour", f"At most {policy.max_rounds_per_hour} an hour.")
        if round_number is not None:
            self._check_experiment(policy, ledger, experiment, round_number)
        elif ledger.evaluation_count >= policy.max_evaluations_lifetime:
            raise _refusal(
                "TOO_MANY_EVALUATIONS",
                "max_evaluations_lifetime",
                f"At most {policy.max_evaluations_lifetime} over the lifetime of the data; only the site's "
                "administrator can raise that.",
            )
        self._computed.append(now)

    def _check_experiment(self, policy: Policy, ledger: Ledger, experiment: str, round_number: int) -> None:
        begun = ledger.begun()
        today = datetime.now(UTC)
        recent = sum(abs(today - datetime.fromisoformat(at)) < timedelta(days=1) for at in begun.values())
        if experiment not in begun and recent >= policy.max_experiments_per_day:
            raise _refusal(
                "TOO_MANY_EXPERIMENTS", "max_experiments_per_day", f"At most {policy.max_experiments_per_day} a day."
            )
        repeat = ledger.find(experiment, round_number) is not None
        if repeat and ledger.repeats(experiment) >= policy.max_repeats:
            raise _refusal("TOO_MANY_REPEATS", "max_repeats", "Ask the site's administrator why rounds break off.")


def _refusal(code: str, rule: str, advice: str) -> RefusedError:
    return RefusedError(
        code=code,
        message="The site does not compute this now: a rule of its policy forbids it.",
        rule=rule,
        advice=advice,
    )
