"""What one sum is about: the terms that every site holds the server to, and what sites say of themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from dpfpl_common.errors import PayloadError
from dpfpl_common.experiment import Experiment
from dpfpl_common.secure.graph import degree_for, holders_threshold
from dpfpl_common.secure.primitives import framed, unframed

__all__ = ["Keys", "Terms", "named", "names_of", "terms_of"]


@dataclass(frozen=True)
class Terms:
    """One attempt at one sum.

    Attributes:
        experiment: its digest.
        sum: what is added up, once in an experiment.
        attempt: 1-based; each has keys of its own, and one at most is unmasked.
        sites: the experiment's, in its order.
        dropouts: D, sites that may be missing at the end.
        colluders: K, sites that may pool what they know with the server.
    """

    experiment: str
    sum: str
    attempt: int
    sites: tuple[str, ...]
    dropouts: int
    colluders: int

    @property
    def least(self) -> int:
        """Sites without which nothing is unmasked: with fewer the sum holds less noise than was counted on."""
        return len(self.sites) - self.dropouts

    @cached_property
    def degree(self) -> int:
        """Neighbours of every site."""
        return degree_for(len(self.sites), self.dropouts, self.colluders)

    @cached_property
    def threshold(self) -> int:
        """Shares that unmask one site."""
        return holders_threshold(len(self.sites), self.colluders, self.degree)

    @cached_property
    def label(self) -> bytes:
        """Everything above as bytes: it enters every key, so nothing of one attempt fits another."""
        numbers = f"{self.attempt} {self.dropouts} {self.colluders}"
        about = ("DP-FPL secure aggregation 1", self.experiment, self.sum, numbers, *self.sites)
        return framed(*(part.encode() for part in about))


def terms_of(experiment: Experiment, name: str, attempt: int) -> Terms:
    """The terms of one attempt at a sum, from the experiment alone: no server can choose them."""
    privacy = experiment.privacy
    dropouts, colluders = privacy.tolerated_dropouts, privacy.tolerated_colluders
    return Terms(experiment.digest(), name, attempt, experiment.sites, dropouts, colluders)


@dataclass(frozen=True)
class Keys:
    """What a site says of itself in the first step.

    Attributes:
        sealing: X25519 key that shares are sealed to.
        masking: X25519 key that masks of pairs come from.
        commitment: to the seed of the site's own mask.
        signature: Ed25519, by the site's aggregation key over ``signed``; empty where it has none.
        signer: the public half of that key.
    """

    sealing: bytes
    masking: bytes
    commitment: bytes
    signature: bytes = b""
    signer: bytes = b""

    def signed(self, terms: Terms, site: str) -> bytes:
        """What is signed: these keys, of this site, for this attempt."""
        return framed(terms.label, site.encode(), self.sealing, self.masking, self.commitment)

    def to_bytes(self) -> bytes:
        """As it crosses the wire."""
        return framed(self.sealing, self.masking, self.commitment, self.signature, self.signer)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Keys":
        """PayloadError, MALFORMED, if it is none."""
        parts = unframed(content)
        if [len(part) for part in parts] not in ([32, 32, 32, 0, 0], [32, 32, 32, 64, 32]):
            raise PayloadError(code="MALFORMED", message="A site's keys are not what they must be.")
        return cls(*parts)


def named(content: Mapping[str, bytes]) -> bytes:
    """One value for each of several sites, sorted by name."""
    return framed(*(part for site in sorted(content) for part in (site.encode(), content[site])))


def names_of(content: bytes, terms: Terms) -> dict[str, bytes]:
    """The inverse of ``named``.

    Raises:
        PayloadError: MALFORMED; UNKNOWN_PEER, a site that is not the experiment's, or not in order, so named twice.
    """
    parts = unframed(content)
    if len(parts) % 2:
        raise PayloadError(code="MALFORMED", message="A list of sites is cut off.")
    names = [part.decode(errors="replace") for part in parts[::2]]
    if strangers := set(names) - set(terms.sites):
        stranger = min(strangers)[:63]
        raise PayloadError(code="UNKNOWN_PEER", message=f"The site {stranger!r} is not one of the experiment's.")
    if names != sorted(set(names)):
        raise PayloadError(code="UNKNOWN_PEER", message="A list names a site twice, or is not sorted.")
    return dict(zip(names, parts[1::2], strict=True))
