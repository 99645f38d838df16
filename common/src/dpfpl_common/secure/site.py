"""A site's part of one secure sum: a state machine that answers each of four steps once.

::

    keys      -> own public keys
    shares    all sites' keys            -> for each neighbour: shares of both own secrets, sealed to it
    masked    shares sealed to this site -> own integers + own mask +- one mask for each neighbour, modulo 2^64
    unmask    survivors and gone         -> the share of each survivor's own mask, of each gone site's key

What it refuses: a step out of order, a second request for a step, an unknown or changed peer, a share that its sender
did not seal for this attempt, a list of fewer than N - D sites, and a request for both shares of one site. So with a
threshold above (N + K) / 2 no two lists of survivors can be unmasked, and the server learns one sum over at least
N - D sites. The guarantee is computational, against a server that follows the protocol and keeps what it sees,
with at most K sites; against one that invents sites, or puts keys of its own in a site's place, it needs ``peers``.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from dpfpl_common.errors import PayloadError, RefusedError
from dpfpl_common.secure import STEPS
from dpfpl_common.secure import primitives as p
from dpfpl_common.secure.enrolment import fingerprint
from dpfpl_common.secure.graph import neighbourhoods
from dpfpl_common.secure.terms import Keys, Terms, named, names_of

__all__ = ["Answered", "SiteSum", "masking_key", "pair_mask", "self_mask", "signed_survivors", "survivors_in"]

Ints = npt.NDArray[np.int64]


@dataclass
class Answered:
    """What a site keeps of an attempt, durably, before a reply leaves.

    Attributes:
        secret: 32 bytes from which all of its secrets come; empty once it has answered the last step.
        requests: contents of the steps' requests so far.
        replies: what was answered to each.
    """

    secret: bytes
    requests: list[bytes] = field(default_factory=list)
    replies: list[bytes] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """As it lies on the site's disk."""
        return p.framed(self.secret, p.framed(*self.requests), p.framed(*self.replies))

    @classmethod
    def from_bytes(cls, content: bytes) -> "Answered":
        """The inverse."""
        secret, requests, replies = p.unframed(content)
        return cls(secret, p.unframed(requests), p.unframed(replies))


class SiteSum:
    """One site in one attempt.

    Args:
        terms: of the attempt.
        site: this site.
        answered: what was answered before; None begins.
        key: the site's aggregation key, which signs; None leaves its keys unsigned.
        peers: fingerprints of the aggregation keys that people at this site have compared, by site. Where there are
            any, every other site must have one, and its keys must be signed with that key.
    """

    def __init__(
        self,
        terms: Terms,
        site: str,
        answered: Answered | None = None,
        *,
        key: Ed25519PrivateKey | None = None,
        peers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._terms, self._site = terms, site
        self._key, self._peers = key, peers
        self.answered = answered or Answered(os.urandom(32))

    def answer(self, step: str, request: bytes, values: Ints | None = None) -> bytes:
        """The reply to one step's request; the same again gets the same bytes.

        Args:
            step: one of STEPS.
            request: the server's.
            values: for the step ``masked``: integers, already noised; the same in every attempt.

        Raises:
            RefusedError: STEP_ORDER or STEP_ANSWERED, and what else a request must not be.
            PayloadError: the request is no such request.
        """
        number, done = STEPS.index(step), self.answered
        if not done.secret and step != STEPS[-1]:
            raise _refused("STEP_ANSWERED", "The attempt has ended", "one answer a step")
        if number < len(done.requests):
            if done.requests[number] != _kept(step, request):
                raise _refused("STEP_ANSWERED", f"The step {step} was answered to another request", "one answer a step")
            return done.replies[number]
        if number != len(done.requests):
            raise _refused("STEP_ORDER", f"The step {step} is not the next one", "order of steps")
        if step == "masked":
            assert values is not None
            reply = self._masked(request, values)
        else:
            reply = {"keys": self._own_keys, "shares": self._own_shares, "unmask": self._unmask}[step](request)
        done.requests.append(_kept(step, request))
        done.replies.append(reply)
        if step == STEPS[-1]:  # nothing is left to answer, so nothing is left to steal
            done.secret, done.requests[:3], done.replies[:3] = b"", [b""] * 3, [b""] * 3
        return reply

    def _own_keys(self, request: bytes) -> bytes:
        if request:
            raise PayloadError(code="MALFORMED", message="The first step asks for nothing in particular.")
        return self._keys().to_bytes()

    def _keys(self) -> Keys:
        label = self._terms.label
        sealing, masking = (key.public_key().public_bytes_raw() for key in (self._sealing(), self._masking()))
        keys = Keys(sealing, masking, p.commitment(self._secret(b"mask"), label))
        if self._key is None:
            return keys
        signature, signer = self._key.sign(keys.signed(self._terms, self._site)), self._key.public_key()
        return replace(keys, signature=signature, signer=signer.public_bytes_raw())

    def _own_shares(self, request: bytes) -> bytes:
        terms, everybody = self._terms, self._everybody(request)
        holders = neighbourhoods(list(everybody), terms.degree, _seed(request))[self._site]
        secrets = (p.shares(self._secret(name), terms.threshold, len(holders)) for name in (b"mask", b"pair"))
        boxes = {}
        for holder, of_mask, of_pair in zip(holders, *secrets, strict=True):
            key = p.agreed(self._sealing(), everybody[holder].sealing)
            about = self._about(self._site, holder)
            boxes[holder] = p.sealed(p.derived(key, terms.label, b"share", about), of_mask + of_pair, about)
        return named(boxes)

    def _everybody(self, request: bytes) -> dict[str, Keys]:
        """The keys of all sites that take part, checked."""
        terms = self._terms
        everybody = {site: Keys.from_bytes(content) for site, content in names_of(request, terms).items()}
        own = everybody.get(self._site)
        if own is None or own.to_bytes() != self.answered.replies[0]:
            raise _refused("OTHER_KEYS", "The list of keys lacks this site's own", "own keys")
        _enough(len(everybody), terms, "take part")
        if len({key for keys in everybody.values() for key in (keys.sealing, keys.masking)}) < 2 * len(everybody):
            raise _refused("SAME_KEYS", "Two sites have the same keys", "one key a site")
        for site, keys in everybody.items():
            if self._peers and site != self._site:
                self._check_peer(site, keys)
        return everybody

    def _check_peer(self, site: str, keys: Keys) -> None:
        pinned = self._peers.get(site)
        if pinned is None:
            raise RefusedError(
                code="PEER_NOT_PINNED",
                message=f"Nobody at this site has compared the aggregation key of {site!r}.",
                rule="peers",
                advice=f"At the site: ask the people at {site} for its fingerprint, then dpfpl-client peers pin "
                f"{site} FINGERPRINT; or run the experiment without {site}.",
            )
        try:
            signer = Ed25519PublicKey.from_public_bytes(keys.signer)
            signer.verify(keys.signature, keys.signed(self._terms, site))
            right = fingerprint(signer) == pinned
        except (ValueError, InvalidSignature):  # also where it signed nothing
            right = False
        if not right:
            raise RefusedError(
                code="PEER_KEY_WRONG",
                message=f"The keys of {site!r} are not signed with the aggregation key that this site pinned.",
                rule="peers",
                advice=f"At the site: dpfpl-client peers show, and ask the people at {site} whether they made new "
                "keys. If they did not, somebody between the sites wants to read their sums.",
            )

    def _masked(self, request: bytes, values: Ints) -> bytes:
        terms, everybody = self._terms, names_of(self.answered.requests[1], self._terms)
        around = neighbourhoods(list(everybody), terms.degree, _seed(self.answered.requests[1]))[self._site]
        boxes = names_of(request, terms)
        if not set(boxes) <= set(everybody):
            raise _refused("UNKNOWN_PEER", "A site shares that gave no keys", "one list of keys")
        _enough(len(boxes), terms, "share")
        if self._site not in boxes:
            raise _refused("OTHER_SHARES", "The list lacks this site's own shares", "own shares")
        total = values.view(np.uint64) + self_mask(terms, self._site, self._secret(b"mask"), len(values))
        for peer in around:
            if peer in boxes:
                self._open(peer, boxes[peer])  # a share that cannot be opened later would let nobody drop out
                if peer != self._site:
                    public = self._peer(peer).masking
                    total = total + pair_mask(terms, self._masking(), self._site, peer, public, len(values))
        return bytes(total.astype("<u8").tobytes())

    def _unmask(self, request: bytes) -> bytes:
        terms, boxes = self._terms, names_of(self.answered.requests[2], self._terms)
        survivors, gone = survivors_in(request, terms)
        if set(survivors) & set(gone):
            raise _refused("BOTH_SHARES", "Both shares of one site are asked for", "one share a site")
        if set(survivors) | set(gone) != set(boxes):
            raise _refused("OTHER_SURVIVORS", "The list is not about the sites that shared", "one list of sites")
        _enough(len(survivors), terms, "survive")
        everybody = names_of(self.answered.requests[1], terms)
        around = neighbourhoods(list(everybody), terms.degree, _seed(self.answered.requests[1]))[self._site]
        told = {}
        for peer in around:
            if peer in boxes:
                content = self._open(peer, boxes[peer])
                half = len(content) // 2
                told[peer] = content[:half] if peer in survivors else content[half:]
        signature = b"" if self._key is None else self._key.sign(signed_survivors(terms, self._site, request))
        return p.framed(hashlib.sha256(request).digest(), signature, named(told))

    def _open(self, peer: str, box: bytes) -> bytes:
        about = self._about(peer, self._site)
        key = p.agreed(self._sealing(), self._peer(peer).sealing)
        content = p.opened(p.derived(key, self._terms.label, b"share", about), box, about)
        if len(content) != 2 * p.SECRET_BYTES:
            raise PayloadError(code="FORGED_SHARE", message=f"{peer!r} sealed something else than shares.")
        return content

    def _peer(self, peer: str) -> Keys:
        return Keys.from_bytes(names_of(self.answered.requests[1], self._terms)[peer])

    def _secret(self, name: bytes) -> bytes:
        return p.derived(self.answered.secret, self._terms.label, b"secret", name, size=p.SECRET_BYTES)

    def _sealing(self) -> X25519PrivateKey:
        return p.private_key(self.answered.secret, self._terms.label, b"sealing")

    def _masking(self) -> X25519PrivateKey:
        return masking_key(self._terms, self._secret(b"pair"))

    def _about(self, sender: str, holder: str) -> bytes:
        return p.framed(self._terms.label, sender.encode(), holder.encode())


def survivors_in(request: bytes, terms: Terms) -> tuple[list[str], list[str]]:
    """Survivors and gone of the last step's request."""
    parts = p.unframed(request)
    if len(parts) != 2:
        raise PayloadError(code="MALFORMED", message="The last step asks about survivors and gone sites.")
    survivors, gone = (list(names_of(part, terms)) for part in parts)
    return survivors, gone


def signed_survivors(terms: Terms, site: str, request: bytes) -> bytes:
    """What a site signs in the last step: that it answered this list of survivors, so no other one."""
    return p.framed(terms.label, site.encode(), b"survivors", request)


def masking_key(terms: Terms, secret: bytes) -> X25519PrivateKey:
    """The key that a site's masks with its neighbours come from."""
    return p.private_key(secret, terms.label, b"masking")


def self_mask(terms: Terms, site: str, secret: bytes, size: int) -> p.Words:
    """[size], a site's own mask."""
    return p.mask(p.derived(secret, terms.label, b"self mask", site.encode()), size)


def pair_mask(terms: Terms, own: X25519PrivateKey, site: str, peer: str, public: bytes, size: int) -> p.Words:
    """[size], what ``site`` adds for ``peer``: the negative, modulo 2^64, of what that one adds for it."""
    first, second = sorted((site, peer))
    key = p.derived(p.agreed(own, public), terms.label, b"pair mask", first.encode(), second.encode())
    words = p.mask(key, size)
    return words if site == first else np.negative(words)


def _seed(keys: bytes) -> bytes:
    return hashlib.sha256(keys).digest()


def _kept(step: str, request: bytes) -> bytes:
    """What is kept of a request to know it again; the first three steps' contents are needed later."""
    return hashlib.sha256(request).digest() if step == STEPS[-1] else request


def _enough(count: int, terms: Terms, do: str) -> None:
    if count < terms.least:
        raise _refused("TOO_FEW_SITES", f"{count} sites {do}, {terms.least} are needed", "least sites")


def _refused(code: str, message: str, rule: str) -> RefusedError:
    return RefusedError(code=code, message=f"{message}.", rule=rule, advice="Begin another attempt.")
