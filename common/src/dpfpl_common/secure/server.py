"""The server's part of one secure sum: it forwards what sites seal, adds masked integers, unmasks the sum."""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dpfpl_common.errors import PayloadError, RoundError
from dpfpl_common.secure import primitives as p
from dpfpl_common.secure.graph import neighbourhoods
from dpfpl_common.secure.site import masking_key, pair_mask, self_mask
from dpfpl_common.secure.terms import STEPS, Keys, Terms, named, names_of

__all__ = ["ServerSum"]

Ints = npt.NDArray[np.int64]


class ServerSum:
    """One attempt. For each of STEPS: ``requests``, then ``take`` for every reply, then ``close``.

    Args:
        terms: of the attempt.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self._step = 0
        self._alive = list(terms.sites)
        self._taken: list[dict[str, bytes]] = [{} for _ in STEPS]
        self._total = np.zeros(terms.size, dtype=np.uint64)
        self._keys: dict[str, Keys] = {}
        self._around: dict[str, tuple[str, ...]] = {}

    @property
    def step(self) -> str:
        """The step that is asked for now."""
        return STEPS[self._step]

    @property
    def survivors(self) -> tuple[str, ...]:
        """The sites whose integers are in the sum; known after the third step."""
        return tuple(sorted(self._taken[2]))

    def requests(self) -> dict[str, bytes]:
        """What each site that is still there is asked now."""
        match self.step:
            case "keys":
                return dict.fromkeys(self._alive, b"")
            case "shares":
                return dict.fromkeys(self._alive, self._key_list)
            case "masked":
                sealed = {sender: names_of(boxes, self.terms) for sender, boxes in self._taken[1].items()}
                return {
                    site: named({sender: boxes.get(site, b"") for sender, boxes in sealed.items()})
                    for site in self._alive
                }
            case _:
                return dict.fromkeys(self._alive, self._last_request)

    def take(self, site: str, reply: bytes) -> None:
        """A site's reply to the present step.

        Raises:
            PayloadError: it is none, or the site is not asked any more.
        """
        if site not in self._alive or site in self._taken[self._step]:
            raise PayloadError(code="NOT_ASKED", message="The site is not asked in this step, or answered already.")
        match self.step:
            case "keys":
                self._keys[site] = Keys.from_bytes(reply)
            case "shares":
                if set(names_of(reply, self.terms)) != set(self._around[site]):
                    raise PayloadError(code="OTHER_SHARES", message="The site shares with others than its neighbours.")
            case "masked":
                if len(reply) != 8 * self.terms.size:
                    raise PayloadError(code="WRONG_SHAPE", message=f"Not {self.terms.size} masked integers.")
                self._total += np.frombuffer(reply, dtype="<u8")
                reply = b""
            case _:
                parts = p.unframed(reply)
                if len(parts) != 3 or parts[0] != hashlib.sha256(self._last_request).digest():
                    raise PayloadError(code="OTHER_SURVIVORS", message="The reply is about another list of survivors.")
                reply = parts[2]
                if any(len(share) != p.SECRET_BYTES for share in names_of(reply, self.terms).values()):
                    raise PayloadError(code="BAD_SHARES", message="A share has the wrong length.")
        self._taken[self._step][site] = reply

    def close(self) -> None:
        """End the present step; who did not answer is gone.

        Raises:
            RoundError: TOO_FEW_SITES: the attempt is lost, and nothing of it says anything.
        """
        answered = sorted(self._taken[self._step])
        least = self.terms.least if self._step < 3 else min(self.terms.least, self.terms.threshold)
        if len(answered) < least:
            raise RoundError(
                code="TOO_FEW_SITES",
                message=f"{len(answered)} sites answered the secure step {self.step}, {least} are needed.",
                advice="The attempt is abandoned; nothing can be read from what was sent.",
            )
        self._alive = answered
        if self.step == "keys":
            seed = hashlib.sha256(self._key_list).digest()
            self._around = neighbourhoods(answered, self.terms.degree, seed)
        self._step += self._step < 3

    def total(self) -> Ints:
        """[size], the sum of the survivors' integers, after the last step.

        Raises:
            RoundError: too few shares of a site, or wrong ones.
        """
        told = {site: names_of(reply, self.terms) for site, reply in self._taken[3].items()}
        total = self._total.copy()
        for site in self.survivors:
            secret = self._secret(site, told)
            if p.commitment(secret, self.terms.label) != self._keys[site].commitment:
                raise _bad_shares(site)
            total -= self_mask(self.terms, site, secret)
        for site in self._gone:
            key = masking_key(self.terms, self._secret(site, told))
            if key.public_key().public_bytes_raw() != self._keys[site].masking:
                raise _bad_shares(site)
            for peer in self._around[site]:
                if peer in self._taken[2]:  # what it would have added for that peer is missing
                    total += pair_mask(self.terms, key, site, peer, self._keys[peer].masking)
        return total.view(np.int64)

    @property
    def _key_list(self) -> bytes:
        return named({site: self._keys[site].to_bytes() for site in sorted(self._taken[0])})

    @property
    def _gone(self) -> list[str]:
        return sorted(set(self._taken[1]) - set(self._taken[2]))

    @property
    def _last_request(self) -> bytes:
        lists = (dict.fromkeys(names, b"") for names in (self.survivors, self._gone))
        return p.framed(*(named(names) for names in lists))

    def _secret(self, site: str, told: Mapping[str, Mapping[str, bytes]]) -> bytes:
        holders = self._around[site]
        held = [(number, told[holder][site]) for number, holder in enumerate(holders, start=1)
                if site in told.get(holder, {})]  # fmt: skip
        try:
            return p.combined(self.terms.threshold, held)
        except PayloadError:
            raise _bad_shares(site) from None


def _bad_shares(site: str) -> RoundError:
    return RoundError(
        code="BAD_SHARES",
        message=f"Too few of the shares of {site!r} came, or wrong ones.",
        advice="The sum cannot be unmasked; the attempt is abandoned.",
    )
