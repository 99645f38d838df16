"""Who masks with whom: everybody with everybody up to FULL_UP_TO sites, above that with some (Bell et al. 2020).

Every site's work grows with the number of its neighbours. Above FULL_UP_TO the sites stand on a circle, in an order
that no site and no server can choose alone (a hash of all keys), and each masks with the ``degree / 2`` next ones on
either side (a Harary graph). A site's secrets are shared among its neighbours and itself. What may then go wrong, each
with chance FAILURE at most, over the order:

- connection: the honest survivors must stay connected, or the sum over one part alone could be read. It takes two runs
  of ``degree / 2`` sites in a row that collude or drop out to cut the circle, so none is allowed;
- privacy: of a neighbourhood of m holders with c colluders, two lists of survivors can both be unmasked only if
  ``2 threshold <= m + c``;
- completion: at least ``threshold`` holders of a neighbourhood must answer, though some drop out.
"""

import hashlib
import math
from collections.abc import Sequence

__all__ = ["FAILURE", "FULL_UP_TO", "MOST_SITES", "degree_for", "holders_threshold", "neighbourhoods", "threshold_for"]

FULL_UP_TO = 100
"""Sites up to which everybody masks with everybody: nothing is left to chance there, and it takes a site a second."""

MOST_SITES = 2000
"""So many values of at most 2^52 grid steps, each with its noise, add up to less than 2^63."""

FAILURE = 2.0**-40
"""Chance that an order of the sites breaks one of the three conditions, at most."""


def threshold_for(holders: int, colluders: int) -> int:
    """Least number of shares with which no two lists of survivors can both be unmasked.

    An honest holder answers one list, a colluding one both: two lists take ``2 t`` answers of at most ``m + c``.
    """
    return (holders + max(1, colluders)) // 2 + 1


def degree_for(sites: int, dropouts: int, colluders: int) -> int:
    """Neighbours of every site: all others up to FULL_UP_TO sites, else the least even number that meets the
    conditions above; all others where none does.
    """
    if sites <= FULL_UP_TO:
        return sites - 1
    bad = min(sites, dropouts + max(1, colluders))
    for degree in range(2, sites - 1, 2):
        most = _most_colluders(sites, colluders, degree + 1)
        lost = degree + 1 - threshold_for(degree + 1, most)
        run = math.prod((bad - i) / (sites - i) for i in range(degree // 2)) if bad >= degree // 2 else 0.0
        if sites * run <= FAILURE and sites * _tail(sites, dropouts, degree + 1, lost) <= FAILURE:
            return degree
    return sites - 1


def holders_threshold(sites: int, colluders: int, degree: int) -> int:
    """Shares that unmask one site, of its ``degree`` neighbours and itself."""
    most = colluders if degree == sites - 1 else _most_colluders(sites, colluders, degree + 1)
    return threshold_for(degree + 1, most)


def neighbourhoods(sites: Sequence[str], degree: int, seed: bytes) -> dict[str, tuple[str, ...]]:
    """Every site's neighbours and itself, sorted.

    Args:
        sites: those that take part.
        degree: neighbours of each; all others where there are no more.
        seed: public, and nobody's choice.
    """
    if degree >= len(sites) - 1:
        everybody = tuple(sorted(sites))
        return dict.fromkeys(sites, everybody)
    circle = sorted(sites, key=lambda site: hashlib.sha256(seed + site.encode()).digest())
    reach = range(-(degree // 2), degree // 2 + 1)
    return {
        site: tuple(sorted({circle[(place + step) % len(circle)] for step in reach}))
        for place, site in enumerate(circle)
    }


def _most_colluders(sites: int, colluders: int, holders: int) -> int:
    """So many colluders are in no neighbourhood, but for a chance of FAILURE."""
    most = 0
    while sites * _tail(sites, colluders, holders, most) > FAILURE:
        most += 1
    return most


def _tail(sites: int, marked: int, drawn: int, most: int) -> float:
    """Chance that more than ``most`` of ``drawn`` sites are among the ``marked`` ones (hypergeometric)."""
    marked = min(marked, sites)
    every = math.comb(sites, drawn)
    hits = range(most + 1, min(marked, drawn) + 1)
    return sum(math.comb(marked, k) * math.comb(sites - marked, drawn - k) for k in hits) / every
