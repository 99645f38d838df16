"""How often an operator may make a site compute: an hour, a day, for one experiment, and at which times not at all."""

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from dpfpl_client.agent.ledger import Ledger
from dpfpl_client.agent.policy import Policy
from dpfpl_common.errors import RefusedError

__all__ = ["Quotas"]

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
            RefusedError: QUIET_HOURS, RATE_LIMITED, TOO_MANY_EXPERIMENTS or TOO_MANY_REPEATS.
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
        self._computed.append(now)

    def _check_experiment(self, policy: Policy, ledger: Ledger, experiment: str, round_number: int) -> None:
        begun = ledger.begun()
        today = datetime.now(UTC)
        recent = sum(abs(today - _time(at)) < timedelta(days=1) for at in begun.values())
        if experiment not in begun and recent >= policy.max_experiments_per_day:
            raise _refusal(
                "TOO_MANY_EXPERIMENTS", "max_experiments_per_day", f"At most {policy.max_experiments_per_day} a day."
            )
        repeat = ledger.find(experiment, round_number) is not None
        if repeat and ledger.repeats(experiment) >= policy.max_repeats:
            raise _refusal("TOO_MANY_REPEATS", "max_repeats", "Ask the site's administrator why rounds break off.")


def _time(at: str) -> datetime:
    try:
        return datetime.fromisoformat(at)
    except ValueError:  # of an old ledger's closing record
        return datetime.fromtimestamp(0, UTC)


def _refusal(code: str, rule: str, advice: str) -> RefusedError:
    return RefusedError(code=code, message=f"The site does not compute this now (rule {rule}).", advice=advice)
