"""Makes the sites of a simulation, or the one site that owns its data, from a split data set.

Every image goes to exactly one site. Shuffles are orders by a hash of (seed, picture): the same on every machine and
with every NumPy, and independent of file names.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dpfpl_client.data.records import VIEWPOINTS, DataProblem, ImageRecord, SiteData, check_class_names, left_out
from dpfpl_client.data.settings import DataSettings
from dpfpl_common.config import build
from dpfpl_common.errors import DataError

__all__ = ["partition_sites"]

Parts = list[list[ImageRecord]]
"""One list of images for each site."""
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


def partition_sites(
    pool: Sequence[ImageRecord],
    class_names: Sequence[str],
    partition: str,
    num_sites: int,
    seed: int,
    alpha: float = DataSettings.alpha,
) -> list[SiteData]:
    """Deal the images out to sites; each training and each test image belongs to exactly one site.

    Args:
        pool: the images, split; their order does not matter.
        class_names: the experiment's classes.
        partition: ``none`` (one site, everything), ``pathological``, ``dirichlet``, ``domain`` or ``iid``.
        num_sites: how many sites.
        seed: of the partition; the split does not depend on it.
        alpha: concentration of ``dirichlet``.

    ``none``: all test images are the site's ``test``, whatever it trains on: to tell "own" classes from others would
    let one training image decide where a test image counts. The other partitions simulate sites over public data, and
    only there own and others' classes are told apart: ``test`` holds a site's test images of the classes that it trains
    on, ``neighbour_test`` those of all other sites, seen from the others' viewpoints under ``domain``; under
    ``pathological`` only those of classes that it does not train on. Its own test images of other classes are neighbour
    images too.

    Raises:
        DataError: fewer training images than sites.
        ConfigError: an impossible partition.
    """
    check_class_names(class_names)
    build(DataSettings, {"source": "digits", "partition": partition, "num_sites": num_sites, "alpha": alpha}, "")
    known = set(class_names)
    train = [record for record in pool if record.split == "train" and record.label in known]
    test = [record for record in pool if record.split == "test" and record.label in known]
    skipped = left_out(Counter(record.label for record in pool), class_names)
    problems = () if skipped is None else (skipped,)
    match partition:
        case "pathological":
            trains, tests = deal_pathological(train, test, num_sites, seed)
        case "dirichlet":
            trains, tests = deal_dirichlet(train, test, class_names, num_sites, seed, alpha)
        case "none":
            _check_every_site_trains([train])
            return [_site(train, test, [], class_names, problems)]
        case _:
            trains, tests = deal_evenly(train, num_sites, seed), deal_evenly(test, num_sites, seed)
    _check_every_site_trains(trains)
    if partition == "domain":
        trains, tests = _from_viewpoints(trains), _from_viewpoints(tests)
    sites = []
    for site, own_train in enumerate(trains):
        own = {record.label for record in own_train}
        local = [record for record in tests[site] if record.label in own]
        neighbours = [record for record in tests[site] if record.label not in own]
        for other in (*tests[:site], *tests[site + 1 :]):
            neighbours += [record for record in other if partition != "pathological" or record.label not in own]
        sites.append(_site(own_train, local, neighbours, class_names, problems))
    return sites


def _site(
    train: list[ImageRecord],
    test: list[ImageRecord],
    neighbour_test: list[ImageRecord],
    class_names: Sequence[str],
    problems: tuple[DataProblem, ...],
) -> SiteData:
    trained = {record.label for record in train}
    return SiteData(
        train=_by_key(train),
        test=_by_key(test),
        neighbour_test=_by_key(neighbour_test),
        classes=tuple(name for name in class_names if name in trained),
        problems=(*problems, *_site_problems(train, test)),
    )


def _site_problems(train: list[ImageRecord], local: list[ImageRecord]) -> list[DataProblem]:
    problems = []
    labels = {record.label for record in train}
    if len(labels) == 1:
        text = (
            f"All {len(train)} training images of this site are of the class {labels.pop()!r}. Training continues, "
            "but with nothing to tell it from, the personal prompt can only learn to answer this class: expect a "
            "local accuracy near 100 % that means little, and a loss elsewhere. Add images of a second class."
        )
        problems.append(DataProblem("ONE_CLASS", text))
    if not local:
        text = (
            "This site has no test image, or none of the classes that it trains on, so its accuracy cannot be "
            "measured. Add images, or raise test_fraction."
        )
        problems.append(DataProblem("NO_TEST_IMAGES", text))
    return problems


def _check_every_site_trains(parts: Parts) -> None:
    images, without = sum(map(len, parts)), sum(not part for part in parts)
    if images == 0:
        raise DataError(
            code="NO_TRAINING_IMAGES",
            message="There is no training image.",
            advice="Add images, or lower test_fraction.",
        )
    if without:
        raise DataError(
            code="TOO_MANY_SITES",
            message=f"{len(parts)} sites cannot share {images} training images: {without} would have none.",
            advice="Use fewer sites or more images.",
        )


def _from_viewpoints(parts: Parts) -> Parts:
    return [
        [replace(record, viewpoint=VIEWPOINTS[site % len(VIEWPOINTS)]) for record in part]
        for site, part in enumerate(parts)
    ]


def _by_key(records: Iterable[ImageRecord]) -> tuple[ImageRecord, ...]:
    return tuple(sorted(records, key=lambda record: record.key))
