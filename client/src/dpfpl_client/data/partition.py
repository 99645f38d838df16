"""Makes the sites of a simulation, or the one site that owns its data, from a split data set."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dpfpl_client.data.dealing import Parts, deal_dirichlet, deal_evenly, deal_pathological
from dpfpl_client.data.labels import check_class_names
from dpfpl_client.data.records import DataProblem, ImageRecord, SiteData
from dpfpl_client.data.settings import check_partition, expect
from dpfpl_client.data.viewpoint import VIEWPOINTS
from dpfpl_common.errors import DataError

__all__ = ["partition_sites"]


def partition_sites(
    pool: Sequence[ImageRecord],
    class_names: Sequence[str],
    partition: str,
    num_sites: int,
    seed: int,
    alpha: float = 0.3,
) -> list[SiteData]:
    """Deal the images out to sites; each training and each test image belongs to exactly one site.

    Args:
        pool: the images, split; their order does not matter.
        class_names: the experiment's classes.
        partition: ``none`` (one site, everything), ``pathological``, ``dirichlet``, ``domain`` or ``iid``.
        num_sites: how many sites.
        seed: of the partition; the split does not depend on it.
        alpha: concentration of ``dirichlet``.

    A site's ``test`` holds its test images of the classes that it trains on. Its ``neighbour_test`` holds the test
    images of all other sites, seen from the others' viewpoints under ``domain``; under ``pathological`` only those of
    classes that it does not train on. Its own test images of other classes are neighbour images too.

    Raises:
        DataError: fewer training images than sites.
        ConfigError: an impossible partition.
    """
    check_class_names(class_names)
    check_partition(partition, num_sites, alpha)
    if partition == "none":
        expect("num_sites", num_sites, num_sites == 1, "1: without a partition every site would get all images")
    known = set(class_names)
    train = [record for record in pool if record.split == "train" and record.label in known]
    test = [record for record in pool if record.split == "test" and record.label in known]
    skipped = _unknown(pool, known)
    train_parts, test_parts = _deal(train, test, class_names, partition, num_sites, seed, alpha)
    _check_every_site_trains(train_parts, len(train))
    if partition == "domain":
        train_parts, test_parts = _from_viewpoints(train_parts), _from_viewpoints(test_parts)
    return [
        _site(site, train_parts, test_parts, class_names, partition == "pathological", skipped)
        for site in range(num_sites)
    ]


def _deal(
    train: list[ImageRecord],
    test: list[ImageRecord],
    class_names: Sequence[str],
    partition: str,
    num_sites: int,
    seed: int,
    alpha: float,
) -> tuple[Parts, Parts]:
    match partition:
        case "pathological":
            return deal_pathological(train, test, num_sites, seed)
        case "dirichlet":
            return deal_dirichlet(train, test, class_names, num_sites, seed, alpha)
        case "iid" | "domain":
            return deal_evenly(train, num_sites, seed), deal_evenly(test, num_sites, seed)
        case _:
            return [train], [test]


def _site(
    site: int,
    train_parts: Parts,
    test_parts: Parts,
    class_names: Sequence[str],
    other_classes_only: bool,
    problems: list[DataProblem],
) -> SiteData:
    own = {record.label for record in train_parts[site]}
    local = [record for record in test_parts[site] if record.label in own]
    neighbours = [record for record in test_parts[site] if record.label not in own]
    for other, part in enumerate(test_parts):
        if other != site:
            neighbours += [record for record in part if not (other_classes_only and record.label in own)]
    return SiteData(
        train=_by_key(train_parts[site]),
        test=_by_key(local),
        neighbour_test=_by_key(neighbours),
        classes=tuple(name for name in class_names if name in own),
        problems=(*problems, *_site_problems(train_parts[site], local)),
    )


def _site_problems(train: list[ImageRecord], local: list[ImageRecord]) -> list[DataProblem]:
    problems = []
    labels = {record.label for record in train}
    if len(labels) == 1:
        problems.append(
            DataProblem(
                "ONE_CLASS",
                "warning",
                f"All {len(train)} training images of this site are of the class {labels.pop()!r}. Training goes on, "
                "but with nothing to tell it from, the personal prompt can only learn to answer this class: expect a "
                "local accuracy near 100 % that means little, and a loss elsewhere. Add images of a second class.",
            )
        )
    if not local:
        problems.append(
            DataProblem(
                "NO_TEST_IMAGES",
                "warning",
                "This site has no test image of the classes that it trains on, so its local accuracy cannot be "
                "measured. Add images, or raise test_fraction.",
            )
        )
    return problems


def _unknown(pool: Sequence[ImageRecord], known: set[str]) -> list[DataProblem]:
    labels = sorted({record.label for record in pool} - known)
    if not labels:
        return []
    named = ", ".join(repr(label) for label in labels)
    return [DataProblem("UNKNOWN_CLASS", "warning", f"Classes that the experiment does not know are skipped: {named}.")]


def _check_every_site_trains(train_parts: Parts, num_images: int) -> None:
    without = sum(not part for part in train_parts)
    if num_images == 0:
        raise DataError(
            code="NO_TRAINING_IMAGES",
            message="There is no training image.",
            advice="Add images, or lower test_fraction.",
        )
    if without:
        raise DataError(
            code="TOO_MANY_SITES",
            message=f"{len(train_parts)} sites cannot share {num_images} training images: {without} would have none.",
            advice="Use fewer sites or more images.",
        )


def _from_viewpoints(parts: Parts) -> Parts:
    return [
        [replace(record, viewpoint=VIEWPOINTS[site % len(VIEWPOINTS)]) for record in part]
        for site, part in enumerate(parts)
    ]


def _by_key(records: Iterable[ImageRecord]) -> tuple[ImageRecord, ...]:
    return tuple(sorted(records, key=lambda record: record.key))
