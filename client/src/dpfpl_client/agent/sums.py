"""A site's part of an experiment's secure sums: what is kept of each, and the rule of one sum.

Order: with the first step, bind and check the budget. Before the masked message, RESERVE (durable), write the noised
integers (durable) and COMMIT; only then may the message leave. A broken attempt is followed by another with new masks
and the same integers. Once a site has helped to unmask an attempt, it takes part in no other. So however often a
server asks, it learns one sum.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dpfpl_client.agent.keys import AggregationKeys
from dpfpl_common.errors import PayloadError, RefusedError, StateError
from dpfpl_common.secure.primitives import framed, unframed
from dpfpl_common.secure.site import Answered, SiteSum
from dpfpl_common.secure.terms import Keys, names_of, terms_of
from dpfpl_common.wire.payloads import SumReply, SumRequest

__all__ = ["KeptSum", "next_step"]

Ints = npt.NDArray[np.int64]


@dataclass
class KeptSum:
    """What a site keeps of one sum.

    Attributes:
        attempt: the newest.
        answered: what was answered in it.
        values: the integers, already noised, with this site's share of the noise only: they never leave it as they are.
            None before they are computed, and once the sum is unmasked.
    """

    attempt: int = 0
    answered: Answered = field(default_factory=lambda: Answered(b""))
    values: Ints | None = None

    @property
    def unmasked(self) -> bool:
        """Whether this site has told what unmasks the sum."""
        return len(self.answered.replies) == 4

    def to_bytes(self) -> bytes:
        """As it lies on the disk."""
        values = b"" if self.values is None else self.values.astype("<i8").tobytes()
        return framed(str(self.attempt).encode(), self.answered.to_bytes(), values)

    @classmethod
    def from_bytes(cls, content: bytes) -> "KeptSum":
        """The inverse.

        Raises:
            StateError: the bytes are no complete record.
        """
        try:
            attempt, answered, values = unframed(content)
            kept = np.frombuffer(values, dtype="<i8").astype(np.int64) if values else None
            return cls(int(attempt), Answered.from_bytes(answered), kept)
        except (PayloadError, ValueError) as error:
            raise StateError(
                code="RECORD_DAMAGED",
                message=f"What is kept of a secure sum cannot be read ({type(error).__name__}).",
                advice="Restore the state folder from a backup.",
            ) from None

    def digest(self) -> str:
        """sha256 of the integers."""
        assert self.values is not None
        return hashlib.sha256(self.values.astype("<i8").tobytes()).hexdigest()


def next_step(
    kept: KeptSum,
    request: SumRequest,
    site: str,
    compute: Callable[[], Ints],
    keep: Callable[[KeptSum], None],
    own: AggregationKeys,
) -> SumReply:
    """The reply to one step of a sum; what it rests on is kept before it leaves.

    Args:
        kept: what is kept of the sum.
        request: the server's.
        site: this site.
        compute: charges and gives the noised integers; called once for a sum.
        keep: writes durably.
        own: the site's aggregation key, and what it knows of its peers'.

    Raises:
        RefusedError: ATTEMPT_OVER, SUM_RELEASED, or what the protocol refuses: PEER_NOT_PINNED, PEER_KEY_WRONG, ...
    """
    if request.attempt < kept.attempt:
        raise _refused("ATTEMPT_OVER", "A later attempt at this sum has begun", "order of attempts")
    if request.attempt > kept.attempt:
        if kept.unmasked:
            raise _refused("SUM_RELEASED", "This site has unmasked an earlier attempt", "one sum")
        if request.step != "keys":
            raise _refused("STEP_ORDER", "An attempt begins with keys", "order of steps")
    terms = terms_of(request.experiment, request.sum, request.attempt)
    again = request.attempt == kept.attempt
    if request.step == "shares":
        own.see(
            {peer: Keys.from_bytes(keys) for peer, keys in names_of(request.content, terms).items() if peer != site}
        )
    part = SiteSum(terms, site, kept.answered if again else None, key=own.key, peers=own.pinned())
    if request.step == "masked" and kept.values is None and kept.answered.secret:
        kept.values = compute()
        keep(kept)
    content = part.answer(request.step, request.content, kept.values)
    now = KeptSum(request.attempt, part.answered, kept.values)
    keep(KeptSum(request.attempt, part.answered) if now.unmasked else now)
    return SumReply(site, content)


def _refused(code: str, message: str, rule: str) -> RefusedError:
    return RefusedError(code=code, message=f"{message}.", rule=rule, advice="Go on with the sum that there is.")
