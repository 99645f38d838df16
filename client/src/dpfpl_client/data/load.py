"""Reads a source, splits it, and gives a site its part."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dpfpl_client.data.builtin import DIGIT_CLASSES, SHAPE_CLASSES, list_digits, list_shapes
from dpfpl_client.data.digests import DigestIndex, digest_items
from dpfpl_client.data.folder import list_folder
from dpfpl_client.data.hub import list_hub
from dpfpl_client.data.inspection import inspect
from dpfpl_client.data.partition import partition_sites
from dpfpl_client.data.questions import list_questions
from dpfpl_client.data.records import (
    DataProblem,
    ImageRecord,
    Listing,
    SiteData,
    check_class_names,
    map_labels,
    select_known,
)
from dpfpl_client.data.settings import BUILT_IN, DataSettings
from dpfpl_client.data.split import split_items
from dpfpl_client.data.tables import list_csv
from dpfpl_common.errors import DataError

__all__ = ["Pool", "count_labels", "list_classes", "load_pool", "load_site_data", "read_pool"]


@dataclass(frozen=True)
class Pool:
    """A whole source, split but not partitioned, and what is wrong with it."""

    records: tuple[ImageRecord, ...]
    problems: tuple[DataProblem, ...]
    unreadable: tuple[str, ...] = ()


def load_site_data(settings: DataSettings, class_names: Sequence[str], index_path: Path | None = None) -> SiteData:
    """Read, split and partition a site's images.

    Args:
        settings: where they are, and which part is this site's.
        class_names: the experiment's classes, in its order.
        index_path: where to remember digests between starts; None decodes every image again.

    Raises:
        DataError: nothing can be read or used; the message names what, the advice says what to do.
    """
    pool = read_pool(settings, class_names, index_path)
    if settings.source == "questions":
        return _questions_of_a_site(pool)
    sites = partition_sites(
        pool.records, class_names, settings.partition, settings.num_sites, settings.partition_seed, settings.alpha
    )
    site = sites[settings.site_index]
    return replace(site, problems=pool.problems + site.problems, unreadable=pool.unreadable)


def load_pool(
    settings: DataSettings, class_names: Sequence[str] | None, index_path: Path | None = None
) -> list[ImageRecord]:
    """The whole source, split but not partitioned; without class names, all classes that it has."""
    return list(read_pool(settings, class_names, index_path).records)


def read_pool(settings: DataSettings, class_names: Sequence[str] | None = None, index_path: Path | None = None) -> Pool:
    """As :func:`load_pool`, together with the problems."""
    open_answers = settings.source == "questions"
    if class_names is not None and not open_answers:
        check_class_names(class_names)
    listing = _list_source(settings)
    items, problems = map_labels(listing.items, settings.class_map)
    if class_names is not None and not open_answers:
        items, unknown = select_known(items, class_names)
        problems += unknown
    index = DigestIndex(index_path, settings.pixel_rules)
    digested = digest_items(items, index)
    records, copies = split_items(
        digested.items, settings.test_fraction, settings.split_seed, settings.viewpoint, in_words=open_answers
    )
    problems += digested.problems + copies + index.save()
    if len(digested.looks) == len(digested.items):  # nothing was remembered: the counts are of all images
        problems += inspect(digested.looks, records)
    if not open_answers:
        problems += _lost_classes({item.label for item in items}, records)
    if not records:
        raise DataError(
            code="NO_IMAGES",
            message=f"The {settings.source} source {settings.path!r} has no usable image.",
            advice=" ".join(problem.message for problem in (*listing.problems, *problems)[:3])
            or "Put images of the experiment's classes there.",
        )
    return Pool(tuple(records), (*listing.problems, *problems), digested.unreadable)


def list_classes(settings: DataSettings) -> tuple[str, ...]:
    """The class names found in a source, after the class map; sorted, but for the built-ins in their natural order.

    Questions have none: their answers are the site's own words.

    Raises:
        DataError: the source cannot be read, or holds no image.
    """
    if settings.source in BUILT_IN:
        names = DIGIT_CLASSES if settings.source == "digits" else SHAPE_CLASSES
        return tuple(dict.fromkeys(settings.class_map.get(name, name) for name in names))
    return tuple(sorted(count_labels(settings)))


def count_labels(settings: DataSettings) -> Counter[str]:
    """Images by class, after the class map, as the source lists them; no pixel is read. Questions have no classes.

    Raises:
        DataError: the source cannot be read, or holds no image.
    """
    if settings.source == "questions":
        return Counter()
    items, _ = map_labels(_list_source(settings).items, settings.class_map)
    return Counter(item.label for item in items)


def _list_source(settings: DataSettings) -> Listing:
    match settings.source:
        case "folder":
            listing = list_folder(Path(settings.path), settings.pixel_rules)
        case "csv":
            listing = list_csv(Path(settings.path), settings.pixel_rules)
        case "questions":
            listing = list_questions(Path(settings.path), settings.pixel_rules)
        case "huggingface":
            listing = list_hub(settings.path, settings.pixel_rules)
        case "digits":
            listing = list_digits()
        case _:
            listing = list_shapes()
    if not listing.items:
        raise DataError(
            code="NO_IMAGES",
            message=f"The {settings.source} source {settings.path!r} has no image.",
            advice=" ".join(problem.message for problem in listing.problems[:3]) or "Put images there.",
        )
    return listing


def _questions_of_a_site(pool: Pool) -> SiteData:
    """All questions are the site's own; there are no classes."""
    train = tuple(record for record in pool.records if record.split == "train")
    test = tuple(record for record in pool.records if record.split == "test")
    if not train:
        raise DataError(
            code="NO_TRAINING_IMAGES",
            message="There is no training image.",
            advice="Add questions about images, or lower test_fraction.",
        )
    return SiteData(train, test, (), (), pool.problems, pool.unreadable)


def _lost_classes(listed: set[str], records: Sequence[ImageRecord]) -> list[DataProblem]:
    """Classes of the source that cannot be trained on, because of what was skipped or how the split fell."""
    train = {record.label for record in records if record.split == "train"}
    test = {record.label for record in records if record.split == "test"}
    problems = []
    for name in sorted(listed - train - test):
        text = f"No image of the class {name!r} can be used: all were skipped. Repair or replace its images."
        problems.append(DataProblem("EMPTY_CLASS", text))
    if test and (unseen := sorted(train - test)):
        text = (
            f"No image of {', '.join(map(repr, unseen))} is held back, so nobody can measure how well "
            f"{'it is' if len(unseen) == 1 else 'they are'} recognised. Add images, or raise test_fraction."
        )
        problems.append(DataProblem("NO_TEST_IMAGES", text))
    for name in sorted(test - train):
        text = (
            f"The class {name!r} has test images but no training image, so the site does not train on it. Add images "
            "of it if it should."
        )
        problems.append(DataProblem("NO_TRAINING_IMAGES", text))
    return problems
