"""The server's part of one secure sum: it forwards what sites seal, adds masked integers, unmasks the sum."""

import hashlib
from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dpfpl_common.errors import PayloadError, RoundError
from dpfpl_common.secure import STEPS
from dpfpl_common.secure import primitives as p
from dpfpl_common.secure.graph import neighbourhoods
from dpfpl_common.secure.site import masking_key, pair_mask, self_mask
from dpfpl_common.secure.terms import Keys, Terms, named, names_of

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
        self._totals: dict[int, p.Words] = {}
        self._size = 0
        self._keys: dict[str, Keys] = {}
        self._around: dict[str, tuple[str, ...]] = {}

    def to_bytes(self) -> bytes:
        """What is needed to ask for the last step again; nothing of it says anything about a site."""
        assert self.step == "unmask"
        keys = named({site: keys.to_bytes() for site, keys in self._keys.items()})
        taken = (named({site: self._taken[step].get(site, b"") for site in self._taken[step]}) for step in (1, 2))
        around = (p.framed(*(site.encode() for site in sites)) for sites in (self._taken[0], self._alive))
        return p.framed(keys, *around, *taken, self._totals[self._size].tobytes())

    @classmethod
    def from_bytes(cls, terms: Terms, content: bytes) -> "ServerSum":
        """The inverse, for an attempt that was interrupted in the last step."""
        keys, first, alive, shared, masked, total = p.unframed(content)
        found = cls(terms)
        found._keys = {site: Keys.from_bytes(own) for site, own in names_of(keys, terms).items()}
        found._taken[0] = {site.decode(): b"" for site in p.unframed(first)}
        found._taken[1], found._taken[2] = names_of(shared, terms), names_of(masked, terms)
        found._alive = [site.decode() for site in p.unframed(alive)]
        found._size, found._step = len(total) // 8, 3
        found._totals = {found._size: np.frombuffer(total, dtype="<u8")}
        found._around = found._neighbourhoods(sorted(found._taken[0]))
        return found

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
                if not reply or len(reply) % 8:
                    raise PayloadError(code="WRONG_SHAPE", message="The reply is no list of masked integers.")
                words = np.frombuffer(reply, dtype="<u8")
                self._totals[len(words)] = self._totals.get(len(words), np.uint64(0)) + words
                reply = len(words).to_bytes(8, "big")
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
        if self.step == "masked":
            self._keep_the_usual_size()
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
            self._around = self._neighbourhoods(answered)
        self._step += self._step < 3

    def total(self) -> Ints:
        """[...], the sum of the survivors' integers, after the last step.

        Raises:
            RoundError: too few shares of a site, or wrong ones.
        """
        told = {site: names_of(reply, self.terms) for site, reply in self._taken[3].items()}
        total = self._totals[self._size].copy()
        for site in self.survivors:
            secret = self._secret(site, told)
            if p.commitment(secret, self.terms.label) != self._keys[site].commitment:
                raise _bad_shares(site)
            total -= self_mask(self.terms, site, secret, self._size)
        for site in self._gone:
            key = masking_key(self.terms, self._secret(site, told))
            if key.public_key().public_bytes_raw() != self._keys[site].masking:
                raise _bad_shares(site)
            for peer in self._around[site]:
                if peer in self._taken[2]:  # what it would have added for that peer is missing
                    total += pair_mask(self.terms, key, site, peer, self._keys[peer].masking, self._size)
        return total.view(np.int64)

    def _neighbourhoods(self, sites: list[str]) -> dict[str, tuple[str, ...]]:
        return neighbourhoods(sites, self.terms.degree, hashlib.sha256(self._key_list).digest())

    def _keep_the_usual_size(self) -> None:
        """A site whose model gives features of another length is gone: its integers are not in the sum."""
        sizes = Counter(self._taken[2].values())
        if sizes:
            usual = sizes.most_common(1)[0][0]
            self._taken[2] = {site: size for site, size in self._taken[2].items() if size == usual}
            self._size = int.from_bytes(usual, "big")

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
