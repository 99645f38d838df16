"""Deals the images of one data set out to simulated sites; every image goes to exactly one site.

Shuffles are orders by a hash of (seed, picture): the same on every machine and with every NumPy, and independent of
file names. Every function returns one list of images per site.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dpfpl_client.data.records import ImageRecord

__all__ = ["deal_dirichlet", "deal_evenly", "deal_pathological"]

Parts = list[list[ImageRecord]]
Counts = NDArray[np.int64]

_MIN_TRAIN = 8
_MIN_CLASSES_OF_A_GROUP = 2


def deal_evenly(records: Sequence[ImageRecord], num_sites: int, seed: int) -> Parts:
    """iid: shuffle, then deal one to each site in turn; sizes differ by at most one."""
    shuffled = _shuffled(records, seed)
    return [shuffled[site::num_sites] for site in range(num_sites)]


def deal_pathological(
    train: Sequence[ImageRecord], test: Sequence[ImageRecord], num_sites: int, seed: int
) -> tuple[Parts, Parts]:
    """Disjoint classes: shuffle the classes and deal them out, as evenly as possible.

    With more sites than classes, groups of sites share the classes of their group (two or more where there are at least
    four classes in all), disjoint from the other groups', and divide the images of each class evenly among themselves.
    Test images are divided the same way as training images.
    """
    classes = sorted({record.label for record in train})
    classes.sort(key=lambda name: _hash(seed, f"class {name}"))
    num_groups = num_sites
    if num_sites > len(classes):
        num_groups = max(len(classes) // _MIN_CLASSES_OF_A_GROUP, 1) if len(classes) >= 4 else len(classes)
    group_of = {name: position % num_groups for position, name in enumerate(classes)}
    parts: tuple[Parts, Parts] = (_empty(num_sites), _empty(num_sites))
    for records, sites in zip((train, test), parts, strict=True):
        by_class = _by_class(_shuffled(records, seed))
        dealt = [0] * num_groups
        for name, group in group_of.items():
            members = range(group, num_sites, num_groups)
            for record in by_class[name]:
                sites[members[dealt[group] % len(members)]].append(record)
                dealt[group] += 1
    return parts


def deal_dirichlet(
    train: Sequence[ImageRecord],
    test: Sequence[ImageRecord],
    class_names: Sequence[str],
    num_sites: int,
    seed: int,
    alpha: float,
) -> tuple[Parts, Parts]:
    """Label skew: each class is cut among the sites in shares drawn from Dirichlet(alpha).

    Repair: a site with fewer than 8 training images (or the even share, if that is less) takes images, one at a time,
    from the most frequent class of the then largest site. Test images are cut in the shares that training images really
    got; a site then left without any takes one, of a class it trains on, from the site with the most, if any has two.
    """
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(_hash(seed, "dirichlet"))))
    shares = rng.dirichlet(np.full(num_sites, alpha), size=len(class_names)).T  # [num_sites, num_classes]
    of_train, of_test = _by_class(_shuffled(train, seed)), _by_class(_shuffled(test, seed))
    counts = _cut(shares, [len(of_train[name]) for name in class_names])
    _repair(counts, np.ones_like(counts, dtype=bool), min(_MIN_TRAIN, len(train) // num_sites))
    test_counts = _cut(np.where(counts.sum(axis=0) > 0, counts, shares), [len(of_test[name]) for name in class_names])
    _repair(test_counts, counts > 0, 1)
    return _slice(of_train, class_names, counts), _slice(of_test, class_names, test_counts)


def _cut(weights: NDArray[np.float64], totals: Sequence[int]) -> Counts:
    """Whole numbers [num_sites, num_classes] in the proportion of the weights; each column adds up to its total."""
    bounds = np.cumsum(weights, axis=0)
    ends: Counts = np.rint(bounds / bounds[-1] * np.asarray(totals)).astype(np.int64)
    ends[1:] -= ends[:-1].copy()
    return ends


def _repair(counts: Counts, allowed: NDArray[np.bool_], minimum: int) -> None:
    """Raise every site (row) to the minimum, in place, by taking from larger sites in allowed columns."""
    for site in range(len(counts)):
        while counts[site].sum() < minimum:
            sizes = counts.sum(axis=1)
            takeable = np.where(allowed[site] & (sizes > minimum)[:, None], counts, 0)
            donors = np.where(takeable.any(axis=1), sizes, 0)
            if not donors.any():
                break
            donor = int(donors.argmax())
            column = int(takeable[donor].argmax())
            counts[donor, column] -= 1
            counts[site, column] += 1


def _slice(by_class: dict[str, list[ImageRecord]], class_names: Sequence[str], counts: Counts) -> Parts:
    parts = _empty(len(counts))
    for column, name in enumerate(class_names):
        ends = np.cumsum(counts[:, column])
        for site, end in enumerate(ends):
            parts[site] += by_class[name][end - counts[site, column] : end]
    return parts


def _shuffled(records: Iterable[ImageRecord], seed: int) -> list[ImageRecord]:
    return sorted(records, key=lambda record: (_hash(seed, record.digest), record.key))


def _by_class(records: Iterable[ImageRecord]) -> dict[str, list[ImageRecord]]:
    by_class: defaultdict[str, list[ImageRecord]] = defaultdict(list)
    for record in records:
        by_class[record.label].append(record)
    return by_class


def _hash(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"dpfpl partition {seed} {text}".encode()).digest()


def _empty(num_sites: int) -> Parts:
    return [[] for _ in range(num_sites)]
